//! Routes that a change of links takes along by the way: kept, put back, or carried over to where their gateway is now.
//!
//! With an address the kernel removes every route that needed it. Those that an administrator or a DHCP client set are noted
//! before a change. Routes of routing daemons are left to them: they see the change themselves.

use std::fmt;
use std::net::IpAddr;

use rtnetlink::packet_core::{Emitable, NLM_F_APPEND, NLM_F_CREATE, Parseable};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Network;
use crate::network::Error;
use crate::realize::again;
use crate::refusal::Refusal;
use crate::settings::Address;
use crate::snapshot::Snapshot;

/// A route of the main table through one link, to be added again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeptRoute {
    /// The link's name; its number may be another by then.
    pub link: String,
    /// As `ip route` has it, for people: `10.20.0.0/16 via 10.0.0.9 metric 100`.
    pub text: String,
    /// The whole of it: the kernel's message (rtnetlink(7), RTM_NEWROUTE), in hexadecimal.
    message: String,
}

impl fmt::Display for KeptRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.text, self.link)
    }
}

impl KeptRoute {
    fn of(link: &str, message: &RouteMessage) -> Self {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let hexadecimal = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { link: link.to_owned(), text: in_words(message), message: hexadecimal }
    }

    /// The message, through the link of this number. None of a file that somebody damaged.
    fn through(&self, index: u32) -> Option<RouteMessage> {
        let digits = self.message.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes: Vec<u8> = digits.collect::<Option<_>>()?;
        let mut message = RouteMessage::parse(bytes.as_slice()).ok()?;
        for attribute in &mut message.attributes {
            if let RouteAttribute::Oif(oif) = attribute {
                *oif = index;
            }
        }
        Some(message)
    }
}

impl Network {
    /// Routes that an administrator or a DHCP client has set, of all links.
    pub async fn routes(&self) -> Result<Vec<KeptRoute>, Error> {
        Ok(kept(&self.snapshot().await?))
    }

    /// Adds those of `before` that are gone, as they were. What cannot be added, as its link is gone, is given back.
    pub async fn restore_routes(&self, before: &[KeptRoute]) -> Result<Vec<KeptRoute>, Error> {
        let now = self.snapshot().await?;
        let there = kept(&now);
        let lost = before.iter().filter(|route| !there.contains(route));
        let lost: Vec<&KeptRoute> = lost.filter(|route| now.get(&route.link).is_some()).collect();
        let through = |route: &KeptRoute| route.through(now.get(&route.link)?.index);
        // A default route that was put back with the link alone has neither the metric nor the protocol that it had.
        let stands_for_one = |makeshift: &&KeptRoute| {
            let same = |route: &&&KeptRoute| {
                route.link == makeshift.link && is_default(route) && gateway(route) == gateway(makeshift)
            };
            is_default(makeshift) && !before.contains(makeshift) && lost.iter().any(|route| same(&route))
        };
        let makeshifts: Vec<&KeptRoute> = there.iter().filter(stands_for_one).collect();
        for message in makeshifts.iter().filter_map(|route| through(route)) {
            if let Err(refusal) = self.ask(Message::DelRoute(message), 0).await {
                tracing::debug!("Removing a makeshift default route: {refusal}");
            }
        }
        let left = self.add_all(&lost, through).await?;
        if left.iter().any(is_default) {
            self.add_all(&makeshifts, through).await?;
        }
        Ok(left)
    }

    /// Adds those of `before` that a change of links took along, but for default routes, where their gateways are now: with the
    /// address of a card that became a bridge's port they go to the bridge. What was carried over.
    pub async fn carry_routes(&self, before: &[KeptRoute]) -> Result<Vec<KeptRoute>, Error> {
        let now = self.snapshot().await?;
        let there = kept(&now);
        let lost = before.iter().filter(|route| !is_default(route) && !there.contains(route));
        let lost: Vec<&KeptRoute> = lost.collect();
        let left = self.add_all(&lost, |route| {
            let gateway = gateway(route)?;
            let leads = |address: &Address| contains(*address, gateway);
            let mut links = now.iter().filter(|(_, found)| found.settings.addresses.iter().any(leads));
            let (_, found) = links.next().filter(|_| links.next().is_none())?;
            route.through(found.index)
        });
        let left = left.await?;
        Ok(lost.into_iter().filter(|route| !left.contains(route)).cloned().collect())
    }

