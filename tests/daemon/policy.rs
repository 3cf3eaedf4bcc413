//! What is started again, by whom, and how often.

use std::time::Duration;

use rustix::process::Signal;

use crate::appliance::{Appliance, file, guest, kill_and_wait};
use crate::machine::{available, wait_until};

#[test]
fn a_guest_that_crashes_again_and_again_is_backed_off_and_given_up() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("bad", "triple-fault", "autostart: true"),
        guest("good", "halt", "autostart: true"),
    ]));
    let mut daemon = appliance.daemon(&["--restart-after", "20", "--restart-limit", "4"]);
    for wait in ["20ms", "40ms", "80ms", "160ms"] {
        daemon.wait_for(&format!("it is started again in {wait}"));
    }
    daemon.wait_for("That was its failure 5 in a row: it stays off");
    assert!(daemon.log().contains("Guest `bad` has ended: it crashed: Triple fault"), "{}", daemon.log());
    appliance.wait_for(&["good"]);
    let state = appliance.path("state").display().to_string();
    let all = appliance.vm(&["list", "--all", "--state-dir", &state]);
    let bad = all.lines().find(|line| line.starts_with("bad ")).unwrap_or_default();
    assert!(bad.contains("off, it crashed: Triple fault"), "{all}");
    assert!(all.contains("good  running"), "{all}");
}

#[test]
fn what_an_administrator_stops_stays_off_and_what_he_starts_is_kept_running() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("always", "halt", "autostart: true, restart: always"),
        guest("other", "halt", "autostart: false"),
    ]));
    let mut daemon = appliance.daemon(&["--restart-after", "1"]);
    daemon.wait_for("Guest `always` runs");
    appliance.vm(&["stop", "always", "--timeout", "0"]);
    daemon.wait_for("Guest `always` has ended: it was stopped from outside");
    appliance.start("other");
    daemon.wait_for("Guest `other` runs");
    let pid = appliance.running()["other"];
    kill_and_wait(pid);
    wait_until("it is back", || appliance.running().get("other").is_some_and(|now| *now != pid));
    assert_eq!(appliance.processes().len(), 1, "somebody stopped the other one");
    daemon.kill();
    let mut daemon = appliance.daemon(&["--restart-after", "1"]);
    daemon.wait_for("Guest `other` runs");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(appliance.processes().len(), 1, "and that holds for the next daemon");
    appliance.start("always");
    daemon.wait_for("Guest `always` runs");
    kill_and_wait(appliance.running()["always"]);
    daemon.wait_for("Guest `always` runs");
    assert!(appliance.vm(&["stop", "always", "--timeout", "0"]).contains("was stopped"));
    daemon.signal(Signal::INT);
    daemon.end();
}

#[test]
fn a_guest_that_waits_to_be_started_again_can_be_stopped() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[guest("a", "halt", "autostart: true")]));
    let mut daemon = appliance.daemon(&["--restart-after", "2000"]);
    daemon.wait_for("Guest `a` runs");
    kill_and_wait(appliance.running()["a"]);
    daemon.wait_for("it is started again in 2s");
    assert!(appliance.vm(&["stop", "a"]).contains("the daemon does not start it again"));
    daemon.wait_for("Guest `a` is not started again: somebody stopped it");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(appliance.processes().is_empty());
}
