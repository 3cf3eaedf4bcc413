//! By which link the host reaches an address.

use std::net::IpAddr;

use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::Network;
use crate::network::Error;

impl Network {
    /// The name of the link by which packets to `destination` leave, as `ip route get` says it; none where no route leads there.
    pub async fn way_to(&self, destination: IpAddr) -> Result<Option<String>, Error> {
        let Some(index) = self.link_to(destination).await? else { return Ok(None) };
        let links = self.links().await?;
        Ok(links.into_iter().find(|link| link.index == index).map(|link| link.name))
    }

    async fn link_to(&self, destination: IpAddr) -> Result<Option<u32>, Error> {
        let mut route = RouteMessage::default();
        let (family, bits, address) = match destination {
            IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
        };
        route.header.address_family = family;
        route.header.destination_prefix_length = bits;
        route.attributes.push(RouteAttribute::Destination(address));
        let mut request = NetlinkMessage::from(Message::GetRoute(route));
        request.header.flags = NLM_F_REQUEST;
        let (all, doing) = ("all links", format!("asking for the way to {destination}"));
        let answers = self.handle().clone().request(request);
        let mut answers =
            std::pin::pin!(answers.map_err(|error| crate::network::refused(all, &doing, error))?);
        while let Some(answer) = self.answer(all, &doing, answers.next()).await? {
            match answer.payload {
                NetlinkPayload::InnerMessage(Message::NewRoute(route)) => {
                    return Ok(route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    }));
                }
                // No way there, which is an answer as well.
                NetlinkPayload::Error(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }
}
