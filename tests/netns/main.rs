//! netconfig against the real kernel, in network namespaces that the tests make; ip(8) is the second witness. Needs root.

mod adopted;
mod dhcp;
mod direct;
mod links;
mod namespace;
mod nat;
mod random;
mod stacks;
mod watch;
mod witness;

use std::time::{Duration, Instant};

use namespace::{alone, ip, seen, unprivileged};
use netconfig::blocking::with_network;
use netconfig::{Error, Link, MacAddress, Network, VfAttributes, VfState};

const MAC: &str = "02:00:00:00:00:01";

/// Two ends of a cable, both down.
fn cable() {
    ip(&format!("link add tw0 address {MAC} mtu 1400 type veth peer name tw1"));
}

fn link(name: &str) -> Link {
    with_network(async |network| network.link(name).await).unwrap()
}

fn within_five_seconds(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within five seconds: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_link_is_as_the_kernel_has_it() {
    alone("a_link_is_as_the_kernel_has_it", || {
        cable();
        let found = link("tw0");
        assert_eq!(u64::from(found.index), seen("tw0")["ifindex"].as_u64().unwrap());
        assert_eq!((found.name.as_str(), found.mtu, found.up, found.running), ("tw0", 1400, false, false));
        assert_eq!(found.mac_address, Some(MAC.parse().unwrap()));
        assert_eq!(found.controller, None);
        ip("link add tw-bridge type bridge");
        ip("link set tw0 master tw-bridge");
        assert_eq!(link("tw0").controller, Some(link("tw-bridge").index));
    });
}

#[test]
fn all_links_are_listed_however_many_answers_it_takes() {
    alone("all_links_are_listed_however_many_answers_it_takes", || {
        for cable in 0..60 {
            ip(&format!("link add tw{cable}a type veth peer name tw{cable}b"));
        }
        let links = with_network(async |network| network.links().await).unwrap();
        let count = |end: char| links.iter().filter(|link| link.name.ends_with(end)).count();
        assert_eq!((count('a'), count('b')), (60, 60));
        assert!(links.iter().any(|link| link.name == "lo"));
    });
}

#[test]
fn a_link_goes_up_and_down_and_runs_with_its_other_end() {
    alone("a_link_goes_up_and_down_and_runs_with_its_other_end", || {
        let is_up = |name: &str| {
            seen(name)["flags"].as_array().unwrap().iter().any(|flag| flag.as_str() == Some("UP"))
        };
        let set_up = |name: &str, up| with_network(async |network| network.set_up(name, up).await).unwrap();
        cable();
        set_up("tw0", true);
        assert!(is_up("tw0") && link("tw0").up && !is_up("tw1"));
        assert!(!link("tw0").running, "its other end is down");
        set_up("tw0", true);
        set_up("tw1", true);
        within_five_seconds("tw0 runs", || link("tw0").running);
        set_up("tw0", false);
        assert!(!is_up("tw0") && !link("tw0").up && is_up("tw1"));
        assert_eq!(link("tw0").mtu, 1400, "nothing else changes");
    });
}

#[test]
fn a_mac_address_is_set_and_a_groups_is_refused() {
    alone("a_mac_address_is_set_and_a_groups_is_refused", || {
        let set = |mac: &str| {
            let mac: MacAddress = mac.parse().unwrap();
            with_network(async |network| network.set_mac("tw0", mac).await)
        };
        cable();
        set("02:00:00:00:00:99").unwrap();
        assert_eq!(seen("tw0")["address"], "02:00:00:00:00:99");
        let error = set("01:00:5e:00:00:01").unwrap_err().to_string();
        assert_eq!(
            error,
            "tw0: setting its MAC address to 01:00:5e:00:00:01: Cannot assign requested address (os error 99)"
        );
        assert_eq!(link("tw0").mac_address, Some("02:00:00:00:00:99".parse().unwrap()));
    });
}

#[test]
fn a_refusal_carries_the_kernels_own_words() {
    alone("a_refusal_carries_the_kernels_own_words", || {
        let set = |mtu| with_network(async |network| network.set_mtu("tw0", mtu).await);
        cable();
        set(9000).unwrap();
        assert_eq!(seen("tw0")["mtu"], 9000);
        let error = set(1_000_000).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }));
        assert_eq!(
            error.to_string(),
            "tw0: setting its MTU to 1000000: Invalid argument (os error 22): mtu greater than device maximum"
        );
        assert_eq!(link("tw0").mtu, 9000);
    });
}

