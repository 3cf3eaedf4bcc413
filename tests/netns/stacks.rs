//! VLANs, bonds, and links on links. Some kernels lack these kinds; the lab's box has them all.

use netconfig::{Bond, BondMode, Bridge, LinkKind, LinkSettings, VlanMembership, VlanProtocol};

use crate::namespace::{alone, ip, seen};
use crate::witness::{
    addresses, bridge, bridge_tool, cable, kernel_filters_vlans, kernel_has_bonds, kernel_has_vlans, link,
    mac, realize, settings, settings_of, there_and_back, try_realize,
};

const PVID: VlanMembership = VlanMembership { pvid: true, untagged: true };
const TAGGED: VlanMembership = VlanMembership { pvid: false, untagged: false };

fn vlan(base: &str, id: u16, protocol: VlanProtocol) -> LinkSettings {
    link(LinkKind::Vlan { base: base.to_owned(), id, protocol })
}

fn bond(mode: BondMode) -> LinkSettings {
    link(LinkKind::Bond(Bond { mode, miimon: 100 }))
}

fn filtering() -> LinkSettings {
    let kind = LinkKind::Bridge(Bridge { stp: false, ageing_time: 300, vlan_filtering: true });
    LinkSettings { vlans: [(1, PVID)].into(), ..link(kind) }
}

#[test]
fn a_vlan_is_made_changed_and_removed() {
    alone("stacks::a_vlan_is_made_changed_and_removed", || {
        if !kernel_has_vlans() {
            return;
        }
        cable();
        ip("link set tw0 up");
        let plain = vlan("tw0", 100, VlanProtocol::Ieee8021Q);
        let reached = LinkSettings {
            addresses: addresses(&["10.0.100.5/24", "fd00:100::5/64"]),
            gateways: ["10.0.100.1".parse().unwrap()].into(),
            ..plain.clone()
        };
        there_and_back(
            "x.100",
            &[
                plain.clone(),
                reached.clone(),
                LinkSettings { mtu: 1400, ..reached.clone() },
                vlan("tw0", 101, VlanProtocol::Ieee8021Q),
                vlan("tw0", 101, VlanProtocol::Ieee8021Ad),
                vlan("tw1", 101, VlanProtocol::Ieee8021Ad),
                LinkSettings { up: false, ..plain.clone() },
            ],
        );
        realize("x.100", Some(&plain));
        let data = seen("x.100")["linkinfo"]["info_data"].clone();
        assert_eq!((&data["id"], &data["protocol"]), (&100.into(), &"802.1Q".into()));
        assert_eq!(seen("x.100")["link"], "tw0");
        let error = try_realize("y.100", Some(&plain)).unwrap_err().to_string();
        assert!(error.starts_with("y.100: making it a VLAN 100 (802.1q) on tw0: "), "{error}");
        let error = try_realize("y.1", Some(&vlan("nowhere", 1, VlanProtocol::Ieee8021Q))).unwrap_err();
        assert_eq!(error.to_string(), "nowhere: there is no such network interface");
        for wrong in [4095, 4096, u16::MAX] {
            let error = try_realize("y.1", Some(&vlan("tw0", wrong, VlanProtocol::Ieee8021Q)));
            assert!(error.unwrap_err().to_string().starts_with("y.1: making it a VLAN"));
        }
    });
}

#[test]
fn a_bond_has_each_of_its_modes_with_its_ports_in_it() {
    alone("stacks::a_bond_has_each_of_its_modes_with_its_ports_in_it", || {
        if !kernel_has_bonds() {
            return;
        }
        cable();
        ip("link set tw0 up");
        ip("address add 10.0.0.5/24 dev tw0");
        ip("link add tw2 address 02:00:00:00:00:02 type veth peer name tw3");
        let before = settings();
        let modes = [
            BondMode::BalanceRr,
            BondMode::ActiveBackup,
            BondMode::BalanceXor,
            BondMode::Broadcast,
            BondMode::Lacp,
            BondMode::BalanceTlb,
            BondMode::BalanceAlb,
        ];
        there_and_back("bond0", &modes.map(bond));
        realize("bond0", Some(&bond(BondMode::ActiveBackup)));
        let port = |name: &str| LinkSettings {
            controller: Some("bond0".to_owned()),
            up: true,
            addresses: addresses(&[]),
            ..before[name].clone()
        };
        realize("tw0", Some(&port("tw0")));
        realize("tw2", Some(&port("tw2")));
        assert_eq!(seen("tw0")["address"], "02:00:00:00:00:b0", "ports have the bond's address");
        for mode in modes {
            let reached = LinkSettings { addresses: addresses(&["10.0.0.9/24"]), ..bond(mode) };
            realize("bond0", Some(&reached));
            let ports = [settings_of("tw0"), settings_of("tw2")].map(|port| port.controller);
            assert_eq!(ports, [Some("bond0".to_owned()), Some("bond0".to_owned())], "{mode:?}");
        }
        let slower = LinkSettings {
            kind: LinkKind::Bond(Bond { mode: BondMode::BalanceAlb, miimon: 250 }),
            mtu: 1400,
            ..bond(BondMode::BalanceAlb)
        };
        realize("bond0", Some(&slower));
        let data = seen("bond0")["linkinfo"]["info_data"].clone();
        assert_eq!((&data["mode"], &data["miimon"]), (&"balance-alb".into(), &250.into()));
        for name in ["tw0", "tw2", "bond0"] {
            realize(name, before.get(name));
        }
        assert_eq!(settings(), before);
    });
}

