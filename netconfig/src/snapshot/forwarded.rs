//! Addresses that are told to a card beside its own, so that what comes for them is let in (`bridge fdb show self`).

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Snapshot, base_of, mac};
use crate::MacAddress;

/// Gives each link the addresses told to it, without those that the kernel tells by itself: of links above it, and what its
/// bridge knows for certain, which a bridge that filters VLANs tells its ports instead of having them take everything.
pub(super) fn add(snapshot: &mut Snapshot, links: &[LinkMessage], entries: &[NeighbourMessage]) {
    let (above, certain) = (above(links), certain(entries));
    let controllers: BTreeMap<u32, u32> =
        links.iter().filter_map(|link| Some((link.header.index, controller_of(link)?))).collect();
    let mut found = snapshot.by_index();
    for entry in entries {
        let index = entry.header.ifindex;
        let (Some(link), Some(mac)) = (found.get_mut(&index), told(entry)) else { continue };
        let by_bridge = controllers.get(&index).and_then(|bridge| certain.get(bridge));
        let by_kernel = [above.get(&index), by_bridge];
        if !by_kernel.into_iter().flatten().any(|macs| macs.contains(&mac)) {
            link.settings.forwarded.insert(mac);
        }
    }
}

/// All that each link is told, by whomever: the kernel's own entries too.
pub(super) fn all(
    links: &[LinkMessage],
    entries: &[NeighbourMessage],
) -> BTreeMap<String, BTreeSet<MacAddress>> {
    let names: BTreeMap<u32, &str> =
        links.iter().filter_map(|link| Some((link.header.index, super::name_of(link)?))).collect();
    let mut all: BTreeMap<String, BTreeSet<MacAddress>> = BTreeMap::new();
    for entry in entries {
        if let (Some(name), Some(mac)) = (names.get(&entry.header.ifindex), told(entry)) {
            all.entry((*name).to_owned()).or_default().insert(mac);
        }
    }
    all
}

/// What each bridge knows without having learnt it: its own addresses, its ports', and what it was told.
fn certain(entries: &[NeighbourMessage]) -> BTreeMap<u32, BTreeSet<MacAddress>> {
    let mut certain: BTreeMap<u32, BTreeSet<MacAddress>> = BTreeMap::new();
    for entry in entries {
        let lasting = matches!(entry.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
        if !lasting || entry.header.flags.contains(NeighbourFlags::Own) {
            continue;
        }
        let bridge = entry.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        });
        if let (Some(bridge), Some(mac)) = (bridge, mac_of(entry)) {
            certain.entry(bridge).or_default().insert(mac);
        }
    }
    certain
}

fn controller_of(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

fn mac_of(entry: &NeighbourMessage) -> Option<MacAddress> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => mac(octets),
        _ => None,
    })
}

/// The address of a lasting entry of the link's own; those of a bridge and of tunnels are another matter.
fn told(entry: &NeighbourMessage) -> Option<MacAddress> {
    let own = entry.header.flags.contains(NeighbourFlags::Own)
        && entry.header.state == NeighbourState::Permanent
        && !entry.attributes.iter().any(|attribute| {
            matches!(attribute, NeighbourAttribute::Destination(_) | NeighbourAttribute::Vlan(_))
        });
    mac_of(entry).filter(|mac| own && mac.is_unicast())
}

/// Addresses of the links that stand on each link, or on the bond that it is a port of: the kernel tells them by itself.
fn above(links: &[LinkMessage]) -> BTreeMap<u32, BTreeSet<MacAddress>> {
    let mut above: BTreeMap<u32, BTreeSet<MacAddress>> = BTreeMap::new();
    let below: BTreeMap<u32, Vec<u32>> = {
        let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for message in links {
            if let Some(base) = base_of(message) {
                below.entry(message.header.index).or_default().push(base);
            }
            if let Some(controller) = controller_of(message) {
                below.entry(controller).or_default().push(message.header.index);
            }
        }
        below
    };
    for message in links {
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(octets) => mac(octets),
            _ => None,
        });
        let Some(own) = own else { continue };
        let (mut seen, mut next) = (BTreeSet::new(), vec![message.header.index]);
        while let Some(index) = next.pop() {
            for base in below.get(&index).into_iter().flatten().filter(|base| seen.insert(**base)) {
                above.entry(*base).or_default().insert(own);
                next.push(*base);
            }
        }
    }
    above
}
