//! Links made, changed, removed and put back.

use netconfig::{Bridge, LinkKind, LinkSettings, MacvtapMode};

use crate::namespace::{alone, ip, seen};
use crate::witness::{
    addresses, bridge, bridge_tool, cable, link, mac, realize, settings, settings_of, there_and_back,
    try_realize,
};

#[test]
fn a_bridge_is_made_changed_in_every_field_and_removed() {
    alone("links::a_bridge_is_made_changed_in_every_field_and_removed", || {
        let plain = bridge();
        let slow = LinkKind::Bridge(Bridge { stp: true, ageing_time: 77, vlan_filtering: false });
        let reached = LinkSettings {
            addresses: addresses(&["10.0.0.5/24", "fd00::5/64"]),
            gateways: ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
            ..plain.clone()
        };
        there_and_back(
            "br0",
            &[
                plain.clone(),
                LinkSettings { kind: slow, ..plain.clone() },
                LinkSettings { up: false, ..plain.clone() },
                LinkSettings { mtu: 9000, ..plain.clone() },
                LinkSettings { mac_address: Some(mac("02:00:00:00:00:b1")), ..plain.clone() },
                reached.clone(),
                LinkSettings { addresses: addresses(&["10.0.0.6/24", "fd00::6/64"]), ..reached.clone() },
                plain,
            ],
        );
        realize("br0", Some(&reached));
        let seen = seen("br0");
        assert_eq!((&seen["linkinfo"]["info_kind"], &seen["mtu"]), (&"bridge".into(), &1500.into()));
        assert_eq!(seen["linkinfo"]["info_data"]["ageing_time"], 30000);
        assert!(ip("route show default").contains("default via 10.0.0.1 dev br0"));
        assert!(ip("-6 route show default").contains("default via fd00::1 dev br0"));
        assert!(ip("address show dev br0").contains("inet 10.0.0.5/24 brd 10.0.0.255 scope global br0"));
    });
}

#[test]
fn a_card_is_adopted_made_a_port_and_given_back() {
    alone("links::a_card_is_adopted_made_a_port_and_given_back", || {
        cable();
        ip("link set tw0 up");
        ip("address add 10.0.0.5/24 brd + dev tw0");
        ip("address add 10.0.0.6/24 dev tw0");
        ip("address add fd00::5/64 dev tw0");
        ip("route add default via 10.0.0.1 dev tw0 metric 100");
        ip("route add 192.168.7.0/24 via 10.0.0.2 dev tw0");
        realize("br0", Some(&bridge()));
        let before = settings();
        let card = before["tw0"].clone();
        assert_eq!(card.kind, LinkKind::Foreign("veth".to_owned()));
        assert_eq!(card.addresses, addresses(&["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"]));
        assert_eq!(card.gateways, ["10.0.0.1".parse().unwrap()].into());
        let port = LinkSettings {
            controller: Some("br0".to_owned()),
            mtu: 1400,
            mac_address: Some(mac("02:00:00:00:00:77")),
            addresses: addresses(&[]),
            gateways: [].into(),
            forwarded: [mac("02:00:00:00:00:88"), mac("02:00:00:00:00:89")].into(),
            ..card
        };
        there_and_back("tw0", std::slice::from_ref(&port));
        realize("tw0", Some(&port));
        let told = bridge_tool("fdb show dev tw0 self");
        assert!(told.contains("02:00:00:00:00:88") && told.contains("02:00:00:00:00:89"), "{told}");
        assert_eq!(seen("tw0")["master"], "br0");
        realize("tw0", before.get("tw0"));
        assert!(ip("route show").contains("default via 10.0.0.1 dev tw0"));
    });
}

#[test]
fn what_goes_down_comes_back_with_its_addresses_and_routes() {
    alone("links::what_goes_down_comes_back_with_its_addresses_and_routes", || {
        cable();
        ip("link set tw0 up");
        ip("address add 10.0.0.5/24 dev tw0");
        ip("address add fd00::5/64 dev tw0");
        ip("route add default via 10.0.0.1 dev tw0 metric 100");
        ip("-6 route add default via fd00::1 dev tw0 metric 50");
        let before = settings();
        let down = LinkSettings { up: false, gateways: [].into(), ..before["tw0"].clone() };
        there_and_back("tw0", &[down]);
    });
}

#[test]
fn the_first_address_of_a_network_goes_and_the_others_stay() {
    alone("links::the_first_address_of_a_network_goes_and_the_others_stay", || {
        cable();
        let four = ["10.0.0.5/24", "10.0.0.6/24", "10.0.0.7/24", "10.0.0.8/25"];
        let of = |list: &[&str]| {
            let gateways = [("10.0.0.1").parse().unwrap()].into();
            LinkSettings { up: true, addresses: addresses(list), gateways, ..settings_of("tw0") }
        };
        there_and_back("tw0", &[of(&four), of(&four[1..]), of(&four[2..]), of(&four[3..]), of(&four)]);
    });
}