/// Everything there is to do with a link, as one error each.
async fn all_errors(network: &Network, name: &str) -> Vec<Error> {
    let mac = MAC.parse().unwrap();
    vec![
        network.link(name).await.unwrap_err(),
        network.set_up(name, true).await.unwrap_err(),
        network.set_mac(name, mac).await.unwrap_err(),
        network.set_mtu(name, 1500).await.unwrap_err(),
        network.vfs(name).await.unwrap_err(),
        network.vf(name, 0).await.unwrap_err(),
        network.set_vf(name, 0, &VfAttributes::default()).await.unwrap_err(),
        network.restore_vf(name, &VfState::default()).await.unwrap_err(),
    ]
}

#[test]
fn a_link_that_is_not_there_is_said_so() {
    alone("a_link_that_is_not_there_is_said_so", || {
        let too_long = "a".repeat(300);
        for name in ["tw0", "eth0 ", "../lo", "%d", "", "fifteen-letters", "sixteen-letters!", &too_long] {
            let errors = with_network(async |network| Ok(all_errors(network, name).await)).unwrap();
            for error in errors {
                assert_eq!(error.to_string(), format!("{name}: there is no such network interface"));
            }
        }
    });
}

#[test]
fn a_link_that_goes_away_is_an_error_and_not_another_link() {
    alone("a_link_that_goes_away_is_an_error_and_not_another_link", || {
        cable();
        let gone = with_network(async |network| {
            network.link("tw0").await?;
            ip("link del tw0");
            network.set_up("tw0", true).await
        });
        assert!(matches!(gone, Err(Error::Absent(name)) if name == "tw0"));
    });
}

#[test]
fn attributes_of_a_vf_that_is_not_there_are_refused_and_nothing_changes() {
    alone("attributes_of_a_vf_that_is_not_there_are_refused_and_nothing_changes", || {
        cable();
        let before = seen("tw0");
        let wanted = VfAttributes {
            mac_address: Some("02:00:00:00:00:77".parse().unwrap()),
            vlan_id: Some(100),
            trust: Some(true),
            ..VfAttributes::default()
        };
        let set = with_network(async |network| network.set_vf("tw0", 0, &wanted).await);
        let restored = with_network(async |network| network.restore_vf("tw0", &VfState::default()).await);
        for error in [set.unwrap_err(), restored.unwrap_err()] {
            assert!(matches!(error, Error::NoVf { vf: 0, count: 0, .. }));
            assert_eq!(error.to_string(), "tw0: there is no VF 0: it has no virtual functions");
        }
        assert_eq!(with_network(async |network| network.vfs("tw0").await).unwrap(), []);
        assert_eq!(seen("tw0"), before);
    });
}

#[test]
fn without_rights_links_can_be_read_and_not_changed() {
    const NAME: &str = "without_rights_links_can_be_read_and_not_changed";
    let body = || {
        assert_eq!(link("tw0").mtu, 1400);
        let mac = MAC.parse().unwrap();
        let errors = with_network(async |network| {
            Ok([
                network.set_up("tw0", true).await.unwrap_err(),
                network.set_mac("tw0", mac).await.unwrap_err(),
                network.set_mtu("tw0", 1500).await.unwrap_err(),
            ])
        });
        let want =
            ["bringing it up", "setting its MAC address to 02:00:00:00:00:01", "setting its MTU to 1500"];
        for (error, doing) in errors.unwrap().iter().zip(want) {
            let text = format!("tw0: {doing} needs root (CAP_NET_ADMIN), which this process does not have");
            assert_eq!(error.to_string(), text);
        }
    };
    alone(NAME, || {
        unprivileged(NAME, cable, body);
    });
}
