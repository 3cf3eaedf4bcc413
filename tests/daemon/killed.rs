//! Daemons and guests that are killed.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::appliance::{Appliance, Namespace, file, guest, kill_and_wait};
use crate::machine::{available, wait_until};

/// Numbers that look drawn, the same in each run.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn a_daemon_killed_fifty_times_loses_no_guest_and_starts_none_twice() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("first", "halt", "autostart: true"),
        guest("second", "halt", "autostart: true"),
        guest("third", "halt", "autostart: true, depends-on: [first]"),
    ]));
    let words = ["--restart-after", "1", "--restart-limit", "1000"];
    let daemon = appliance.daemon(&words);
    let first = appliance.wait_for(&["first", "second", "third"]);
    daemon.kill();
    let mut drawn = Drawn(0x7468_726f_7567_6877);
    for round in 0..50 {
        // That one is being started again while the daemon is killed.
        let victim = ["second", "third"][round % 2];
        if let Some(pid) = appliance.processes().get(victim) {
            kill_and_wait(*pid);
        }
        let daemon = appliance.daemon(&words);
        std::thread::sleep(Duration::from_millis(drawn.below(250)));
        appliance.processes();
        daemon.kill();
        let now = appliance.processes();
        assert_eq!(now.get("first"), first.get("first"), "round {round}: it was never touched");
        wait_until("no machine is there without its keeper", || {
            appliance.machines().len() <= appliance.processes().len()
        });
    }
    let mut daemon = appliance.daemon(&words);
    let last = appliance.wait_for(&["first", "second", "third"]);
    assert_eq!(last.get("first"), first.get("first"));
    assert_eq!(appliance.processes(), last);
    daemon.wait_for("Guest `first` runs");
    daemon.signal(Signal::INT);
    daemon.end();
    assert_eq!(appliance.running(), last, "they go on without a daemon");
}

/// Bridges of these names beside the one that guests are on.
fn with_bridges(names: &[&str]) -> String {
    let guests = file(&[
        guest("first", "halt", "autostart: true, nics: {lan: {network: br0}}"),
        guest("second", "halt", "autostart: true"),
    ]);
    let bridges: String = names.iter().map(|name| format!("  {name}: {{type: bridge}}\n")).collect();
    let host = "host: {iommu: optional, interrupt-remapping: optional}\n";
    format!("{guests}{host}networks:\n  br0: {{type: bridge}}\n{bridges}")
}

#[test]
fn a_daemon_killed_fifty_times_with_an_apply_under_way_leaves_nothing_half_done() {
    if !available() || !rustix::process::geteuid().is_root() {
        return;
    }
    let sides = [["a1", "a2", "a3", "a4", "a5", "a6"], ["b1", "b2", "b3", "b4", "b5", "b6"]];
    let namespace = Namespace::new();
    let appliance = Appliance::new(&with_bridges(&sides[0]));
    let mut daemon = appliance.daemon_within(&namespace, &[]);
    let guests = appliance.wait_for(&["first", "second"]);
    let links = namespace.links();
    let others = links.iter().filter(|name| !sides[0].contains(&name.as_str()));
    let others: BTreeSet<String> = others.cloned().collect();
    let whole: Vec<BTreeSet<String>> = sides
        .iter()
        .map(|names| others.iter().cloned().chain(names.iter().map(|name| (*name).to_owned())).collect())
        .collect();
    assert_eq!(links, whole[0]);
    let (mut drawn, mut seen) = (Drawn(0x6b69_6c6c_6564_2d39), [0, 0]);
    // Milliseconds in which a change begins: fewer or more with what else the machine has to do.
    let mut soon = 200;
    for round in 0..50 {
        let now = usize::from(namespace.links() == whole[1]);
        appliance.write(&with_bridges(&sides[1 - now]));
        daemon.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(drawn.below(soon)));
        daemon.kill();
        // What was begun goes on to its end, or goes back, with a daemon that comes back at once.
        daemon = appliance.daemon_within(&namespace, &[]);
        daemon.wait_for("Guest `second` runs");
        wait_until("no change is under way", || !appliance.is_changing());
        assert!(whole.contains(&namespace.links()), "round {round}: {:?}", namespace.links());
        let status = appliance.status_within(&namespace);
        assert!(status.status.success(), "round {round}: {}", String::from_utf8_lossy(&status.stdout));
        let then = usize::from(namespace.links() == whole[1]);
        seen[then] += 1;
        soon = if then == now { soon * 9 / 8 } else { (soon * 7 / 8).max(20) };
        assert!(!daemon.log().contains("ERROR"), "round {round}: {}", daemon.log());
        assert_eq!(appliance.running(), guests, "round {round}: no guest stops");
    }
    assert!(seen.iter().all(|times| *times > 5), "both were seen: {seen:?}");
    assert_eq!(appliance.processes(), guests);
}

