//! What KVM counts, as a person sees it.

use rustix::process::Signal;

use crate::machine::{Guest, Running, available, hardware};

/// A counter out of the line that SIGUSR1 makes `throughway` write.
fn counters(guest: &mut Running, names: [&str; 3]) -> [u64; 3] {
    guest.signal(Signal::USR1);
    let line = guest.wait_for_log("KVM statistics of vCPU 0: ");
    names.map(|name| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{name} in {line}")).parse().unwrap()
    })
}

#[test]
fn exits_to_user_space_are_counted_while_the_guest_runs() {
    if !available() {
        return;
    }
    let names = ["exits", "mmio_exits", "io_exits"];
    let mut guest = Guest { arguments: &["-v"], ..Guest::new("test=obey") }.start();
    guest.wait_for("ready");
    // The guest polls COM1 all the time, so `exits` and `io_exits` rise in any case: only memory can be told apart.
    let before = counters(&mut guest, names);
    guest.send(b"m");
    guest.wait_for("done mmio");
    let memory = counters(&mut guest, names);
    guest.send(b"i");
    guest.wait_for("done ports");
    let ports = counters(&mut guest, names);
    guest.send(b"q");
    let ended = guest.end();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        before[0] > 0 && memory[0] > before[0] && ports[0] > memory[0],
        "{before:?} {memory:?} {ports:?}"
    );
    if hardware().is_some() {
        assert!(memory[1] >= before[1] + 500 && ports[1] == memory[1], "{before:?} {memory:?} {ports:?}");
        assert!(ports[2] >= memory[2] + 500, "{memory:?} {ports:?}");
    }
}

#[test]
fn they_are_in_the_debugging_log_at_the_end() {
    if !available() {
        return;
    }
    let ended = Guest { cpus: "2", arguments: &["-vv"], ..Guest::new("test=hello") }.run();
    assert_eq!(ended.code, Some(0));
    for start in ["DEBUG KVM statistics of vCPU 0: exits=", "DEBUG KVM statistics of vCPU 1: exits="] {
        assert!(ended.log.contains(start), "{}", ended.log);
    }
    let quiet = Guest { arguments: &["-v"], ..Guest::new("test=hello") }.run();
    assert_eq!((quiet.code, &*quiet.log), (Some(0), ""));
}