#[test]
fn a_macvtap_has_each_of_its_modes() {
    alone("links::a_macvtap_has_each_of_its_modes", || {
        cable();
        let of = |mode| link(LinkKind::Macvtap { base: "tw0".to_owned(), mode });
        let modes = [MacvtapMode::Bridge, MacvtapMode::Vepa, MacvtapMode::Private];
        ip("link set tw0 up");
        there_and_back("mv0", &modes.map(of));
        realize("mv0", Some(&of(MacvtapMode::Bridge)));
        assert_eq!(seen("mv0")["linkinfo"]["info_data"]["mode"], "bridge");
        let index = seen("mv0")["ifindex"].clone();
        realize("mv0", Some(&of(MacvtapMode::Private)));
        assert_eq!(seen("mv0")["ifindex"], index, "it is the same link");
        realize("mv0", None);
        // This mode is chosen once and for all, and takes the address over to the card.
        let before = settings();
        let passthru = of(MacvtapMode::Passthru);
        realize("mv0", Some(&passthru));
        assert_eq!(seen("mv0")["linkinfo"]["info_data"]["mode"], "passthru");
        realize("mv0", Some(&LinkSettings { mac_address: None, ..of(MacvtapMode::Bridge) }));
        realize("mv0", None);
        realize("tw0", before.get("tw0"));
        assert_eq!(settings(), before);
    });
}

#[test]
fn a_tap_stays_and_has_its_flags() {
    alone("links::a_tap_stays_and_has_its_flags", || {
        realize("br0", Some(&bridge()));
        let of = |multi_queue, vnet_hdr| LinkSettings {
            controller: Some("br0".to_owned()),
            ..link(LinkKind::Tap { multi_queue, vnet_hdr })
        };
        there_and_back("tap0", &[of(false, false), of(true, false), of(true, true), of(false, true)]);
        realize("tap0", Some(&of(true, true)));
        let data = seen("tap0")["linkinfo"]["info_data"].clone();
        assert_eq!(
            (&data["type"], &data["multi_queue"], &data["vnet_hdr"], &data["persist"], &data["pi"]),
            (&"tap".into(), &true.into(), &true.into(), &true.into(), &false.into())
        );
    });
}

#[test]
fn a_link_of_another_kind_is_replaced_but_never_one_that_is_not_ours() {
    alone("links::a_link_of_another_kind_is_replaced_but_never_one_that_is_not_ours", || {
        cable();
        realize("x0", Some(&bridge()));
        realize("x0", Some(&link(LinkKind::Tap { multi_queue: false, vnet_hdr: true })));
        let before = settings();
        for wanted in [None, Some(&bridge())] {
            let error = try_realize("tw0", wanted).unwrap_err().to_string();
            let want = "tw0: removing it is not done: it is of kind veth, which Throughway neither makes nor removes";
            assert_eq!(error, want);
        }
        let foreign = link(LinkKind::Foreign(String::new()));
        for name in ["x0", "nowhere"] {
            let error = try_realize(name, Some(&foreign)).unwrap_err().to_string();
            assert_eq!(error, format!("{name}: there is no such network interface"));
        }
        assert_eq!(settings(), before);
    });
}

#[test]
fn refusals_name_the_link_and_the_deed_and_undo_works_after_them() {
    alone("links::refusals_name_the_link_and_the_deed_and_undo_works_after_them", || {
        cable();
        ip("link set tw0 up");
        realize("br0", Some(&bridge()));
        let before = settings();
        let cases = [
            (
                LinkSettings {
                    controller: Some("br1".to_owned()),
                    addresses: addresses(&["10.0.0.5/24"]),
                    ..before["tw0"].clone()
                },
                "br1: there is no such network interface",
            ),
            (
                LinkSettings { mtu: 1_000_000, controller: Some("br0".to_owned()), ..before["tw0"].clone() },
                "tw0: setting its MTU to 1000000: Invalid argument (os error 22): mtu greater than device maximum",
            ),
            (
                LinkSettings { controller: Some("tw1".to_owned()), ..before["tw0"].clone() },
                "tw0: making it a port of tw1: Operation not supported (os error 95)",
            ),
            (
                LinkSettings {
                    controller: Some("br0".to_owned()),
                    addresses: addresses(&["0.0.0.0/0"]),
                    mtu: 1400,
                    ..before["tw0"].clone()
                },
                "",
            ),
        ];
        for (wanted, want) in cases {
            let result = try_realize("tw0", Some(&wanted));
            if !want.is_empty() {
                assert_eq!(result.unwrap_err().to_string(), want);
            }
            realize("tw0", before.get("tw0"));
            assert_eq!(settings(), before);
        }
        for name in ["br%d", "sixteen-letters!", "a/b", ""] {
            let error = try_realize(name, Some(&bridge())).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: making it a bridge")), "{error}");
            assert_eq!(settings(), before);
        }
    });
}
