//! What the switch in a card and the bridge above it know of the link: told addresses, VLANs.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;

use super::Work;
use crate::network::Error;
use crate::settings::{LinkKind, VlanMembership};
use crate::{MacAddress, Network};

impl Network {
    /// Tells a link to take what is for `mac`, or no more (`bridge fdb add MAC dev LINK self`). May be done twice.
    pub async fn tell(&self, link: &str, mac: MacAddress, on: bool) -> Result<(), Error> {
        let index = self.link(link).await?.index;
        let (request, flags, fine, doing) = if on {
            let doing = format!("telling it to take what is for {mac}");
            (Message::NewNeighbour(entry(index, mac)), NLM_F_CREATE | NLM_F_EXCL, Errno::EXIST, doing)
        } else {
            let doing = format!("taking {mac} out of its forwarding database");
            (Message::DelNeighbour(entry(index, mac)), 0, Errno::NOENT, doing)
        };
        match self.ask(request, flags).await {
            Err(refusal) if !refusal.is(fine) => Err(crate::network::refused(link, &doing, refusal)),
            _ => Ok(()),
        }
    }
}

impl Work<'_> {
    /// Addresses told to the card.
    pub(super) async fn database(&mut self) -> Result<(), Error> {
        let (index, now, wanted) =
            (self.found()?.index, &self.found()?.settings.forwarded, &self.wanted.forwarded);
        for mac in now.difference(wanted) {
            match self.network.ask(Message::DelNeighbour(entry(index, *mac)), 0).await {
                Err(refusal) if !refusal.is(Errno::NOENT) => {
                    return Err(
                        self.refused(&format!("taking {mac} out of its forwarding database"), refusal)
                    );
                }
                _ => {}
            }
        }
        for mac in wanted.difference(now) {
            let request = Message::NewNeighbour(entry(index, *mac));
            match self.network.ask(request, NLM_F_CREATE | NLM_F_EXCL).await {
                // There already, by a link that stands on this one.
                Err(refusal) if refusal.is(Errno::EXIST) => {}
                result => result.map_err(|refusal| {
                    self.refused(&format!("telling it to take what is for {mac}"), refusal)
                })?,
            }
        }
        Ok(())
    }

    /// Memberships of VLANs, where its bridge, or itself, filters them.
    pub(super) async fn vlans(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        let is_bridge = matches!(found.settings.kind, LinkKind::Bridge(_));
        let now = &found.settings.vlans;
        let gone: Vec<_> = now
            .iter()
            .filter(|(vid, _)| !self.wanted.vlans.contains_key(vid))
            .map(|(vid, _)| (*vid, VlanMembership::default()))
            .collect();
        let other: Vec<_> = self
            .wanted
            .vlans
            .iter()
            .filter(|(vid, membership)| now.get(vid) != Some(membership))
            .map(|(vid, membership)| (*vid, *membership))
            .collect();
        for range in ranges(&gone) {
            let request = Message::DelLink(membership(found.index, is_bridge, range));
            let doing = format!("taking it out of VLAN {}", name_of(range));
            self.network.ask(request, 0).await.map_err(|refusal| self.refused(&doing, refusal))?;
        }
        for range in ranges(&other) {
            let request = Message::SetLink(membership(found.index, is_bridge, range));
            let doing = format!("making it a member of VLAN {}", name_of(range));
            self.network.ask(request, 0).await.map_err(|refusal| self.refused(&doing, refusal))?;
        }
        Ok(())
    }
}

/// `bridge fdb ... self permanent`.
fn entry(index: u32, mac: MacAddress) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.into()));
    message
}

/// The first VLAN, the last, and what they have in common.
type Range = (u16, u16, VlanMembership);

/// VLANs in a row with the same membership, together; a port VLAN stands alone, of which there can be one only.
fn ranges(vlans: &[(u16, VlanMembership)]) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (vid, membership) in vlans {
        match ranges.last_mut() {
            Some((_, last, same))
                if last.checked_add(1) == Some(*vid) && same == membership && !membership.pvid =>
            {
                *last = *vid;
            }
            _ => ranges.push((*vid, *vid, *membership)),
        }
    }
    ranges
}

fn name_of((first, last, _): Range) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

/// `bridge vlan ... dev DEV`, and for a bridge itself `self`.
fn membership(index: u32, is_bridge: bool, (first, last, membership): Range) -> LinkMessage {
    let mut flags = BridgeVlanInfoFlags::empty();
    flags.set(BridgeVlanInfoFlags::Pvid, membership.pvid);
    flags.set(BridgeVlanInfoFlags::Untagged, membership.untagged);
    let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { vid, flags });
    let mut own = Vec::new();
    if is_bridge {
        own.push(AfSpecBridge::Flags(BridgeFlag::LowerDev));
    }
    if first == last {
        own.push(info(first, flags));
    } else {
        own.push(info(first, flags | BridgeVlanInfoFlags::RangeBegin));
        own.push(info(last, flags | BridgeVlanInfoFlags::RangeEnd));
    }
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(own));
    message
}

/// What the kernel gives to a port that joins (its vlan_default_pvid).
pub(super) fn default_membership(index: u32, is_bridge: bool) -> LinkMessage {
    membership(index, is_bridge, (1, 1, VlanMembership { pvid: true, untagged: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_in_a_row_go_together_and_a_port_vlan_alone() {
        let tagged = VlanMembership::default();
        let pvid = VlanMembership { pvid: true, untagged: true };
        let vlans =
            [(1, tagged), (2, tagged), (3, pvid), (4, pvid), (6, tagged), (7, tagged), (4094, tagged)];
        let want = [(1, 2, tagged), (3, 3, pvid), (4, 4, pvid), (6, 7, tagged), (4094, 4094, tagged)];
        assert_eq!(ranges(&vlans), want);
        assert_eq!(ranges(&[]), []);
    }
}
