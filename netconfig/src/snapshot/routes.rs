//! Routes through links: gateways of default routes, and what else is lost when a link goes down.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use super::Snapshot;

/// A route through one link.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Of a default route: its gateway.
    pub(crate) gateway: Option<IpAddr>,
    /// As the kernel has it.
    pub(crate) message: RouteMessage,
}

/// Gives each link its routes.
pub(super) fn add(snapshot: &mut Snapshot, messages: Vec<RouteMessage>) {
    let mut links = snapshot.by_index();
    for message in messages.into_iter().filter(is_lasting) {
        let is_default = message.header.destination_prefix_length == 0;
        let attributes = &message.attributes;
        let several = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
        for hop in several.into_iter().flatten().filter(|_| is_default) {
            if let (Some(link), Some(gateway)) =
                (links.get_mut(&hop.interface_index), gateway_of(&hop.attributes))
            {
                link.settings.gateways.insert(gateway);
            }
        }
        let Some(link) = out_of(attributes).and_then(|index| links.get_mut(&index)) else { continue };
        let gateway = gateway_of(attributes).filter(|_| is_default);
        link.settings.gateways.extend(gateway);
        link.routes.push(Route { gateway, message });
    }
}

/// In the main table, and neither the kernel's own nor a router's announcement.
fn is_lasting(message: &RouteMessage) -> bool {
    let header = &message.header;
    matches!(header.address_family, AddressFamily::Inet | AddressFamily::Inet6)
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && !matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect)
}

fn out_of(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}
