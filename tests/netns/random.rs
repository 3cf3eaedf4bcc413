//! Whatever links are, and whatever they shall be: they are so afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netconfig::{
    Address, Bond, BondMode, Bridge, LinkKind, LinkSettings, MacvtapMode, VlanMembership, VlanProtocol,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

use crate::namespace::{alone, ip};
use crate::witness::{
    bridge, kernel_filters_vlans, kernel_has_bonds, kernel_has_vlans, mac, realize, settings, whole_kernel,
};

/// Links that are made, each with a card below it of its own.
const NAMES: [&str; 3] = ["x0", "x1", "x2"];

/// What this kernel has beside bridges, taps and macvtaps.
#[derive(Clone, Copy, Debug)]
struct Has {
    vlans: bool,
    bonds: bool,
    filtering: bool,
}

fn kinds(number: usize, has: Has) -> BoxedStrategy<LinkKind> {
    let base = format!("card{number}");
    let bridge =
        (any::<bool>(), select(vec![10, 300]), any::<bool>()).prop_map(move |(stp, ageing_time, on)| {
            LinkKind::Bridge(Bridge { stp, ageing_time, vlan_filtering: on && has.filtering })
        });
    let tap =
        any::<(bool, bool)>().prop_map(|(multi_queue, vnet_hdr)| LinkKind::Tap { multi_queue, vnet_hdr });
    let modes = [MacvtapMode::Bridge, MacvtapMode::Vepa, MacvtapMode::Private, MacvtapMode::Passthru];
    let on = base.clone();
    let macvtap = select(modes.to_vec()).prop_map(move |mode| LinkKind::Macvtap { base: on.clone(), mode });
    let mut kinds = vec![bridge.boxed(), tap.boxed(), macvtap.boxed()];
    if has.vlans {
        let protocol = select(vec![VlanProtocol::Ieee8021Q, VlanProtocol::Ieee8021Ad]);
        let vlan = (select(vec![5, 4094]), protocol).prop_map(move |(id, protocol)| LinkKind::Vlan {
            base: base.clone(),
            id,
            protocol,
        });
        kinds.push(vlan.boxed());
    }
    if has.bonds {
        let modes = [BondMode::BalanceRr, BondMode::ActiveBackup, BondMode::Lacp, BondMode::BalanceAlb];
        let bond = (select(modes.to_vec()), select(vec![50, 100]));
        kinds.push(bond.prop_map(|(mode, miimon)| LinkKind::Bond(Bond { mode, miimon })).boxed());
    }
    proptest::strategy::Union::new(kinds).boxed()
}

fn memberships() -> impl Strategy<Value = BTreeMap<u16, VlanMembership>> {
    let vids = subsequence(vec![1, 2, 3, 4, 10, 4094], 0..=6);
    (vids, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(vids, pvid, untagged)| {
        let pvid = (!vids.is_empty()).then(|| vids[pvid.index(vids.len())]);
        vids.into_iter().map(|vid| (vid, VlanMembership { pvid: Some(vid) == pvid, untagged })).collect()
    })
}

fn reach(number: usize) -> impl Strategy<Value = (BTreeSet<Address>, BTreeSet<IpAddr>)> {
    let all: Vec<String> = ["10.0.N.5/24", "10.0.N.6/24", "10.0.N.7/28", "fd00:N::5/64", "fd00:N::6/64"]
        .iter()
        .map(|address| address.replace('N', &number.to_string()))
        .collect();
    (subsequence(all, 0..=5), any::<(bool, bool)>()).prop_map(move |(chosen, (v4, v6))| {
        let reaches = |start: &str| chosen.iter().any(|address| address.starts_with(start));
        let mut gateways = BTreeSet::new();
        if v4 && reaches("10.") {
            gateways.insert(format!("10.0.{number}.1").parse().unwrap());
        }
        if v6 && reaches("fd") {
            gateways.insert(format!("fd00:{number}::1").parse().unwrap());
        }
        (chosen.iter().map(|address| address.parse().unwrap()).collect(), gateways)
    })
}

/// A link and what it shall be; none for away with it.
fn step(has: Has) -> impl Strategy<Value = (&'static str, Option<LinkSettings>)> {
    (0..NAMES.len()).prop_flat_map(move |number| {
        let rest = (any::<bool>(), select(vec![1400, 1500]), any::<bool>(), any::<bool>(), any::<bool>());
        (kinds(number, has), rest, reach(number), memberships(), prop::bool::weighted(0.9)).prop_map(
            move |(kind, (up, mtu, other_mac, port, told), (addresses, gateways), vlans, there)| {
                let is_bridge = matches!(kind, LinkKind::Bridge(_));
                let filters = matches!(&kind, LinkKind::Bridge(bridge) if bridge.vlan_filtering);
                // A macvtap takes all that comes in, which leaves nothing to a bridge, and most of them are told no addresses.
                let is_macvtap = matches!(kind, LinkKind::Macvtap { .. });
                let port = port && !is_bridge && !is_macvtap;
                let told = told && !is_bridge && !is_macvtap;
                let last = if other_mac { 0x10 } else { 0x20 };
                let settings = LinkSettings {
                    up,
                    mtu,
                    mac_address: Some(mac(&format!("02:00:00:00:{last:02x}:{number:02x}"))),
                    controller: port.then(|| "br0".to_owned()),
                    addresses,
                    gateways: if up { gateways } else { BTreeSet::new() },
                    vlans: if filters || port && has.filtering { vlans } else { BTreeMap::new() },
                    forwarded: if told { [mac("02:00:00:00:77:77")].into() } else { [].into() },
                    kind,
                };
                (NAMES[number], there.then_some(settings))
            },
        )
    })
}

#[test]
fn whatever_is_wanted_is_so_from_whatever_was() {
    alone("random::whatever_is_wanted_is_so_from_whatever_was", || {
        let has =
            Has { vlans: kernel_has_vlans(), bonds: kernel_has_bonds(), filtering: kernel_filters_vlans() };
        for number in 0..NAMES.len() {
            ip(&format!("link add card{number} type veth peer name end{number}"));
            ip(&format!("link set card{number} up"));
        }
        let LinkKind::Bridge(plain) = bridge().kind else { unreachable!("it is a bridge") };
        let kind = LinkKind::Bridge(Bridge { vlan_filtering: has.filtering, ..plain });
        realize("br0", Some(&LinkSettings { kind, ..bridge() }));
        // The box is a machine in software, and slow.
        let mut runner = TestRunner::new(Config {
            cases: if whole_kernel() { 6 } else { 24 },
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        });
        let steps = prop::collection::vec(step(has), 1..8);
        let result = runner.run(&steps, |steps| {
            for (name, wanted) in &steps {
                realize(name, wanted.as_ref());
                let now = settings();
                prop_assert_eq!(now.get(*name), wanted.as_ref());
            }
            // Each goes back to what it was in the end, whatever the others are meanwhile.
            for (name, _) in steps {
                let before = settings();
                realize(name, None);
                realize(name, before.get(name));
                let now = settings();
                prop_assert_eq!(now.get(name), before.get(name));
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    });
}
