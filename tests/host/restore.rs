//! After a restart of the box it is as it was applied last and held, and as nothing that nobody confirmed.
//!
//! A restart is what a change's process cannot outlive: links are made anew, and what is on disk is of another boot.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::{alone, ip};
use crate::settings;
use crate::visit::{Visited, wait_for};

const FILE: &str = "version: 1
management: {interface: box0, confirm-timeout: 60s}
networks:
  br1: {type: bridge, mtu: 1400, ports: {a0: {}}, addresses: [10.1.0.1/24]}
  br2: {type: bridge, ageing-time: 20}
  tap0: {type: macvtap, base-iface: c0, mode: passthru}
";

/// Cables, as the kernel has them after a boot.
fn cables() {
    for line in [
        "link add a0 address 02:00:00:00:0a:01 type veth peer name a1",
        "link add c0 address 02:00:00:00:0c:01 type veth peer name c1",
        "link set a1 up",
        "link set c1 up",
        "link set c0 up",
    ] {
        ip(line);
    }
}

/// What is on disk is of another boot, and all links but the card are gone with that.
fn restart(visited: &Visited) {
    let this = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let folder = visited.state().join("history");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(this.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
    }
    for name in settings().keys().filter(|name| !matches!(name.as_str(), "lo" | "box0")) {
        // A veth goes with its peer, a macvtap with what is below it.
        let _ = Command::new("ip").args(["link", "del", name]).stderr(Stdio::null()).status();
    }
    ip("link set box0 nomaster up");
    ip("address flush dev box0");
    ip("address add 10.9.0.1/24 dev box0");
}

/// Settings but for what the kernel draws anew.
fn seen() -> String {
    let mut links = settings();
    for name in ["br1", "br2", "tap0"] {
        links.entry(name.to_owned()).and_modify(|link| link.mac_address = None);
    }
    for peer in ["a1", "c1"] {
        links.remove(peer);
    }
    format!("{links:#?}")
}

#[test]
fn the_box_is_as_it_was_applied_and_goes_back_from_there() {
    alone("restore::the_box_is_as_it_was_applied_and_goes_back_from_there", || {
        let (visited, _administrator) = Visited::new();
        assert_eq!(visited.run("restore"), (0, "Nothing was applied yet.\n".to_owned()));
        cables();
        let bare = seen();
        let file = visited.file("box.yaml", FILE);
        let (code, said) = visited.run(&format!("apply {}", file.display()));
        assert_eq!(code, 0, "{said}");
        let applied = seen();
        for boot in [2, 3] {
            restart(&visited);
            cables();
            assert_eq!(seen(), bare);
            assert_eq!(visited.run("status").0, 2);
            let (code, said) = visited.run("restore");
            assert!(
                code == 0 && said.contains(&format!("Change {boot} holds: what change 1 (apply ")),
                "{said}"
            );
            assert_eq!(seen(), applied);
            assert_eq!(visited.run("status").0, 0);
        }
        let (code, said) = visited.run("restore");
        assert!(code == 0 && said.starts_with("Nothing is to be done: the host is as change 1 "), "{said}");
        let (_, history) = visited.run("history");
        assert!(history.lines().count() == 2 && history.contains("restore of 1"), "one a boot: {history}");

        let (code, said) = visited.run("rollback");
        assert_eq!(code, 0, "{said}");
        assert_eq!(seen(), bare);
        let (_, history) = visited.run("history");
        assert!(history.contains("rollback of 1"), "{history}");
        restart(&visited);
        cables();
        let (code, said) = visited.run("restore");
        assert!(code == 0 && said.starts_with("No file is applied since change 4 (rollback of 1)"), "{said}");
        assert_eq!(seen(), bare);
    });
}

