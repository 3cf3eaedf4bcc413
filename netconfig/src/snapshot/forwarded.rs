//! Addresses that are told to a card beside its own, so that what comes for them is let in (`bridge fdb show self`).

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Snapshot, base_of, mac};
use crate::MacAddress;

/// Gives each link the addresses told to it, without those that links above it tell themselves.
pub(super) fn add(snapshot: &mut Snapshot, links: &[LinkMessage], entries: &[NeighbourMessage]) {
    let above = above(links);
    let mut found = snapshot.by_index();
    for entry in entries {
        let (Some(link), Some(mac)) = (found.get_mut(&entry.header.ifindex), told(entry)) else { continue };
        if above.get(&entry.header.ifindex).is_none_or(|macs| !macs.contains(&mac)) {
            link.settings.forwarded.insert(mac);
        }
    }
}

/// The address of a lasting entry of the link's own; those of a bridge and of tunnels are another matter.
fn told(entry: &NeighbourMessage) -> Option<MacAddress> {
    let own = entry.header.flags.contains(NeighbourFlags::Own)
        && entry.header.state == NeighbourState::Permanent
        && !entry.attributes.iter().any(|attribute| {
            matches!(attribute, NeighbourAttribute::Destination(_) | NeighbourAttribute::Vlan(_))
        });
    let octets = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => Some(octets),
        _ => None,
    });
    mac(octets?).filter(|mac| own && mac.is_unicast())
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
            for attribute in &message.attributes {
                if let LinkAttribute::Controller(controller) = attribute {
                    below.entry(*controller).or_default().push(message.header.index);
                }
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
