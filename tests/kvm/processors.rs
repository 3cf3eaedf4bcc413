//! More than one processor.

use rustix::process::Signal;

use crate::machine::{Guest, available};

#[test]
fn others_start_by_init_and_start_up_ipi() {
    if !available() {
        return;
    }
    for (cpus, count) in [("2", 2), ("{count: 4, threads: 2}", 4), ("{count: 3, sockets: 3}", 3)] {
        // APIC ids have gaps where a count is no power of two, but not in these.
        let ended = Guest { cpus, ..Guest::new(&format!("test=smp cpus={count}")) }.run();
        let hellos: String = (1..count).map(|cpu| format!("hello from processor {cpu}\n")).collect();
        assert_eq!((ended.code, ended.console), (Some(0), hellos + "all are up\n"), "{cpus}: {}", ended.log);
    }
}

#[test]
fn sixty_four_know_their_sockets_cores_and_threads() {
    if !available() {
        return;
    }
    let cpus = "{count: 64, sockets: 2, threads: 2}";
    let ended = Guest { cpus, ..Guest::new("test=topology cpus=64") }.run();
    let mut said = "listed: 64\n".to_owned();
    for cpu in 0..64 {
        said +=
            &format!("processor {cpu}: initial {cpu} id {cpu} threads 2 shift 1, 32 in a socket shift 5\n");
    }
    assert_eq!((ended.code, ended.console), (Some(0), said), "{}", ended.log);
}

#[test]
fn each_stays_on_the_hosts_processors_that_it_was_given() {
    if !available() {
        return;
    }
    let there = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if there.trim() == "0" {
        eprintln!("skipped: this host has one processor");
        return;
    }
    for (cpus, wanted) in [
        ("{count: 2, cpuset: \"0-1\"}", ["0", "1"]),
        ("{count: 2, cpuset: \"1\"}", ["1", "1"]),
        ("{count: 2}", [there.trim(), there.trim()]),
    ] {
        let mut guest = Guest { cpus, ..Guest::new("test=spin") }.start();
        guest.wait_for("ready");
        // The host's processors that a thread may run on.
        let of = |thread: &str| guest.thread(thread)["Cpus_allowed_list"].clone();
        assert_eq!([of("vcpu0"), of("vcpu1")], wanted, "{cpus}");
        // Only they are kept there.
        assert_eq!(of("throughway"), there.trim(), "{cpus}");
        guest.signal(Signal::TERM);
        guest.end();
    }
}

/// Also of memory that is touched before the start, which is made when the walls are there.
#[test]
fn no_thread_of_a_guest_that_runs_is_without_its_walls() {
    if !available() {
        return;
    }
    let is_root = rustix::process::geteuid().is_root();
    for memory in ["16MiB", "{size: 16MiB, prefault: true}"] {
        let mut guest = Guest { cpus: "2", memory: memory.into(), ..Guest::new("test=spin") }.start();
        guest.wait_for("ready");
        for name in ["throughway", "vcpu0", "vcpu1"] {
            guest.thread(name);
        }
        let threads = guest.threads();
        let names: Vec<_> = threads.iter().map(|thread| thread["Name"].as_str()).collect();
        // The one that makes a machine may do all that the keeper may, and is over.
        assert!(!names.contains(&"processors"), "{names:?}");
        for thread in &threads {
            let of = |key: &str| thread[key].as_str();
            assert_eq!((of("Seccomp"), of("NoNewPrivs")), ("2", "1"), "{memory}: {}", thread["Name"]);
            if is_root {
                assert_eq!(of("CapEff"), "0000000000000000", "{memory}: {}", thread["Name"]);
                assert!(
                    !of("Uid").split_whitespace().any(|user| user == "0"),
                    "{memory}: {}",
                    thread["Name"]
                );
            }
        }
        guest.signal(Signal::TERM);
        guest.end();
    }
}
