//! Links over a socket that waits: what it tells and makes is what the other way tells and makes.

use std::collections::BTreeMap;

use netconfig::blocking::with_network;
use netconfig::direct::{Direct, Look};
use netconfig::{LinkKind, LinkSettings, VlanMembership};

use crate::namespace::{alone, ip};
use crate::witness::{bridge, kernel_has_bonds, kernel_has_vlans, realize, settings, try_realize};

fn look() -> Look {
    Direct::open().unwrap().look().unwrap().unwrap()
}

/// Without what a list of links alone does not tell.
fn skimmed(links: BTreeMap<String, LinkSettings>) -> BTreeMap<String, LinkSettings> {
    let without = |link| LinkSettings {
        addresses: Default::default(),
        gateways: Default::default(),
        vlans: Default::default(),
        forwarded: Default::default(),
        ..link
    };
    links.into_iter().map(|(name, link)| (name, without(link))).collect()
}

/// A tap on `br0`.
fn port() -> LinkSettings {
    LinkSettings {
        kind: LinkKind::Tap { multi_queue: false, vnet_hdr: true },
        controller: Some("br0".to_owned()),
        mac_address: None,
        ..bridge()
    }
}

#[test]
fn a_look_tells_what_the_lists_tell() {
    alone("direct::a_look_tells_what_the_lists_tell", || {
        for cable in 0..60 {
            ip(&format!("link add tw{cable}a mtu 1400 type veth peer name tw{cable}b"));
        }
        ip("link add br0 type bridge stp_state 1 ageing_time 7700");
        ip("link set tw0a master br0 up");
        ip("address add 10.0.0.5/24 dev br0");
        ip("link add link tw2a name mv type macvtap mode private");
        ip("tuntap add dev t0 mode tap vnet_hdr multi_queue");
        if kernel_has_vlans() {
            ip("link add link tw1a name tw1a.7 type vlan id 7");
        }
        if kernel_has_bonds() {
            ip("link add bond1 type bond mode active-backup miimon 100");
        }
        let Look { settings: seen, links, has_vfs } = look();
        assert_eq!(seen, skimmed(settings()));
        assert!(seen.len() > 120 && !has_vfs);
        let mut told = with_network(async |network| network.links().await).unwrap();
        told.sort_by_key(|link| link.index);
        let mut links = links;
        links.sort_by_key(|link| link.index);
        assert_eq!(links, told);
    });
}

#[test]
fn a_port_is_made_as_the_other_way_makes_it() {
    alone("direct::a_port_is_made_as_the_other_way_makes_it", || {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        for multi_queue in [false, true] {
            let kind = LinkKind::Tap { multi_queue, vnet_hdr: true };
            for wanted in [
                LinkSettings { kind: kind.clone(), ..port() },
                LinkSettings { kind: kind.clone(), mtu: 1400, up: false, ..port() },
            ] {
                let mut direct = Direct::open().unwrap();
                assert!(direct.is_free("t0").unwrap());
                let queue = direct.make_port("t0", &wanted).unwrap().unwrap();
                assert!(!direct.is_free("t0").unwrap());
                let made = settings().remove("t0").unwrap();
                assert_eq!(LinkSettings { mac_address: None, ..made.clone() }, wanted);
                // It stays without its queue, and there is nothing more to do to it.
                drop(queue);
                realize("t0", Some(&wanted));
                assert_eq!(settings()["t0"], made);
                realize("t0", None);
                realize("t0", Some(&wanted));
                let other = settings().remove("t0").unwrap();
                assert_eq!(LinkSettings { mac_address: None, ..other }, wanted);
                realize("t0", None);
            }
        }
    });
}

#[test]
fn what_it_is_not_made_for_is_left_to_the_other_way() {
    alone("direct::what_it_is_not_made_for_is_left_to_the_other_way", || {
        let mut direct = Direct::open().unwrap();
        assert!(direct.make_port("t0", &port()).unwrap().is_none(), "there is no bridge");
        realize("br0", Some(&bridge()));
        let member = [(7, VlanMembership { pvid: true, untagged: true })].into();
        let more = [
            LinkSettings { vlans: member, ..port() },
            LinkSettings { addresses: ["10.0.0.5/24".parse().unwrap()].into(), ..port() },
            LinkSettings { mac_address: "02:00:00:00:00:05".parse().ok(), ..port() },
            LinkSettings { controller: None, ..port() },
            bridge(),
        ];
        for wanted in &more {
            assert!(direct.make_port("t0", wanted).unwrap().is_none());
            assert!(direct.is_free("t0").unwrap(), "nothing is made");
        }
        let percent = direct.make_port("t%d", &port()).unwrap();
        assert!(percent.is_none() && settings().len() == 2, "{:?}", settings());
        // The kernel takes no such size: then the tap is there, and the other way says why.
        let large = LinkSettings { mtu: 1 << 20, ..port() };
        assert!(direct.make_port("t0", &large).unwrap().is_none());
        let refused = try_realize("t0", Some(&large)).unwrap_err().to_string();
        assert!(refused.contains("t0: setting its MTU to 1048576"), "{refused}");
        assert!(
            direct.is_free(&"long".repeat(8)).is_ok_and(|is_free| !is_free),
            "no link can have that name"
        );
    });
}
