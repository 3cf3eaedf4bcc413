//! `throughway.service` and `throughway-guests.service`.

use std::collections::BTreeMap;

use crate::host::{Boot, Host, available, wait_until};

const FILE: &str = "/etc/throughway/appliance.yaml";

/// A guest that does this; more keys.
fn guest(name: &str, test: &str, more: &str) -> String {
    format!(
        "  {name}: {{memory: 16MiB, boot: {{kernel: /etc/throughway/guest.elf, cmdline: \"test={test}\"}}, autostart: true{more}}}\n"
    )
}

/// A bridge, which `restore` has something to do with, and these guests.
fn file(guests: &[String]) -> String {
    format!(
        "version: 1\nhost: {{iommu: optional, interrupt-remapping: optional}}\nnetworks:\n  lan0: {{type: bridge}}\nvms:\n{}",
        guests.concat()
    )
}

/// Two that know of their power buttons; the second depends on the first.
fn two() -> String {
    file(&[
        guest("first", "button", ", nics: {lan: {network: lan0}}"),
        guest("second", "button", ", depends-on: [first]"),
    ])
}

/// As its first user does it.
fn set_up(boot: &Boot<'_>) -> BTreeMap<String, u32> {
    boot.run(&["throughway", "apply", FILE]);
    boot.run(&["systemctl", "enable", "--now", "throughway.service", "throughway-guests.service"]);
    boot.wait_for(&["first", "second"])
}

/// How many guests have a control group.
fn scopes(boot: &Boot<'_>) -> usize {
    boot.run(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "throughway-guest-*"])
        .lines()
        .count()
}

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
fn guests_end_with_the_box_by_their_power_buttons_and_come_back_with_it() {
    if !available() {
        return;
    }
    let host = Host::new(&two());
    let boot = host.boot();
    set_up(&boot);
    assert_eq!(boot.property("throughway.service", "ActiveState"), "active");
    wait_until(
        || boot.property("throughway.service", "StatusText"),
        || boot.property("throughway.service", "StatusText") == "running: first second",
    );
    come_in_order(&boot.journal(), &["Guest `first` runs", "Guest `second` runs"]);
    let named = boot.run(&["cat", &format!("/proc/{}/comm", boot.running()["first"])]);
    assert_eq!(named, "throughway", "and not by the link that it was started by");
    let warned = boot.text(&["journalctl", "-u", "throughway.service", "-p", "warning", "-o", "cat", "-q"]);
    let other = warned.lines().find(|line| !line.starts_with("Nobody has claimed this box. Its code"));
    assert_eq!(other, None);
    boot.run(&["systemctl", "--no-block", "poweroff"]);
    boot.end();

    let boot = host.boot();
    boot.wait_for(&["first", "second"]);
    boot.run(&["ip", "link", "show", "lan0"]);
    let before = boot.run(&["journalctl", "--no-pager", "-b", "-1", "-o", "cat", "-u", "throughway.service"]);
    come_in_order(
        &before,
        &[
            "Guest `second`: its power button",
            "Guest `second` has ended: it powered off",
            "Guest `first`: its power button",
            "Guest `first` has ended: it powered off",
            "All guests are stopped",
        ],
    );
}

#[test]
fn guests_outlive_the_daemon_however_it_ends() {
    if !available() {
        return;
    }
    let host = Host::new(&two());
    host.write("/etc/systemd/system/throughway.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n");
    let boot = host.boot();
    let guests = set_up(&boot);
    for (name, pid) in &guests {
        let group = boot.run(&["cat", &format!("/proc/{pid}/cgroup")]);
        assert!(group.contains(&format!("/throughway.slice/throughway-guest-{name}-")), "{group}");
    }
    assert_eq!(scopes(&boot), 2);
    let mut daemon = boot.daemon();
    let next = |daemon: u32| {
        wait_until(
            || boot.journal(),
            || {
                ![0, daemon].contains(&boot.daemon())
                    && boot.property("throughway.service", "SubState") == "running"
            },
        );
        assert_eq!(boot.wait_for(&["first", "second"]), guests);
        boot.daemon()
    };

    boot.run(&["systemctl", "restart", "throughway.service"]);
    daemon = next(daemon);
    // As an upgrade does it, whose old program is gone then.
    boot.run(&[
        "sh",
        "-c",
        "cp /usr/bin/throughway /usr/bin/throughway.new && mv /usr/bin/throughway.new /usr/bin/throughway",
    ]);
    boot.run(&["systemctl", "restart", "throughway.service"]);
    daemon = next(daemon);
    boot.run(&["kill", "-KILL", &daemon.to_string()]);
    daemon = next(daemon);
    boot.run(&["kill", "-STOP", &daemon.to_string()]);
    next(daemon);
    let said = boot.text(&["journalctl", "-o", "cat", "-u", "throughway.service"]);
    assert!(said.contains("Watchdog timeout"));
    assert!(!said.contains("left-over"), "guests are nobody's left-over: {said}");
    boot.run(&["kill", "-KILL", &guests["first"].to_string()]);
    wait_until(|| boot.journal(), || boot.running().get("first").is_some_and(|now| *now != guests["first"]));
    wait_until(|| boot.text(&["systemctl", "list-units", "--all"]), || scopes(&boot) == 2);

    boot.run(&["systemctl", "stop", "throughway-guests.service"]);
    boot.wait_for(&[]);
    assert_eq!(boot.property("throughway.service", "ActiveState"), "inactive");
    assert_eq!(boot.property("throughway.service", "Result"), "success");
    wait_until(|| boot.text(&["systemctl", "list-units", "--all"]), || scopes(&boot) == 0);
    boot.run(&["systemctl", "start", "throughway-guests.service"]);
    let anew = boot.wait_for(&["first", "second"]);
    assert_ne!(anew, guests);
}

#[test]
fn a_reload_is_a_plan_that_is_applied_and_a_broken_file_changes_nothing() {
    if !available() {
        return;
    }
    let host = Host::new(&two());
    let boot = host.boot();
    let before = set_up(&boot);
    let third = [guest("first", "button", ", nics: {lan: {network: lan0}}"), guest("third", "button", "")];
    host.write(FILE, &file(&third));
    boot.run(&["systemctl", "reload", "throughway.service"]);
    let after = boot.wait_for(&["first", "third"]);
    assert_eq!(after["first"], before["first"]);

    host.write(FILE, "version: 1\nvms: {broken: {memory: lots}}\n");
    boot.run(&["systemctl", "reload", "throughway.service"]);
    wait_until(|| boot.journal(), || boot.journal().contains("what held before holds on"));
    assert!(boot.journal().contains("memory"), "{}", boot.journal());
    assert_eq!(boot.running(), after);
    assert_eq!(boot.property("throughway.service", "ActiveState"), "active");
}

#[test]
fn the_host_is_restored_where_no_daemon_is_wanted() {
    if !available() {
        return;
    }
    let host = Host::new(&two());
    let boot = host.boot();
    boot.run(&["throughway", "apply", FILE]);
    boot.run(&["systemctl", "enable", "throughway-restore.service"]);
    boot.run(&["systemctl", "--no-block", "poweroff"]);
    boot.end();
    let boot = host.boot();
    wait_until(
        || boot.property("throughway-restore.service", "ActiveState"),
        || boot.property("throughway-restore.service", "ActiveState") == "active",
    );
    boot.run(&["ip", "link", "show", "lan0"]);
    assert_eq!(boot.running(), BTreeMap::new());
}
