//! A change of the host is killed at every boundary of its steps: afterwards the host is as before, or as planned.
//!
//! In a network namespace that the test makes; needs root. The part with PCI functions runs in the lab.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netconfig::LinkSettings;
use netconfig::blocking::with_network;
use netconfig::dhcp::DhcpTool;
use rustix::process::{Signal, getpid, kill_process};
use throughway::apply::{Event, History, Host, Ledger, Outcome, Transaction, originals, revert_the_dead};
use throughway::config::{Config, Document, load};
use throughway::host::HostState;
use throughway::plan::{HostPlan, whole};

/// The links that are there before anything: three cables.
const SETUP: [&str; 9] = [
    "link set lo up",
    "link add a0 type veth peer name a1",
    "link add b0 type veth peer name b1",
    "link add c0 type veth peer name c1",
    "link set a0 up",
    "link set b0 up",
    "link set c0 up",
    "address add 10.3.0.1/24 dev b0",
    "link add old type bridge",
];

/// Bridges, ports that had addresses, macvtaps, a NAT network.
const FIRST: &str = "version: 1
networks:
  br0: {type: bridge, mtu: 1400, stp: {enabled: true}, addresses: [10.1.0.1/24, 'fd00:1::1/64'], ports: {a0: {}, b0: {}}}
  br1: {type: bridge, ageing-time: 20, addresses: [10.2.0.1/24]}
  old: {type: bridge, ageing-time: 30}
  tap0: {type: macvtap, base-iface: c0, mode: bridge}
  tap1: {type: macvtap, base-iface: c0, mode: private}
  tap2: {type: macvtap, base-iface: c1, mode: vepa, mtu: 1300}
  nat0: {type: nat, addresses: [10.77.0.1/24], dhcp: {range: 10.77.0.50-10.77.0.150}}
";

/// Some of it otherwise, some of it no more.
const SECOND: &str = "version: 1
networks:
  br0: {type: bridge, mtu: 1450, ports: {a0: {}}, addresses: [10.1.0.2/24]}
  br2: {type: bridge, ports: {a1: {}, b1: {}}}
  tap0: {type: macvtap, base-iface: c0, mode: vepa}
  tap3: {type: macvtap, base-iface: c1, mode: bridge}
  nat0: {type: nat, addresses: [10.77.0.1/24], isolated: true}
";

/// Addresses by DHCP: nobody answers, so the clients go on asking.
const THIRD: &str = "version: 1
networks:
  br3: {type: bridge, dhcp4: true, ports: {a0: {}}}
  br4: {type: bridge, dhcp4: true}
";

/// What a change is done to, with busybox as the box's DHCP client, which is not to wait long for nobody.
fn host(state: &Path) -> Host {
    let mut host = Host::at(state);
    let udhcpc = state.join("udhcpc");
    if !udhcpc.exists() {
        let fresh = state.join("udhcpc.new");
        std::fs::write(&fresh, "#!/bin/sh\nexec /bin/busybox udhcpc \"$@\" -t 1 -T 1\n").unwrap();
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(fresh, &udhcpc).unwrap();
    }
    host.dhcp = host.dhcp.with_client(DhcpTool::Udhcpc, udhcpc);
    host
}

fn config(text: &str) -> Config {
    load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap()
}

fn plan(text: &str, host: &Host, ledger: &Ledger, history: &History) -> anyhow::Result<HostPlan> {
    let now = HostState::read_all(host, ledger)?;
    whole(&config(text), &now, &originals(&history.records()?))
        .map_err(|refusals| anyhow::anyhow!("{refusals:?}"))
}

/// Applies a file, and kills this process at the boundary `at`, counted from 0.
fn change(text: &str, state: &Path, at: u64) {
    let (host, ledger, history) = (host(state), Ledger::at(state), History::at(state));
    let lock = ledger.lock().unwrap();
    let todo = plan(text, &host, &ledger, &history).unwrap();
    let steps = todo.steps.iter().map(|planned| planned.step.to_string()).collect();
    let record = history.begin("a change".into(), Some(text.into()), steps).unwrap();
    let seen = AtomicU64::new(0);
    let hear = |_: Event<'_>| {
        if seen.fetch_add(1, Ordering::Relaxed) == at {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
    };
    let left = || plan(text, &host, &ledger, &history);
    let transaction =
        Transaction { history: &history, ledger: &ledger, host: &host, hear: &hear, left: &left };
    let outcome = transaction.run(record, &todo, lock, Some(Duration::from_secs(1))).unwrap();
    assert_eq!(outcome, Outcome::Committed);
}

/// Links as they are, without what the kernel chooses itself, all rules of nftables, and where the box asks for an address.
fn links(host: &Host) -> (BTreeMap<String, LinkSettings>, String, BTreeSet<String>) {
    let mut links = with_network(async |network| network.settings().await).unwrap();
    for link in links.values_mut() {
        link.mac_address = None;
    }
    let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(rules.status.success());
    (links, String::from_utf8(rules.stdout).unwrap(), host.dhcp.links().unwrap())
}

/// Kills a change of its own at each of its boundaries in turn until it comes to its end; how many there were.
fn walk(text: &str, state: &Path) -> u64 {
    let (host, ledger, history) = (host(state), Ledger::at(state), History::at(state));
    let before = links(&host);
    for at in 0..500 {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_boundary", "--nocapture"])
            .env("CRASH_STATE", state)
            .env("CRASH_FILE", text)
            .env("CRASH_AT", at.to_string())
            .output()
            .unwrap();
        if ended.status.success() {
            let left = plan(text, &host, &ledger, &history).unwrap().steps;
            let left: Vec<String> = left.iter().map(|planned| planned.step.to_string()).collect();
            assert_eq!(left, [""; 0], "the host is as planned");
            return at;
        }
        assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
        let _lock = ledger.lock().unwrap();
        assert_eq!(revert_the_dead(&history, &host).unwrap(), 1, "boundary {at}");
        assert_eq!(links(&host), before, "boundary {at}: the host is as before");
        assert_eq!(revert_the_dead(&history, &host).unwrap(), 0, "boundary {at}: nothing is left");
    }
    panic!("a change without end");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_boundary() {
    if let (Ok(state), Ok(text), Ok(at)) =
        (std::env::var("CRASH_STATE"), std::env::var("CRASH_FILE"), std::env::var("CRASH_AT"))
    {
        return change(&text, Path::new(&state), at.parse().unwrap());
    }
    if std::env::var_os("CRASH_WALK").is_none() {
        let walk = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "every_boundary", "--nocapture"])
            .env("CRASH_WALK", "1")
            .output()
            .unwrap();
        print!("{}", String::from_utf8_lossy(&walk.stdout));
        assert!(walk.status.success(), "{}", String::from_utf8_lossy(&walk.stderr));
        return;
    }
    SETUP.iter().for_each(|arguments| ip(arguments));
    let state = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a first file", FIRST),
        ("another file", SECOND),
        ("addresses by DHCP", THIRD),
        ("no networks", "version: 1\n"),
    ] {
        let count = walk(text, state.path());
        println!(
            "{name}: killed at {count} of {count} boundaries; each time all was as before, at the end as planned"
        );
        assert!(count >= 6);
    }
}
