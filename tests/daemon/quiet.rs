//! A daemon that has nothing to do does nothing.

use std::time::Duration;

use crate::appliance::{Appliance, file, guest};
use crate::machine::{available, wait_until};

#[test]
fn an_idle_daemon_sleeps() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("a", "halt", "autostart: true"),
        guest("b", "halt", "autostart: true"),
    ]));
    let mut daemon = appliance.daemon(&[]);
    appliance.wait_for(&["a", "b"]);
    daemon.wait_for("runs, as process");
    // Those that were needed at the start end after ten seconds.
    wait_until("it has one thread", || daemon.status("Threads") == 1);
    let woken = || daemon.status("voluntary_ctxt_switches");
    let before = woken();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(woken(), before, "nothing happened");
    assert_eq!(daemon.status("Threads"), 1);
    let resident = daemon.status("VmRSS");
    eprintln!("idle: {resident} KiB resident, {} anonymous", daemon.status("RssAnon"));
    assert!(cfg!(debug_assertions) || resident < 15 << 10, "{resident} KiB");
}