#[test]
fn a_change_goes_back_to_the_file_before_it_after_a_restart() {
    alone("restore::a_change_goes_back_to_the_file_before_it_after_a_restart", || {
        let (visited, _administrator) = Visited::new();
        cables();
        let file = visited.file("box.yaml", FILE);
        assert_eq!(visited.run(&format!("apply {}", file.display())).0, 0);
        let first = seen();
        fs::write(&file, "version: 1\nnetworks: {br7: {type: bridge}}\n").unwrap();
        assert_eq!(visited.run(&format!("apply {}", file.display())).0, 0);
        assert_ne!(seen(), first);
        for restored in [true, false] {
            restart(&visited);
            cables();
            let last = if restored { "restore" } else { "status" };
            visited.run(last);
            let (code, said) = visited.run("rollback");
            assert_eq!(code, 0, "{said}");
            if restored {
                assert_eq!(seen(), first);
                // And again, as the last change is that one now.
                assert_eq!(visited.run("rollback").0, 0);
                assert!(settings().contains_key("br7") && !settings().contains_key("br1"));
            } else {
                assert_eq!(seen(), first, "the last change went back to `br7`, and this from it");
            }
        }
    });
}

/// The address of the way in goes to a bridge.
const MOVED: &str = "version: 1
management: {interface: br0, confirm-timeout: 60s}
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.9.0.1/24]}
";
const MOVED_ON: &str = "version: 1
management: {interface: br0, confirm-timeout: 60s}
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.10.0.1/24]}
";

#[test]
fn the_way_in_is_as_it_was_confirmed_and_what_waited_is_not_done() {
    alone("restore::the_way_in_is_as_it_was_confirmed_and_what_waited_is_not_done", || {
        let (visited, administrator) = Visited::new();
        let file = visited.file("box.yaml", MOVED);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&visited.line(&format!("apply {}", file.display())));
        visited.change(1, "waiting");
        assert_eq!(visited.run("confirm 1").0, 0);
        visited.change(1, "committed");
        let confirmed = seen();

        fs::write(&file, MOVED_ON).unwrap();
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&format!("{} & echo", visited.line(&format!("apply {}", file.display()))));
        let worker = visited.worker(2);
        let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
        let started_it: i32 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        for pid in [started_it, i32::try_from(worker).unwrap()] {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        restart(&visited);
        let (code, said) = visited.run("confirm 2");
        assert!(code == 1 && said.contains("went when the box was started anew"), "{said}");

        let (code, said) = visited.run("restore");
        assert!(code == 0 && said.contains("Change 3 holds: what change 1 (apply "), "{said}");
        assert!(said.contains("box.yaml is not as change 1 has it, which is what holds"), "{said}");
        assert_eq!(seen(), confirmed);
        administrator.comes_in("10.9.0.1");
        let (_, history) = visited.run("history");
        assert!(history.contains("ended before anybody confirmed it: the box was started anew"), "{history}");
    });
}

#[test]
fn what_is_late_is_waited_for_and_what_stays_away_is_named() {
    alone("restore::what_is_late_is_waited_for_and_what_stays_away_is_named", || {
        let (visited, _administrator) = Visited::new();
        cables();
        let file = visited.file("box.yaml", FILE);
        assert_eq!(visited.run(&format!("apply {}", file.display())).0, 0);
        let applied = seen();

        restart(&visited);
        let (code, said) = visited.run("restore --wait 1");
        assert!(code == 3 && said.contains("Waiting up to 1 s: networks.br1.ports.a0: "), "{said}");
        for missing in
            ["error: networks.br1.ports.a0 is missing: ", "error: networks.tap0.base-iface is missing: "]
        {
            assert!(said.contains(missing), "{said}");
        }
        let links = settings();
        assert!(links.contains_key("br1") && links.contains_key("br2") && !links.contains_key("tap0"));
        let (code, said) = visited.run("status");
        assert!(
            code == 3 && said.contains("cannot be compared"),
            "what is missing is not passed over: {said}"
        );

        restart(&visited);
        let late = std::thread::spawn({
            let line = visited.line("restore --wait 60");
            move || {
                Command::new("sh").args(["-c", &format!("{line} 2>&1")]).env("SSH_CONNECTION", "").output()
            }
        });
        // It is looked for at once, and each half second.
        std::thread::sleep(Duration::from_secs(2));
        cables();
        let output = late.join().unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("Waiting up to 60 s: "), "{said}");
        assert_eq!(seen(), applied);
    });
}

