//! The file changes, and who may have it.

use rustix::process::Signal;

use crate::appliance::{Appliance, file, guest};
use crate::machine::{available, wait_until};

#[test]
fn a_file_that_is_read_anew_adds_and_removes_guests() {
    if !available() {
        return;
    }
    let (stays, goes) =
        (guest("stays", "halt", "autostart: true"), guest("goes", "button", "autostart: true"));
    let appliance = Appliance::new(&file(&[stays.clone(), goes]));
    let mut daemon = appliance.daemon(&[]);
    let before = appliance.wait_for(&["goes", "stays"]);
    appliance.write(&file(&[stays.clone(), guest("comes", "halt", "autostart: true")]));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(appliance.running(), before, "what nobody has applied is no wish");
    daemon.signal(Signal::HUP);
    daemon.wait_for("The host is as the file says");
    let after = appliance.wait_for(&["comes", "stays"]);
    assert_eq!(after["stays"], before["stays"]);
    // Who looks at its socket may know of its end before the daemon does.
    wait_until("it is heard of", || daemon.log().contains("Guest `goes` has ended: it powered off"));

    appliance.write("version: 1\nvms: {broken: {memory: 16MiB}}\n");
    daemon.signal(Signal::HUP);
    daemon.wait_for("The file is not applied: what held before holds on");
    assert_eq!(appliance.running(), after);

    // By hand is as good.
    appliance.write(&file(&[stays]));
    let mut apply = std::process::Command::new(env!("CARGO_BIN_EXE_throughway"));
    apply.arg("apply").arg(appliance.path("box.yaml")).arg("--state-dir").arg(appliance.path("state"));
    assert!(apply.output().unwrap().status.success());
    daemon.wait_for("Guest `comes` is in the file no more");
}

#[test]
fn a_second_daemon_is_refused() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[guest("a", "halt", "autostart: true")]));
    let mut daemon = appliance.daemon(&[]);
    daemon.wait_for("Guest `a` runs");
    let output = appliance.refused();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("already, as process {}", daemon.pid())), "{error}");
    let pid = appliance.running()["a"];
    daemon.kill();
    let mut daemon = appliance.daemon(&[]);
    daemon.wait_for(&format!("Guest `a` runs, as process {pid}"));
}

#[test]
fn guests_start_although_the_file_on_disk_is_broken() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[guest("a", "halt", "autostart: true")]));
    appliance.daemon(&[]).wait_for("Guest `a` runs");
    let daemon = appliance.daemon(&[]);
    wait_until("it is found", || daemon.log().contains("Guest `a` runs"));
    daemon.signal(Signal::TERM);
    // It has no ear for a power button.
    appliance.vm(&["stop", "a", "--timeout", "0"]);
    daemon.end();
    appliance.write("nonsense");
    std::fs::remove_file(appliance.path("run/.daemon/a.stopped")).unwrap_or_default();
    let mut daemon = appliance.daemon(&[]);
    daemon.wait_for("Guest `a` runs");
}
