//! Addresses of links.

use std::net::IpAddr;

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};

use super::Snapshot;
use crate::settings::Address;

/// Gives each link its addresses.
pub(super) fn add(snapshot: &mut Snapshot, messages: Vec<AddressMessage>) {
    let mut links = snapshot.by_index();
    for message in messages {
        let (Some(link), Some(address)) = (links.get_mut(&message.header.index), of(&message)) else {
            continue;
        };
        link.settings.addresses.insert(address);
        link.addresses.push((address, message));
    }
}

/// The address, unless it is one that comes and goes by itself.
fn of(message: &AddressMessage) -> Option<Address> {
    let wide = matches!(message.header.scope, AddressScope::Universe | AddressScope::Site);
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Address(found) => address = Some(*found),
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's.
    let address: IpAddr = local.or(address)?;
    (wide && !is_by_router(message)).then_some(Address { address, prefix: message.header.prefix_len })
}

/// Made by the kernel from what a router announces, and again when it is lost.
fn is_by_router(message: &AddressMessage) -> bool {
    let of_router = AddressFlags::Managetempaddr | AddressFlags::StablePrivacy;
    let temporary = |flags: &AddressFlags| {
        flags.contains(AddressFlags::Secondary) && !flags.contains(AddressFlags::Permanent)
    };
    let is_v6 = message.header.family == rtnetlink::packet_route::AddressFamily::Inet6;
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Protocol(protocol) => *protocol == AddressProtocol::RouterAnnouncement,
        AddressAttribute::Flags(flags) => is_v6 && (flags.intersects(of_router) || temporary(flags)),
        _ => false,
    })
}
