//! A network interface.

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use serde::Serialize;

use crate::MacAddress;

/// What the kernel says of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Link {
    /// Its number, for this boot.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier and can send.
    pub running: bool,
    /// MAC address.
    pub mac_address: Option<MacAddress>,
    /// The MAC address that is burnt in.
    pub permanent_mac: Option<MacAddress>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// The number of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
}

impl Link {
    pub(crate) fn of(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(octets) => link.mac_address = mac(octets),
                LinkAttribute::PermAddress(octets) => link.permanent_mac = mac(octets),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::OperState(state) => link.running = *state == State::Up,
                _ => {}
            }
        }
        link
    }
}

fn mac(octets: &[u8]) -> Option<MacAddress> {
    Some(MacAddress(*octets.first_chunk()?))
}

/// RTM_SETLINK that changes one attribute.
pub(crate) fn message(index: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    message
}

/// RTM_SETLINK that changes only IFF_UP.
pub(crate) fn up_message(index: u32, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    message
}
