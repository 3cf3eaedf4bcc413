//! A guest that writes garbage wherever it can. It may end in any way that is written down, and `throughway` must live:
//! [`Guest::run`](crate::machine::Guest::run) fails on a panic and on a signal.

use crate::machine::{Guest, available};

/// More of them by `KVM_GARBAGE_SEEDS`, a number.
fn seeds() -> std::ops::Range<u64> {
    let more = std::env::var("KVM_GARBAGE_SEEDS").ok().and_then(|number| number.parse().ok());
    1..1 + more.unwrap_or(2)
}

#[test]
fn garbage_in_every_register_and_port_changes_nothing_outside() {
    if !available() {
        return;
    }
    for (seed, cpus) in seeds().zip(["1", "2"].into_iter().cycle()) {
        let ended = Guest { cpus, ..Guest::new(&format!("test=garbage seed={seed} cpus={cpus}")) }.run();
        assert_eq!(ended.code, Some(0), "seed {seed}: {}", ended.log);
        assert!(ended.console.ends_with("\ngarbage done\n"), "seed {seed}: {:?}", ended.console);
    }
}

#[test]
fn garbage_in_power_and_reset_ports_ends_as_documented() {
    if !available() {
        return;
    }
    for seed in seeds().map(|seed| seed * 100) {
        for (on_reset, cpus) in [("restart", "1"), ("restart", "2"), ("exit", "2")] {
            let cmdline = format!("test=garbage-power seed={seed} cpus={cpus}");
            let ended = Guest { on_reset, cpus, ..Guest::new(&cmdline) }.run();
            let expected: &[i32] = if on_reset == "exit" { &[0, 4] } else { &[0] };
            let documented = ended.code.is_some_and(|code| expected.contains(&code));
            assert!(documented, "seed {seed}, {on_reset}: {:?}: {}", ended.code, ended.log);
        }
    }
}
