//! `throughway status` reads the host back: each kind of thing that others change is named, field by field.

use std::process::Command;
use std::time::Duration;

use crate::namespace::{alone, ip};
use crate::visit::{Visited, wait_for};

/// Bridges, a port, a macvtap and a NAT network.
const FILE: &str = "version: 1
management: {confirm-timeout: 1s}
networks:
  br0:
    {type: bridge, mtu: 1400, stp: {enabled: true}, ageing-time: 30, ports: {a0: {}}, addresses: [10.1.0.1/24, 'fd00:1::1/64'],
     gateway: 10.1.0.254}
  up0: {type: macvtap, base-iface: c0, mode: bridge}
  nat0: {type: nat, mtu: 1480, addresses: [10.77.0.1/24], dhcp: {range: 10.77.0.50-10.77.0.150}}
";

/// What is done by hand, what `status` says of it, and what undoes it.
const CHANGES: [(&str, &str, &str); 13] = [
    ("ip link set br0 mtu 1300", "br0: mtu 1300 -> 1400", "ip link set br0 mtu 1400"),
    (
        "ip address add 10.1.0.9/24 dev br0",
        "br0: addresses -10.1.0.9/24",
        "ip address del 10.1.0.9/24 dev br0",
    ),
    (
        "ip address del fd00:1::1/64 dev br0",
        "br0: addresses +fd00:1::1/64",
        "ip address add fd00:1::1/64 dev br0 nodad",
    ),
    (
        "ip route del default dev br0",
        "br0: gateways +10.1.0.254",
        "ip route add default via 10.1.0.254 dev br0",
    ),
    (
        "ip route add default via 10.1.0.253 dev br0 metric 9",
        "br0: gateways -10.1.0.253",
        "ip route del default via 10.1.0.253 dev br0",
    ),
    (
        "ip link set br0 type bridge stp_state 0",
        "br0: stp false -> true",
        "ip link set br0 type bridge stp_state 1",
    ),
    (
        "ip link set br0 type bridge ageing_time 6000",
        "br0: ageing-time 60 -> 30",
        "ip link set br0 type bridge ageing_time 3000",
    ),
    ("ip link set a0 nomaster", "a0: controller none -> br0", "ip link set a0 master br0"),
    ("ip link set a0 down", "a0: up", "ip link set a0 up"),
    (
        "ip link set up0 type macvtap mode vepa",
        "up0: macvtap vepa on c0 -> macvtap bridge on c0",
        "ip link set up0 type macvtap mode bridge",
    ),
    (
        "sysctl -qw net.ipv4.ip_forward=0",
        "nat0: the NAT network's forwarding off -> on",
        "sysctl -qw net.ipv4.ip_forward=1",
    ),
    ("ip link set nat0 mtu 1280", "nat0: mtu 1280 -> 1480", "ip link set nat0 mtu 1480"),
    (
        "ip address add 10.78.0.1/24 dev nat0",
        "nat0: addresses -10.78.0.1/24",
        "ip address del 10.78.0.1/24 dev nat0",
    ),
];

fn by_hand(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Three cables, and the file applied.
fn applied() -> Visited {
    let (visited, _administrator) = Visited::new();
    for name in ["a", "c"] {
        ip(&format!("link add {name}0 type veth peer name {name}1"));
        ip(&format!("link set {name}0 up"));
        ip(&format!("link set {name}1 up"));
    }
    assert_eq!(visited.run("status"), (0, "Nothing was applied yet.\n".to_owned()));
    let nothing: serde_json::Value = serde_json::from_str(&visited.run("status --json").1).unwrap();
    assert_eq!(nothing["in-sync"], serde_json::Value::Null, "there is nothing to be in sync with");
    let file = visited.file("box.yaml", FILE);
    let (code, said) = visited.run(&format!("apply {}", file.display()));
    assert_eq!(code, 0, "{said}");
    visited
}

fn is_in_sync(visited: &Visited, after: &str) {
    let said = wait_for(&format!("in sync after `{after}`"), Duration::from_secs(5), || {
        let (code, said) = visited.run("status");
        (code == 0).then_some(said)
    });
    assert!(said.contains("The host is as change"), "{said}");
}

fn tells(visited: &Visited, done: &str, text: &str) {
    let (code, said) = visited.run("status");
    assert!(code == 2 && said.contains(text), "after `{done}`: {said}");
    let json: serde_json::Value = serde_json::from_str(&visited.run("status --json").1).unwrap();
    assert!(json["in-sync"] == false && !json["differs"].as_array().unwrap().is_empty(), "{json:#}");
}

/// A file that asks for nothing: dnsmasq ends with its network.
fn end(visited: &Visited) {
    let file = visited.file("none.yaml", "version: 1\n");
    // Without it nobody comes in by what is given back, and nobody has to confirm it.
    ip("route del default");
    let (code, said) = visited.run(&format!("apply {}", file.display()));
    assert_eq!(code, 0, "{said}");
}

#[test]
fn every_field_that_others_change_is_named() {
    alone("drift::every_field_that_others_change_is_named", || {
        let visited = applied();
        is_in_sync(&visited, "apply");
        for (done, text, undone) in CHANGES {
            by_hand(done);
            tells(&visited, done, text);
            by_hand(undone);
            is_in_sync(&visited, undone);
        }
        end(&visited);
    });
}

#[test]
fn rules_servers_and_links_that_are_gone_are_named_and_made_again() {
    alone("drift::rules_servers_and_links_that_are_gone_are_named_and_made_again", || {
        let visited = applied();
        let file = visited.file("box.yaml", FILE);
        let pid = |visited: &Visited| {
            std::fs::read_to_string(visited.state().join("nat/nat0/dnsmasq.pid")).unwrap()
        };
        let kill = format!("kill {}", pid(&visited).trim());
        for (done, text) in [
            ("nft flush ruleset", "nat0: the NAT network's rules"),
            (kill.as_str(), "nat0: the NAT network's dhcp"),
            ("ip link del up0", "up0: make macvtap bridge on c0"),
            ("ip link del nat0", "nat0: make bridge"),
        ] {
            by_hand(done);
            wait_for(text, Duration::from_secs(5), || visited.run("status").1.contains(text).then_some(()));
            tells(&visited, done, text);
            let (code, said) = visited.run(&format!("apply {}", file.display()));
            assert_eq!(code, 0, "after `{done}`: {said}");
            is_in_sync(&visited, "apply");
        }
        end(&visited);
        let (code, said) = visited.run("status");
        assert!(code == 0 && said.contains("The host is as change"), "{said}");
    });
}