#[test]
fn a_step_that_fails_does_not_keep_the_rest_from_the_box() {
    alone("restore::a_step_that_fails_does_not_keep_the_rest_from_the_box", || {
        let (visited, _administrator) = Visited::new();
        cables();
        let file = visited.file("box.yaml", FILE);
        assert_eq!(visited.run(&format!("apply {}", file.display())).0, 0);
        restart(&visited);
        cables();
        // Somebody else has taken the link for a bridge of his own: no macvtap can take all of it then.
        ip("link add theirs type bridge");
        ip("link set c0 master theirs");
        let (code, said) = visited.run("restore --wait 1");
        assert!(code == 3 && said.contains("error: networks.tap0 is missing: "), "{said}");
        let links = settings();
        assert!(links.contains_key("br1") && !links.contains_key("tap0"), "{said}");
        assert_eq!(links["c0"].controller.as_deref(), Some("theirs"));
        ip("link set c0 nomaster");
        let (code, said) = visited.run("restore");
        assert!(code == 0 && settings().contains_key("tap0"), "{said}");
        assert_eq!(visited.run("status").0, 0);
    });
}

/// A process that another one started. Not every kernel lists them (CONFIG_PROC_CHILDREN).
fn child_of(parent: u32) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let of: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (of == parent).then_some(pid)
    })
}

#[test]
fn killed_at_any_time_it_does_all_of_it_the_next_time() {
    alone("restore::killed_at_any_time_it_does_all_of_it_the_next_time", || {
        let (visited, _administrator) = Visited::new();
        cables();
        let file = visited.file("box.yaml", FILE);
        assert_eq!(visited.run(&format!("apply {}", file.display())).0, 0);
        let applied = seen();
        for undone in ["br2", "br1", "tap0"] {
            restart(&visited);
            cables();
            let line = visited.line("restore");
            let mut restoring = Command::new("sh");
            restoring.args(["-c", &format!("exec {line}")]).env("SSH_CONNECTION", "");
            let mut restoring = restoring.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let worker = wait_for("its worker", Duration::from_secs(20), || child_of(restoring.id()));
            // As soon as this one is there, or when it has ended already.
            let there = || fs::exists(format!("/sys/class/net/{undone}")).unwrap();
            wait_for(undone, Duration::from_secs(20), || {
                (settings().contains_key(undone) || there()).then_some(())
            });
            let _ =
                kill_process(Pid::from_raw(i32::try_from(restoring.id()).unwrap()).unwrap(), Signal::KILL);
            let _ = kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL);
            restoring.wait().unwrap();
            wait_for("its end", Duration::from_secs(20), || {
                (!fs::exists(format!("/proc/{worker}/exe")).unwrap()).then_some(())
            });
            let (code, said) = visited.run("restore");
            assert_eq!(code, 0, "{said}");
            assert_eq!(seen(), applied, "killed when {undone} was there");
        }
    });
}

#[test]
fn the_unit_for_systemd_is_one() {
    let text = include_str!("../../appliance/systemd/throughway-restore.service");
    assert!(text.contains("\nExecStart=/usr/bin/throughway restore "), "{text}");
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if !analyze.is_ok_and(|output| output.status.success()) {
        eprintln!("the_unit_for_systemd_is_one is skipped: no systemd-analyze");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("throughway-restore.service");
    // It looks whether the program is there.
    fs::write(&path, text.replace("/usr/bin/throughway", env!("CARGO_BIN_EXE_throughway"))).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("throughway")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