    /// Twice, as a route may lead to another's gateway. What could not be added is given back.
    async fn add_all(
        &self,
        routes: &[&KeptRoute],
        through: impl Fn(&KeptRoute) -> Option<RouteMessage>,
    ) -> Result<Vec<KeptRoute>, Error> {
        let mut left: Vec<&KeptRoute> = routes.to_vec();
        for _ in 0..2 {
            let mut failed = Vec::new();
            for route in left {
                let Some(message) = through(route) else {
                    failed.push(route);
                    continue;
                };
                if let Err(refusal) = self.add_kept(message).await {
                    tracing::debug!("{route}: adding it again: {refusal}");
                    failed.push(route);
                }
            }
            left = failed;
        }
        Ok(left.into_iter().cloned().collect())
    }

    async fn add_kept(&self, message: RouteMessage) -> Result<(), Refusal> {
        match self.ask(Message::NewRoute(message), NLM_F_CREATE | NLM_F_APPEND).await {
            Err(refusal) if !refusal.is(Errno::EXIST) => Err(refusal),
            _ => Ok(()),
        }
    }
}

fn kept(snapshot: &Snapshot) -> Vec<KeptRoute> {
    let by_somebody = |message: &RouteMessage| {
        matches!(message.header.protocol, RouteProtocol::Boot | RouteProtocol::Static | RouteProtocol::Dhcp)
    };
    let routes =
        snapshot.iter().flat_map(|(name, found)| found.routes.iter().map(move |route| (name, route)));
    let routes = routes.filter(|(_, route)| by_somebody(&route.message));
    routes.map(|(name, route)| KeptRoute::of(name, &again(&route.message))).collect()
}

fn is_default(route: &KeptRoute) -> bool {
    route.through(0).is_some_and(|message| message.header.destination_prefix_length == 0)
}

fn gateway(route: &KeptRoute) -> Option<IpAddr> {
    route.through(0)?.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Whether the network of an address has another.
fn contains(network: Address, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(network.prefix)).unwrap_or(0);
    network.address.is_ipv4() == address.is_ipv4() && bits(network.address) & mask == bits(address) & mask
}

fn in_words(message: &RouteMessage) -> String {
    let word = |pick: &dyn Fn(&RouteAttribute) -> Option<String>| message.attributes.iter().find_map(pick);
    let address =
        |before: &str, address: &RouteAddress| ip(address).map(|address| format!("{before}{address}"));
    let to = word(&|attribute| match attribute {
        RouteAttribute::Destination(to) => {
            Some(format!("{}/{}", ip(to)?, message.header.destination_prefix_length))
        }
        _ => None,
    });
    let words = [
        Some(to.unwrap_or_else(|| "default".to_owned())),
        word(&|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => address("via ", gateway),
            _ => None,
        }),
        word(&|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(format!("metric {metric}")),
            _ => None,
        }),
        word(&|attribute| match attribute {
            RouteAttribute::PrefSource(source) => address("src ", source),
            _ => None,
        }),
        message.header.flags.contains(RouteFlags::Onlink).then(|| "onlink".to_owned()),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_network_and_its_family() {
        let of = |network: &str, address: &str| contains(network.parse().unwrap(), address.parse().unwrap());
        assert!(
            of("10.0.0.5/24", "10.0.0.9") && of("10.0.0.5/32", "10.0.0.5") && of("fd00::5/64", "fd00::9")
        );
        assert!(of("10.0.0.5/0", "192.0.2.1") && of("fd00::5/0", "::1"));
        assert!(!of("10.0.0.5/24", "10.0.1.9") && !of("10.0.0.5/32", "10.0.0.4"));
        assert!(!of("10.0.0.5/0", "fd00::9") && !of("fd00::5/128", "fd00::6"));
    }

    #[test]
    fn a_route_is_kept_whole_and_goes_through_the_link_of_then() {
        let mut message = RouteMessage::default();
        message.header.address_family = rtnetlink::packet_route::AddressFamily::Inet;
        message.header.destination_prefix_length = 16;
        message.header.protocol = RouteProtocol::Dhcp;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet([10, 20, 0, 0].into())),
            RouteAttribute::Priority(100),
            RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 9].into())),
            RouteAttribute::Oif(7),
        ];
        let route = KeptRoute::of("eth0", &message);
        assert_eq!(route.to_string(), "10.20.0.0/16 via 10.0.0.9 metric 100 dev eth0");
        assert_eq!(route.through(7), Some(message.clone()));
        message.attributes[3] = RouteAttribute::Oif(9);
        assert_eq!(route.through(9), Some(message));
        for damaged in ["", "zz", "0", "0218"] {
            assert_eq!(KeptRoute { message: damaged.into(), ..route.clone() }.through(7), None);
        }
    }
}
