//! Who starts when, and who ends when.

use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use rustix::process::Signal;

use crate::appliance::{Appliance, file, guest};
use crate::machine::available;

/// In this order, with other things between them.
fn come_in_order(log: &str, lines: &[&str]) {
    let mut from = 0;
    for line in lines {
        match log[from..].find(line) {
            Some(at) => from += at + line.len(),
            None => panic!("{line:?} is not there, or too early: {log}"),
        }
    }
}

#[test]
fn guests_start_after_what_they_depend_on_and_after_their_delay() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("a", "halt", "autostart: true, depends-on: [b, d]"),
        guest("b", "halt", "autostart: true, start-delay: 1s"),
        guest("c", "halt", "autostart: false"),
        guest("d", "halt", "autostart: false"),
    ]));
    let begun = Instant::now();
    let mut daemon = appliance.daemon(&[]);
    daemon.wait_for("Guest `a` runs");
    assert!(begun.elapsed().as_secs() >= 1);
    come_in_order(&daemon.log(), &["Guest `d` runs", "Guest `b` runs", "Guest `a` runs"]);
    appliance.wait_for(&["a", "b", "d"]);
    assert_eq!(appliance.processes().len(), 3);
}

#[test]
fn a_stop_is_the_power_button_in_reverse_order_and_the_next_daemon_starts_anew() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("a", "button", "autostart: true, depends-on: [b]"),
        guest("b", "button", "autostart: true"),
        guest("deaf", "halt", "autostart: true, stop-timeout: 1s"),
    ]));
    let mut daemon = appliance.daemon(&[]);
    for name in ["b", "a"] {
        daemon.wait_for(&format!("Guest `{name}` runs"));
    }
    appliance.wait_for(&["a", "b", "deaf"]);
    daemon.signal(Signal::TERM);
    let log = daemon.end();
    come_in_order(
        &log,
        &[
            "Guest `a`: its power button",
            "Guest `a` has ended: it powered off",
            "Guest `b`: its power button",
            "Guest `b` has ended: it powered off",
        ],
    );
    assert!(log.contains("Guest `deaf` has ended: it was stopped from outside"), "{log}");
    assert!(appliance.processes().is_empty());
    let daemon = appliance.daemon(&[]);
    appliance.wait_for(&["a", "b", "deaf"]);
    drop(daemon);
    let daemon = appliance.daemon(&[]);
    appliance.wait_for(&["a", "b", "deaf"]);
    let output = {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.args(["daemon", "--stop", "--state-dir"]).arg(appliance.path("state")).output().unwrap()
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.end();
    assert!(appliance.processes().is_empty());
}

#[test]
fn the_service_manager_is_told() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[guest("a", "halt", "autostart: true, stop-timeout: 1s")]));
    let socket = UnixDatagram::bind(appliance.path("notify")).unwrap();
    socket.set_read_timeout(Some(crate::machine::PATIENCE)).unwrap();
    let heard = |wanted: &str| loop {
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).unwrap();
        if String::from_utf8_lossy(&bytes[..count]).contains(wanted) {
            return;
        }
    };
    let daemon = appliance.service(&appliance.path("notify"));
    heard("READY=1");
    heard("STATUS=running: a");
    heard("WATCHDOG=1");
    daemon.signal(Signal::HUP);
    heard("RELOADING=1");
    heard("READY=1");
    daemon.signal(Signal::TERM);
    heard("STOPPING=1");
    // As a service its lines are for the journal.
    assert!(daemon.end().contains("<6>Guest `a` runs"));
}
