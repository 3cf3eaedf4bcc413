//! VLANs that bridges and their ports are members of (IFLA_BRIDGE_VLAN_INFO).

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};

use super::{Snapshot, filters_vlans};
use crate::settings::VlanMembership;

/// Gives each bridge with VLAN filtering, and its ports, their VLANs.
pub(super) fn add(snapshot: &mut Snapshot, messages: &[LinkMessage]) {
    let filtering: BTreeSet<String> = snapshot
        .links
        .iter()
        .filter(|(_, found)| filters_vlans(&found.settings.kind))
        .map(|(name, _)| name.clone())
        .collect();
    let concerned = snapshot.links.iter_mut().filter(|(name, found)| {
        filtering.contains(*name)
            || found.settings.controller.as_ref().is_some_and(|controller| filtering.contains(controller))
    });
    let mut links: BTreeMap<u32, _> = concerned.map(|(_, found)| (found.index, found)).collect();
    for message in messages {
        let Some(link) = links.get_mut(&message.header.index) else { continue };
        for attribute in &message.attributes {
            if let LinkAttribute::AfSpecBridge(own) = attribute {
                link.settings.vlans.extend(memberships(own));
            }
        }
    }
}

/// Memberships, of which several alike in a row are told as their first and last.
fn memberships(own: &[AfSpecBridge]) -> BTreeMap<u16, VlanMembership> {
    let mut vlans = BTreeMap::new();
    let mut begin = None;
    for attribute in own {
        let AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) = attribute else { continue };
        if flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(*vid);
            continue;
        }
        let first = begin.take().filter(|_| flags.contains(BridgeVlanInfoFlags::RangeEnd)).unwrap_or(*vid);
        let membership = VlanMembership {
            pvid: flags.contains(BridgeVlanInfoFlags::Pvid),
            untagged: flags.contains(BridgeVlanInfoFlags::Untagged),
        };
        vlans.extend((first..=*vid).map(|vid| (vid, membership)));
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(vid: u16, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
        AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
    }

    #[test]
    fn ranges_are_all_their_vlans() {
        let none = BridgeVlanInfoFlags::empty();
        let own = [
            told(1, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged),
            told(10, BridgeVlanInfoFlags::RangeBegin),
            told(12, BridgeVlanInfoFlags::RangeEnd),
            told(20, none),
        ];
        let vlans = memberships(&own);
        assert_eq!(vlans.keys().copied().collect::<Vec<_>>(), [1, 10, 11, 12, 20]);
        assert_eq!(vlans.get(&1), Some(&VlanMembership { pvid: true, untagged: true }));
        assert_eq!(vlans.get(&11), Some(&VlanMembership::default()));
    }
}
