use super::*;

fn sections(text: &str) -> BTreeMap<String, NetworkSection> {
    serde_json::from_str(text).unwrap()
}

/// A card's interface.
fn card(addresses: &[&str]) -> LinkSettings {
    LinkSettings {
        kind: LinkKind::Foreign("physical".to_owned()),
        up: false,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ..fresh(LinkKind::Foreign(String::new()))
    }
}

fn host(names: &[&str]) -> BTreeMap<String, LinkSettings> {
    names.iter().map(|name| ((*name).to_owned(), card(&[]))).collect()
}

#[test]
fn a_port_moves_into_its_bridge_and_leaves_its_addresses() {
    let sections = sections(
        r#"{"br0": {"type": "bridge", "vlan-filtering": true, "mtu": 9000, "addresses": ["10.0.0.5/24"], "gateway": "10.0.0.1",
            "ports": {"eno1": {"vlan": {"mode": "trunk", "trunk-tags": [100, "200-202"], "enable-native": true, "tag": 1}}}}}"#,
    );
    let current = BTreeMap::from([("eno1".to_owned(), card(&["10.0.0.5/24"]))]);
    let wanted = merge(&sections, &current).unwrap();
    let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["br0", "eno1"]);
    let port = &wanted[1].1;
    assert_eq!((port.controller.as_deref(), port.up, port.mtu), (Some("br0"), true, 9000));
    assert!(port.addresses.is_empty());
    assert_eq!(port.vlans.keys().copied().collect::<Vec<_>>(), [1, 100, 200, 201, 202]);
    assert_eq!(port.vlans[&1], VlanMembership { pvid: true, untagged: true });
    assert_eq!(port.vlans[&100], VlanMembership::default());
}

#[test]
fn what_stands_on_another_comes_after_it() {
    let sections = sections(
        r#"{"a": {"type": "vlan", "base-iface": "z", "id": 7},
            "m": {"type": "bridge", "ports": {"a": {}}},
            "z": {"type": "bond", "mode": "active-backup", "ports": {"eno1": {}, "eno2": {}}}}"#,
    );
    let wanted = merge(&sections, &host(&["eno1", "eno2"])).unwrap();
    let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["z", "m", "a", "eno1", "eno2"]);
}

#[test]
fn what_is_not_named_stays() {
    let there = LinkSettings {
        addresses: BTreeSet::from(["10.1.1.1/8".parse().unwrap()]),
        mtu: 4000,
        ..fresh(LinkKind::Bridge(Bridge { stp: true, ageing_time: 10, vlan_filtering: false }))
    };
    let current = BTreeMap::from([("br0".to_owned(), there.clone())]);
    let sections = sections(r#"{"br0": {"type": "bridge", "ageing-time": 20}}"#);
    let wanted = merge(&sections, &current).unwrap();
    let kind = LinkKind::Bridge(Bridge { stp: true, ageing_time: 20, vlan_filtering: false });
    assert_eq!(wanted, [("br0".to_owned(), LinkSettings { kind, ..there })]);
}

/// Each mistake has its own words and its own place; all of them come at once.
#[test]
fn mistakes_are_named_all_at_once() {
    let sections = sections(
        r#"{"a-name-that-is-too-long": {"type": "bridge"},
            "b": {"type": "bridge", "ports": {"eno1": {"vlan": {"mode": "access", "tag": 4095}}, "gone": {}}, "id": 3},
            "c": {"type": "bridge", "ports": {"eno1": {}}, "vlan-filtering": true, "addresses": ["10.0.0.1/24"]},
            "d": {"type": "vlan", "base-iface": "eno2", "id": 4095, "addresses": ["10.0.0.1/16"]},
            "e": {"type": "vlan", "base-iface": "f", "id": 1},
            "eno2": {"type": "bridge"},
            "f": {"type": "vlan", "base-iface": "e", "id": 1},
            "g": {"type": "macvtap", "base-iface": "eno2", "mode": "802.3ad"},
            "h": {"type": "vlan", "base-iface": "eno2", "id": 9, "mtu": 9000, "gateway": "10.9.0.1"}}"#,
    );
    let problems = merge(&sections, &host(&["eno1", "eno2"])).unwrap_err();
    let found: Vec<String> =
        problems.iter().map(|problem| format!("{}: {}", problem.path.join("."), problem.message)).collect();
    for wanted in [
        "a-name-that-is-too-long: `a-name-that-is-too-long` cannot be a link's name",
        "b.id: `id` means nothing for a bridge: it is of vlan",
        "b.ports.eno1.vlan: This bridge does not look at VLANs",
        "b.ports.gone: There is no interface `gone`",
        "c.ports.eno1: `eno1` is a port of `b` already",
        "d.id: A VLAN is 1 to 4094",
        "d.addresses.#0: 10.0.0.1 is an address of `c` already",
        "e: This network stands on itself: e -> f -> e",
        "eno2: A link of this name is there already, and it is no bridge: physical",
        "g.mode: This is a mode of bonds, not of macvtaps",
        "h.gateway: 10.9.0.1 is not reached from any address of `h`",
        "h.mtu: 9000 bytes do not fit through `eno2`, whose MTU is 1500",
    ] {
        assert!(found.iter().any(|line| line.starts_with(wanted)), "{wanted}\n{found:#?}");
    }
    assert_eq!(found.len(), 12, "{found:#?}");
}
