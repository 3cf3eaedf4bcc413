//! `throughway status --watch`: what is changed by ip(8) and bridge(8) is told field by field, and that it is as before.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::namespace::{alone, ip};
use crate::witness::{bridge_tool, kernel_filters_vlans, kernel_has_vlans};

/// Far more than it takes, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

const FILE: &str = "version: 1
networks:
  br0:
    type: bridge
    mtu: 1400
    ageing-time: 300
    stp: {enabled: false}
    addresses: [10.1.0.1/24]
    ports: {a0: {}}
  up0: {type: macvtap, base-iface: b0, mode: bridge, addresses: [10.6.0.1/24]}
";

/// For kernels that have them.
const VLANS: &str = "version: 1
networks:
  br0: {type: bridge, vlan-filtering: true, ports: {a0: {vlan: {mode: trunk, trunk-tags: [100]}}}}
  v6: {type: vlan, base-iface: b0, id: 6}
";

/// A state folder, a file and cables.
struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        ip("link set lo up");
        for cable in ["a", "b"] {
            ip(&format!("link add {cable}0 type veth peer name {cable}1"));
            ip(&format!("link set {cable}0 up"));
        }
        Self(tempfile::tempdir().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // In the lab's box it is elsewhere than it was built.
        let built = env!("CARGO_BIN_EXE_throughway");
        let program = if Path::new(built).exists() { built } else { "throughway" };
        let mut command = Command::new(program);
        command.args(arguments).arg("--state-dir").arg(self.0.path());
        command
    }

    fn apply(&self, text: &str) {
        let file = self.0.path().join("box.yaml");
        std::fs::write(&file, text).unwrap();
        let output = self.command(&["apply", file.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn watch(&self, more: &[&str]) -> Watcher {
        let mut command = self.command(&[&["-v", "status", "--watch", "--json"], more].concat());
        let stderr = self.0.path().join("watch.err");
        command.stdout(Stdio::piped()).stderr(std::fs::File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, heard) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Watcher { child, heard }
    }

    fn complaints(&self) -> String {
        std::fs::read_to_string(self.0.path().join("watch.err")).unwrap()
    }
}

/// A `status --watch` that runs.
struct Watcher {
    child: Child,
    heard: Receiver<Value>,
}

impl Watcher {
    fn next(&self, within: Duration) -> Option<Value> {
        match self.heard.recv_timeout(within) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended"),
        }
    }

    /// The next that it tells is this.
    #[track_caller]
    fn tells(&self, event: &str, object: &str, field: &str, expected: &str, actual: &str) {
        let found = self.next(PATIENCE).unwrap_or_else(|| panic!("nothing was told of {object} {field}"));
        let fields: Vec<&str> = ["event", "object", "field", "expected", "actual"]
            .iter()
            .map(|key| found.get(key).and_then(Value::as_str).unwrap_or(""))
            .collect();
        assert_eq!(fields, [event, object, field, expected, actual]);
    }

    #[track_caller]
    fn is_in_sync(&self, change: u64) {
        let found = self.next(PATIENCE).expect("nothing was told");
        assert_eq!(
            (found["event"].as_str(), found["change"].as_u64()),
            (Some("in-sync"), Some(change)),
            "{found}"
        );
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    fn ends(mut self) -> Option<i32> {
        self.signal("TERM");
        let end = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None => assert!(Instant::now() < end, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Only what the kernel tells counts: nothing is looked for in between.
const NEVER: [&str; 2] = ["--every", "3600"];

#[test]
fn each_field_that_drifts_is_told_and_that_it_is_back() {
    alone("watch::each_field_that_drifts_is_told_and_that_it_is_back", || {
        let house = House::new();
        house.apply(FILE);
        let watcher = house.watch(&NEVER);
        watcher.is_in_sync(1);
        // What is done, what it is called, what it should be, what it is, and how it is undone.
        let changes = [
            ("link set br0 mtu 1300", ["br0", "mtu", "1400", "1300"], "link set br0 mtu 1400"),
            (
                "address add 10.9.0.1/24 dev br0",
                ["br0", "addresses", "10.1.0.1/24", "10.1.0.1/24, 10.9.0.1/24"],
                "address del 10.9.0.1/24 dev br0",
            ),
            (
                "link set br0 type bridge ageing_time 1000",
                ["br0", "ageing-time", "300", "10"],
                "link set br0 type bridge ageing_time 30000",
            ),
            (
                "link set br0 type bridge stp_state 1",
                ["br0", "stp", "false", "true"],
                "link set br0 type bridge stp_state 0",
            ),
            ("link set a0 nomaster", ["a0", "controller", "br0", "none"], "link set a0 master br0"),
            ("link set a0 down", ["a0", "up", "up", "down"], "link set a0 up"),
            (
                "link set up0 type macvtap mode private",
                ["up0", "kind", "macvtap (bridge) on b0", "macvtap (private) on b0"],
                "link set up0 type macvtap mode bridge",
            ),
        ];
        for (done, [object, field, expected, actual], undone) in changes {
            ip(done);
            watcher.tells("drift", object, field, expected, actual);
            ip(undone);
            watcher.tells("gone", object, field, expected, actual);
            watcher.is_in_sync(1);
        }
        assert_eq!(watcher.ends(), Some(0));
    });
}

#[test]
fn vlans_that_drift_are_told() {
    alone("watch::vlans_that_drift_are_told", || {
        if !(kernel_filters_vlans() && kernel_has_vlans()) {
            return;
        }
        let house = House::new();
        house.apply(VLANS);
        let watcher = house.watch(&NEVER);
        watcher.is_in_sync(1);
        bridge_tool("vlan add dev a0 vid 77");
        watcher.tells("drift", "a0", "vlans", "100", "77, 100");
        bridge_tool("vlan del dev a0 vid 77");
        watcher.tells("gone", "a0", "vlans", "100", "77, 100");
        watcher.is_in_sync(1);
        ip("link del v6");
        watcher.tells("drift", "v6", "link", "VLAN 6 (802.1q) on b0", "absent");
        assert_eq!(watcher.ends(), Some(2));
    });
}

#[test]
fn a_link_that_is_gone_is_one_drift_and_a_change_makes_it_good() {
    alone("watch::a_link_that_is_gone_is_one_drift_and_a_change_makes_it_good", || {
        let house = House::new();
        house.apply(FILE);
        let watcher = house.watch(&NEVER);
        watcher.is_in_sync(1);
        ip("link set up0 down");
        watcher.tells("drift", "up0", "up", "up", "down");
        ip("link del up0");
        // That it is up again is not said.
        watcher.tells("drift", "up0", "link", "macvtap (bridge) on b0", "absent");
        let status = house.command(&["status"]).status().unwrap();
        assert_eq!(status.code(), Some(2));
        house.apply(FILE);
        // Whether the change is seen while it is done depends on who is faster.
        let mut event = watcher.next(PATIENCE).unwrap();
        if event["event"] == "changing" {
            event = watcher.next(PATIENCE).unwrap();
        }
        assert_eq!(
            (event["event"].as_str(), event["change"].as_u64()),
            (Some("in-sync"), Some(2)),
            "{event}"
        );
        ip("link set up0 down");
        watcher.tells("drift", "up0", "up", "up", "down");
        assert_eq!(watcher.ends(), Some(2));
    });
}

#[test]
fn what_a_change_does_itself_is_no_drift() {
    alone("watch::what_a_change_does_itself_is_no_drift", || {
        let house = House::new();
        house.apply(FILE);
        let watcher = house.watch(&["--every", "1"]);
        watcher.is_in_sync(1);
        for round in 0..4_u64 {
            let mtu = 1300 + round;
            house.apply(&FILE.replace("mtu: 1400", &format!("mtu: {mtu}")));
            let end = Instant::now() + PATIENCE;
            loop {
                let event =
                    watcher.next(end.saturating_duration_since(Instant::now())).expect("nothing was told");
                match event["event"].as_str() {
                    Some("changing") => {}
                    Some("in-sync") if event["change"].as_u64() == Some(round + 2) => break,
                    _ => panic!("{event}"),
                }
            }
        }
        assert_eq!(watcher.ends(), Some(0));
    });
}

#[test]
fn messages_that_are_lost_are_made_up_for() {
    alone("watch::messages_that_are_lost_are_made_up_for", || {
        let house = House::new();
        house.apply(FILE);
        let watcher = house.watch(&NEVER);
        watcher.is_in_sync(1);
        watcher.signal("STOP");
        // Until nothing fits into its socket any more; then the change that counts, of which it is told nothing.
        let lines: String = (0..3000).map(|mtu| format!("link set b1 mtu {}\n", 1000 + mtu % 400)).collect();
        let batch = house.0.path().join("batch");
        std::fs::write(&batch, lines).unwrap();
        ip(&format!("-batch {}", batch.display()));
        ip("link set br0 mtu 1300");
        watcher.signal("CONT");
        watcher.tells("drift", "br0", "mtu", "1400", "1300");
        assert!(house.complaints().contains("more changes than could be heard"), "{}", house.complaints());
        ip("link set br0 mtu 1400");
        watcher.tells("gone", "br0", "mtu", "1400", "1300");
        watcher.is_in_sync(1);
        assert_eq!(watcher.ends(), Some(0));
    });
}

#[test]
fn what_the_kernel_does_not_tell_is_looked_for() {
    alone("watch::what_the_kernel_does_not_tell_is_looked_for", || {
        if !crate::nat::kernel_has_nat() {
            return;
        }
        let house = House::new();
        house.apply("version: 1\nnetworks: {nat0: {type: nat, addresses: [10.77.0.1/24]}}\n");
        let watcher = house.watch(&["--every", "1"]);
        watcher.is_in_sync(1);
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        std::fs::write(forward, "0").unwrap();
        watcher.tells("drift", "NAT of nat0", "forwarding", "on", "off");
        std::fs::write(forward, "1").unwrap();
        watcher.tells("gone", "NAT of nat0", "forwarding", "on", "off");
        watcher.is_in_sync(1);
        assert_eq!(watcher.ends(), Some(0));
        // Rules of nftables it does tell of.
        let watcher = house.watch(&NEVER);
        watcher.is_in_sync(1);
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        let event = watcher.next(PATIENCE).expect("nothing was told");
        assert_eq!(
            (event["event"].as_str(), event["field"].as_str()),
            (Some("drift"), Some("rules")),
            "{event}"
        );
        assert_eq!(watcher.ends(), Some(2));
    });
}

#[test]
fn before_any_change_nothing_is_said_to_be_in_sync() {
    alone("watch::before_any_change_nothing_is_said_to_be_in_sync", || {
        let house = House::new();
        let watcher = house.watch(&["--every", "1"]);
        assert_eq!(watcher.next(PATIENCE).unwrap()["event"], "nothing-applied");
        assert_eq!(watcher.next(Duration::from_millis(1500)), None);
        assert_eq!(watcher.ends(), Some(0));
    });
}
