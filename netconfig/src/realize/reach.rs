//! How the host is reached by the link: addresses and routes.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;

use super::Work;
use crate::network::Error;
use crate::settings::Address;
use crate::snapshot::Route;

/// How often what is not wanted is removed: once, and once more for every hop of a route with several.
const ROUNDS: u8 = 16;

impl Work<'_> {
    /// Addresses, then the routes that need them.
    pub(super) async fn reach(&mut self) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            if !self.remove().await? {
                break;
            }
            // With a network's first address the kernel removes its others, and routes that name it.
            self.look_again().await?;
        }
        let found = self.found()?;
        for address in self.wanted.addresses.difference(&found.settings.addresses) {
            let request = Message::NewAddress(address_message(found.index, *address));
            let result = self.network.ask(request, NLM_F_CREATE | NLM_F_EXCL).await;
            result.map_err(|refusal| self.refused(&format!("adding address {address}"), refusal))?;
        }
        self.add_gateways().await?;
        self.add_lost_routes().await
    }

    /// Removes what is not wanted; tells whether there was any.
    async fn remove(&self) -> Result<bool, Error> {
        let found = self.found()?;
        let gone: Vec<&Route> = found
            .routes
            .iter()
            .filter(|route| route.gateway.is_some_and(|gateway| !self.wanted.gateways.contains(&gateway)))
            .collect();
        for route in &gone {
            let result = match &route.without {
                Some(others) => {
                    let request = Message::NewRoute(again(others));
                    self.network.ask(request, NLM_F_CREATE | NLM_F_REPLACE).await
                }
                None => self.network.ask(Message::DelRoute(route.message.clone()), 0).await,
            };
            match result {
                Err(refusal) if !refusal.is(Errno::SRCH) => {
                    return Err(self.refused("removing its default route", refusal));
                }
                // What was read of the route's other hops does not hold any more.
                _ if route.without.is_some() => return Ok(true),
                _ => {}
            }
        }
        let mut any = !gone.is_empty();
        for (address, message) in &found.addresses {
            if self.wanted.addresses.contains(address) {
                continue;
            }
            any = true;
            match self.network.ask(Message::DelAddress(message.clone()), 0).await {
                Err(refusal) if !refusal.is(Errno::ADDRNOTAVAIL) => {
                    return Err(self.refused(&format!("removing address {address}"), refusal));
                }
                _ => {}
            }
        }
        Ok(any)
    }

    async fn add_gateways(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        for gateway in self.wanted.gateways.difference(&found.settings.gateways) {
            let had = self.before.get(self.name).and_then(|before| {
                before.routes.iter().find(|route| route.gateway.as_ref() == Some(gateway))
            });
            let message =
                had.map_or_else(|| gateway_message(found.index, *gateway), |had| again(&had.message));
            let result = self.add_route(message).await;
            result.map_err(|refusal| self.refused(&format!("adding default route by {gateway}"), refusal))?;
        }
        Ok(())
    }

    /// Other routes, which went away because the link had to go down for a while, not because it is another's port now.
    async fn add_lost_routes(&mut self) -> Result<(), Error> {
        let before = self.before.need(self.name)?;
        if before.settings.controller != self.wanted.controller || !self.wanted.up {
            return Ok(());
        }
        self.look_again().await?;
        let (before, now) = (self.before.need(self.name)?, self.found()?);
        let lost = before.routes.iter().filter(|route| {
            let is_there = |now: &&Route| again(&now.message) == again(&route.message);
            route.gateway.is_none() && !now.routes.iter().any(|now| is_there(&now))
        });
        for route in lost {
            if let Err(refusal) = self.add_route(again(&route.message)).await {
                tracing::warn!("{}: a route through it is lost: {refusal}", self.name);
            }
        }
        Ok(())
    }

    /// Beside others to the same destination; what is there already is as well.
    async fn add_route(&self, message: RouteMessage) -> Result<(), crate::refusal::Refusal> {
        let add = async |message| match self
            .network
            .ask(Message::NewRoute(message), NLM_F_CREATE | NLM_F_APPEND)
            .await
        {
            Err(refusal) if refusal.is(Errno::EXIST) => Ok(()),
            result => result,
        };
        match add(message.clone()).await {
            // A gateway outside the link's networks, as hosters have them.
            Err(refusal) if refusal.is(Errno::NETUNREACH) || refusal.is(Errno::HOSTUNREACH) => {
                let mut onlink = message;
                onlink.header.flags |= RouteFlags::Onlink;
                add(onlink).await
            }
            result => result,
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, Address { address, prefix }: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    if let IpAddr::V4(address) = address
        && prefix < 31
    {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let broadcast = (u32::from(address) | hosts).into();
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

fn gateway_message(index: u32, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// A route as it was told, to be added again: without what the kernel tells of its state.
pub(crate) fn again(message: &RouteMessage) -> RouteMessage {
    let mut message = message.clone();
    message.header.flags &= RouteFlags::Onlink;
    message.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_)
                | RouteAttribute::MulticastExpires(_)
                | RouteAttribute::Preference(_)
                | RouteAttribute::Other(_)
        )
    });
    message
}