#[test]
fn guests_that_are_killed_come_back_and_nothing_is_left_of_them() {
    if !available() || !rustix::process::geteuid().is_root() {
        return;
    }
    let bridge = "host: {iommu: optional, interrupt-remapping: optional}\nnetworks:\n  br0: {type: bridge}\n";
    let guests = file(&[
        guest("one", "halt", "autostart: true, nics: {lan: {network: br0}}"),
        guest("two", "halt", "autostart: true, restart: no"),
    ]);
    let appliance = Appliance::new(&format!("{guests}{bridge}"));
    let daemon = appliance.daemon_alone(&["--restart-after", "1", "--restart-limit", "1000"]);
    appliance.wait_for(&["one", "two"]);
    let links = || fs::read_to_string(format!("/proc/{}/net/dev", daemon.pid())).unwrap().lines().count();
    let claims = || {
        let folder = fs::read_dir(appliance.path("state/claims")).unwrap().flatten();
        folder.filter(|entry| entry.file_name().to_string_lossy().ends_with(".json")).count()
    };
    let folders = || fs::read_dir(appliance.path("run")).unwrap().count();
    let counted = || (daemon.descriptors(), links(), claims(), folders());
    std::thread::sleep(Duration::from_secs(1));
    let before = counted();
    for _ in 0..10 {
        let pid = appliance.running()["one"];
        kill_and_wait(pid);
        wait_until("it is back", || appliance.running().get("one").is_some_and(|now| *now != pid));
    }
    wait_until("all is as before", || counted() == before);
    kill_and_wait(appliance.running()["two"]);
    wait_until("its file says no", || daemon.log().contains("Guest `two` stays off"));
    assert!(!appliance.running().contains_key("two"));
}

#[test]
fn what_happened_without_a_daemon_is_judged_by_the_next() {
    if !available() {
        return;
    }
    let appliance = Appliance::new(&file(&[
        guest("crashed", "halt", "autostart: true"),
        guest("off", "button", "autostart: true"),
        guest("stays", "halt", "autostart: true"),
        guest("stopped", "halt", "autostart: true, restart: always"),
    ]));
    let daemon = appliance.daemon(&[]);
    let before = appliance.wait_for(&["crashed", "off", "stays", "stopped"]);
    daemon.kill();
    kill_and_wait(before["crashed"]);
    appliance.vm(&["power-button", "off"]);
    appliance.vm(&["stop", "stopped", "--timeout", "0"]);
    wait_until("it is off", || !appliance.processes().contains_key("off"));
    let mut daemon = appliance.daemon(&["--restart-after", "1"]);
    daemon.wait_for("Guest `off` has ended: it powered off");
    let after = appliance.wait_for(&["crashed", "stays"]);
    assert_eq!(after["stays"], before["stays"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(appliance.processes().len(), 2);
}

#[test]
fn a_guest_killed_at_any_moment_of_its_start_leaves_what_is_recovered() {
    if !available() || !rustix::process::geteuid().is_root() {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link add br0 type bridge");
    let bridge = "host: {iommu: optional, interrupt-remapping: optional}\nnetworks:\n  br0: {type: bridge}\n";
    let guests = file(&[guest("one", "halt", "nics: {lan: {network: br0}, wan: {network: br0}}")]);
    let appliance = Appliance::new(&format!("{guests}{bridge}"));
    let before = namespace.links();
    let kill = |mut guest: std::process::Child| {
        guest.kill().unwrap();
        guest.wait().unwrap();
    };
    let begun = std::time::Instant::now();
    let first = appliance.run_within(&namespace, "one");
    wait_until("its cards are there", || namespace.links().len() == before.len() + 2);
    let mut start = u64::try_from(begun.elapsed().as_micros()).unwrap();
    kill(first);
    appliance.recover_within(&namespace);
    let (mut drawn, mut seen) = (Drawn(0x7374_6172_7469_6e67), [0; 3]);
    // Until each was seen, as far as chance has it: no card yet, one, and both.
    for round in 0..400 {
        if round >= 60 && seen[0] >= 10 && seen[2] >= 10 {
            break;
        }
        let guest = appliance.run_within(&namespace, "one");
        std::thread::sleep(Duration::from_micros(drawn.below(start * 2)));
        kill(guest);
        let cards = namespace.links().len() - before.len();
        seen[cards] += 1;
        // Other starts are faster or slower than the first, with what else the machine has to do.
        start = [start * 9 / 8, start, (start * 7 / 8).max(100)][cards];
        wait_until("its machine is gone", || appliance.machines().is_empty());
        assert!(cards == 0 || appliance.claims().len() == 1, "round {round}: {:?}", appliance.claims());
        appliance.recover_within(&namespace);
        assert_eq!(namespace.links(), before, "round {round}");
        assert_eq!(appliance.claims(), BTreeSet::new(), "round {round}");
    }
    assert!(seen[0] >= 10 && seen[2] >= 10, "{seen:?}");
}
