//! Routes through links: gateways of default routes, and what else is lost when a link goes down.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteType,
};

use super::Snapshot;

/// A route through one link.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Of a default route: its gateway.
    pub(crate) gateway: Option<IpAddr>,
    /// As the kernel has it; of one with several hops, this hop alone.
    pub(crate) message: RouteMessage,
    /// Of an IPv4 route with several hops: what takes its place without this one. IPv6 removes a hop by itself.
    pub(crate) without: Option<RouteMessage>,
}

/// Gives each link its routes.
pub(super) fn add(snapshot: &mut Snapshot, messages: Vec<RouteMessage>) {
    let mut links = snapshot.by_index();
    for message in messages.into_iter().filter(is_lasting) {
        let is_default = message.header.destination_prefix_length == 0;
        for (message, without) in hops(message) {
            let Some(link) = out_of(&message).and_then(|index| links.get_mut(&index)) else { continue };
            let gateway = gateway_of(&message).filter(|_| is_default);
            link.settings.gateways.extend(gateway);
            link.routes.push(Route { gateway, message, without });
        }
    }
}

/// A route as one route for each of its hops, and for IPv4 what is left without that hop.
fn hops(message: RouteMessage) -> Vec<(RouteMessage, Option<RouteMessage>)> {
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops.clone()),
        _ => None,
    });
    let Some(several) = several else { return vec![(message, None)] };
    let mut common = message;
    common.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::MultiPath(_)));
    let is_v4 = common.header.address_family == AddressFamily::Inet;
    let one = |(number, hop): (usize, &RouteNextHop)| {
        let mut alone = common.clone();
        alone.attributes.extend(hop.attributes.iter().cloned());
        alone.attributes.push(RouteAttribute::Oif(hop.interface_index));
        if hop.flags.contains(RouteNextHopFlags::Onlink) {
            alone.header.flags |= RouteFlags::Onlink;
        }
        let mut without = common.clone();
        let others = several.iter().enumerate().filter(|(other, _)| *other != number);
        without.attributes.push(RouteAttribute::MultiPath(others.map(|(_, hop)| hop.clone()).collect()));
        (alone, is_v4.then_some(without))
    };
    several.iter().enumerate().map(one).collect()
}

/// In the main table, and neither the kernel's own nor a router's announcement.
fn is_lasting(message: &RouteMessage) -> bool {
    let header = &message.header;
    matches!(header.address_family, AddressFamily::Inet | AddressFamily::Inet6)
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && !matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect)
}

fn out_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway_of(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}
