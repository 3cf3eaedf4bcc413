//! More than one processor.

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