#[test]
fn vlans_of_a_bridge_and_its_ports_are_set_and_put_back() {
    alone("stacks::vlans_of_a_bridge_and_its_ports_are_set_and_put_back", || {
        if !kernel_filters_vlans() {
            return;
        }
        cable();
        realize("br0", Some(&bridge()));
        realize("tw0", Some(&LinkSettings { controller: Some("br0".to_owned()), ..settings_of("tw0") }));
        assert_eq!(settings_of("tw0").vlans, [].into(), "a bridge that does not filter has no VLANs");
        let own = |vlans: &[(u16, VlanMembership)]| LinkSettings {
            vlans: vlans.iter().copied().collect(),
            ..filtering()
        };
        let range = |from: u16, to: u16| (from..=to).map(|vid| (vid, TAGGED));
        there_and_back(
            "br0",
            &[
                own(&[(1, PVID)]),
                own(&[]),
                own(&[(1, PVID), (100, TAGGED), (101, TAGGED), (4094, TAGGED)]),
                own(&[(5, VlanMembership { pvid: false, untagged: true }), (100, PVID)]),
            ],
        );
        realize("br0", Some(&filtering()));
        let now = settings_of("tw0");
        assert_eq!(now.vlans, [(1, PVID)].into(), "the kernel's default");
        let of = |vlans: Vec<(u16, VlanMembership)>| LinkSettings {
            vlans: vlans.into_iter().collect(),
            ..now.clone()
        };
        there_and_back(
            "tw0",
            &[
                of(vec![(100, PVID)]),
                of(range(1, 4094).collect()),
                of(range(2, 50).chain([(1, PVID)]).chain(range(60, 70)).collect()),
                of(range(2, 50).chain([(51, PVID)]).collect()),
                of(range(2, 60).chain([(61, VlanMembership { pvid: true, untagged: false })]).collect()),
                of(vec![]),
            ],
        );
        realize("tw0", Some(&of([(10, PVID)].into_iter().chain(range(200, 210)).collect())));
        let said = bridge_tool("-compressvlans vlan show dev tw0");
        assert!(said.contains("10 PVID Egress Untagged") && said.contains("200-210"), "{said}");
        // Undone in reverse: the port is in no VLAN, the bridge filters no more, and who has it filter again is not cut off.
        realize("tw0", Some(&of(vec![])));
        realize("br0", Some(&bridge()));
        ip("link set br0 type bridge vlan_filtering 1");
        assert_eq!(settings_of("tw0").vlans, [(1, PVID)].into());
    });
}

#[test]
fn a_port_that_joins_a_filtering_bridge_has_its_vlans_at_once() {
    alone("stacks::a_port_that_joins_a_filtering_bridge_has_its_vlans_at_once", || {
        if !kernel_filters_vlans() {
            return;
        }
        cable();
        realize("br0", Some(&filtering()));
        let port = LinkSettings {
            controller: Some("br0".to_owned()),
            vlans: [(100, PVID), (200, TAGGED)].into(),
            ..settings_of("tw0")
        };
        there_and_back("tw0", &[port]);
        let tap = LinkSettings {
            controller: Some("br0".to_owned()),
            vlans: [(100, PVID)].into(),
            ..link(LinkKind::Tap { multi_queue: false, vnet_hdr: true })
        };
        there_and_back("tap0", &[tap]);
    });
}

#[test]
fn a_bridge_on_a_vlan_on_a_bond_on_two_cards_is_made_and_unmade() {
    alone("stacks::a_bridge_on_a_vlan_on_a_bond_on_two_cards_is_made_and_unmade", || {
        if !(kernel_has_vlans() && kernel_has_bonds()) {
            return;
        }
        cable();
        ip("link set tw0 up");
        ip("address add 10.0.0.5/24 dev tw0");
        ip("route add default via 10.0.0.1 dev tw0 metric 7");
        ip("link add tw2 address 02:00:00:00:00:02 type veth peer name tw3");
        let before = settings();
        let card = |name: &str| LinkSettings {
            controller: Some("bond0".to_owned()),
            up: true,
            mtu: 1400,
            addresses: addresses(&[]),
            gateways: [].into(),
            ..before[name].clone()
        };
        let reached = LinkSettings {
            addresses: addresses(&["10.0.0.5/24"]),
            gateways: ["10.0.0.1".parse().unwrap()].into(),
            mac_address: Some(mac("02:00:00:00:00:01")),
            mtu: 1400,
            ..bridge()
        };
        let small = |link: LinkSettings| LinkSettings { mtu: 1400, ..link };
        let tagged = LinkSettings {
            controller: Some("br0".to_owned()),
            ..small(vlan("bond0", 100, VlanProtocol::Ieee8021Q))
        };
        let stack = [
            ("bond0", small(bond(BondMode::ActiveBackup))),
            ("tw0", card("tw0")),
            ("tw2", card("tw2")),
            ("br0", reached),
            ("bond0.100", tagged),
        ];
        // Stops after each step once, as a step that fails would, and undoes what was done.
        for done in 0..=stack.len() {
            let mut undo = Vec::new();
            for (name, wanted) in &stack[..done] {
                undo.push((*name, settings().remove(*name)));
                realize(name, Some(wanted));
            }
            for (name, was) in undo.iter().rev() {
                realize(name, was.as_ref());
            }
            assert_eq!(settings(), before, "after {done} steps");
        }
        assert!(ip("route show default").contains("default via 10.0.0.1 dev tw0"));
    });
}
