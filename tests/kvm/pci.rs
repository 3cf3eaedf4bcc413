//! What a guest finds on its buses.

use crate::machine::{Guest, available};

#[test]
fn bus_0_is_the_same_by_ports_and_by_ecam() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=pci").run();
    // Q35's host bridge and ICH9's LPC bridge, and nothing else anywhere.
    let found = "function 0 is 29c08086 class 60000\nfunction f8 is 29188086 class 60100\n\
                 differences: 0\naddress: 8000f844\ndisabled: ffffffff\n";
    assert_eq!((ended.code, &*ended.console), (Some(0), found), "{}", ended.log);
}

#[test]
fn what_nobody_holds_reads_all_ones() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=all-ones").run();
    assert_eq!((ended.code, &*ended.console), (Some(0), "wrong: 0\n"), "{}", ended.log);
}
