//! What others made is read as ip(8) and bridge(8) say it.

use std::collections::{BTreeMap, BTreeSet};

use netconfig::{LinkKind, LinkSettings, MacvtapMode};
use serde_json::Value;

use crate::namespace::{alone, ip};
use crate::witness::{
    bridge_tool, cable, kernel_filters_vlans, kernel_has_bonds, kernel_has_vlans, mac, settings,
};

fn json(text: &str) -> Vec<Value> {
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(text).unwrap() }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A link in words that ip(8) has too: up, MTU, controller, addresses, gateways.
type Words = (bool, u64, Option<String>, BTreeSet<String>, BTreeSet<String>);

/// What `ip` says of every link.
fn by_ip() -> BTreeMap<String, Words> {
    let mut links = BTreeMap::new();
    for link in json(&ip("-json -details address show")) {
        let up = link["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
        let wide = |address: &&Value| matches!(address["scope"].as_str(), Some("global" | "site"));
        let addresses = link["addr_info"].as_array().unwrap().iter().filter(wide);
        let addresses = addresses.map(|found| format!("{}/{}", text(&found["local"]), found["prefixlen"]));
        let found = (
            up,
            link["mtu"].as_u64().unwrap(),
            link["master"].as_str().map(str::to_owned),
            addresses.collect(),
            BTreeSet::new(),
        );
        links.insert(text(&link["ifname"]), found);
    }
    for routes in ["-json route show default", "-6 -json route show default"] {
        for route in json(&ip(routes)) {
            links.get_mut(route["dev"].as_str().unwrap()).unwrap().4.insert(text(&route["gateway"]));
        }
    }
    links
}

fn in_their_words(settings: &LinkSettings) -> Words {
    (
        settings.up,
        settings.mtu.into(),
        settings.controller.clone(),
        settings.addresses.iter().map(ToString::to_string).collect(),
        settings.gateways.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn every_link_is_as_ip_says() {
    alone("adopted::every_link_is_as_ip_says", || {
        cable();
        for line in [
            "link set lo up",
            "link add br0 type bridge stp_state 1 ageing_time 1200 forward_delay 400",
            "link set tw0 master br0 up mtu 1300",
            "link set br0 up",
            "address add 10.0.0.5/24 brd + dev br0 label br0:one",
            "address add 10.0.0.6/24 dev br0",
            "address add 10.8.0.1 peer 10.8.0.2/32 dev br0",
            "address add fd00::5/64 dev br0 nodad",
            "address add 192.168.1.5/24 dev tw1 valid_lft 600 preferred_lft 300",
            "address add 169.254.7.7/16 dev tw1 scope link",
            "route add default via 10.0.0.1 dev br0 metric 50",
            "route add default via 10.0.0.2 dev br0 metric 60",
            "route add default via 192.168.1.1 dev tw1 metric 700 proto dhcp",
            "-6 route add default via fd00::1 dev br0 metric 5",
            "route add 10.20.0.0/16 via 10.0.0.9 dev br0",
            "route add default via 10.0.0.7 dev br0 table 77",
            "route add blackhole 10.66.0.0/16",
            "link add tw2 type veth peer name tw3",
            "link add link tw2 name mv0 type macvtap mode vepa",
            "link add link tw2 name mv1 type macvlan mode bridge",
            "tuntap add dev tap0 mode tap vnet_hdr multi_queue",
            "tuntap add dev tun0 mode tun",
            "link set tap0 master br0",
        ] {
            ip(line);
        }
        bridge_tool("fdb add 02:00:00:00:00:55 dev tw2 self");
        bridge_tool("fdb add 02:00:00:00:00:56 dev tw0 master static");
        let now = settings();
        let theirs = by_ip();
        let ours: BTreeMap<_, _> =
            now.iter().map(|(name, link)| (name.clone(), in_their_words(link))).collect();
        assert_eq!(ours, theirs);
        let kind = |name: &str| now[name].kind.clone();
        for (name, foreign) in [("lo", ""), ("tw0", "veth"), ("mv1", "macvlan"), ("tun0", "tun")] {
            assert_eq!(kind(name), LinkKind::Foreign(foreign.to_owned()));
        }
        assert_eq!(kind("mv0"), LinkKind::Macvtap { base: "tw2".to_owned(), mode: MacvtapMode::Vepa });
        assert_eq!(kind("tap0"), LinkKind::Tap { multi_queue: true, vnet_hdr: true });
        assert!(matches!(kind("br0"), LinkKind::Bridge(bridge) if bridge.stp && bridge.ageing_time == 12));
        assert_eq!(now["tw2"].forwarded, [mac("02:00:00:00:00:55")].into(), "not those of links above it");
        assert!(now.iter().all(|(name, link)| name == "tw2" || link.forwarded.is_empty()));
        assert_eq!(now["lo"].mac_address, None);
        assert_eq!(now["tun0"].mac_address, None);
    });
}

#[test]
fn vlans_bonds_and_memberships_are_as_ip_and_bridge_say() {
    alone("adopted::vlans_bonds_and_memberships_are_as_ip_and_bridge_say", || {
        if !(kernel_has_vlans() && kernel_has_bonds() && kernel_filters_vlans()) {
            return;
        }
        cable();
        for line in [
            "link add bond0 type bond mode balance-xor miimon 75",
            "link set tw0 master bond0",
            "link set bond0 up",
            "link add link bond0 name bond0.7 type vlan id 7 protocol 802.1ad",
            "link add br0 type bridge vlan_filtering 1 vlan_default_pvid 9",
            "link set bond0.7 master br0",
            "link set br0 up",
            "link set bond0.7 up",
        ] {
            ip(line);
        }
        for line in [
            "vlan add dev bond0.7 vid 100-120",
            "vlan add dev bond0.7 vid 130 pvid",
            "vlan add dev bond0.7 vid 140 untagged",
            "vlan add dev br0 vid 100 self",
        ] {
            bridge_tool(line);
        }
        let now = settings();
        let theirs = by_ip();
        let ours: BTreeMap<_, _> =
            now.iter().map(|(name, link)| (name.clone(), in_their_words(link))).collect();
        assert_eq!(ours, theirs);
        for port in json(&bridge_tool("-json vlan show")) {
            let flag = |vlan: &Value, name: &str| {
                vlan["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == name))
            };
            let theirs: BTreeMap<u64, (bool, bool)> = port["vlans"]
                .as_array()
                .unwrap()
                .iter()
                .map(|vlan| {
                    let membership = (flag(vlan, "PVID"), flag(vlan, "Egress Untagged"));
                    (vlan["vlan"].as_u64().unwrap(), membership)
                })
                .collect();
            let ours = now[port["ifname"].as_str().unwrap()].vlans.iter();
            let ours: BTreeMap<u64, (bool, bool)> =
                ours.map(|(vid, own)| (u64::from(*vid), (own.pvid, own.untagged))).collect();
            assert_eq!(ours, theirs, "{port}");
        }
        assert_eq!(now["bond0.7"].vlans.len(), 24);
        assert!(now["tw0"].forwarded.is_empty() && now["bond0"].forwarded.is_empty());
        assert_eq!(netconfig::differences("bond0.7", now.get("bond0.7"), &now), []);
        let LinkKind::Bond(bond) = &now["bond0"].kind else { panic!("{:?}", now["bond0"]) };
        assert_eq!((bond.mode, bond.miimon), (netconfig::BondMode::BalanceXor, 75));
        let vlan =
            LinkKind::Vlan { base: "bond0".to_owned(), id: 7, protocol: netconfig::VlanProtocol::Ieee8021Ad };
        assert_eq!(now["bond0.7"].kind, vlan);
    });
}
