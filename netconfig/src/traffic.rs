//! What guests' links have carried.

use std::collections::BTreeMap;

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, Stats64};

use crate::Network;
use crate::network::Error;
use crate::snapshot::{link, name_of};

/// Packets, as whoever has the descriptor of a tap or macvtap counts them. (With offloads one of these may be many on a wire.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// That came to him.
    pub received: u64,
    /// That he sent.
    pub sent: u64,
    /// That were for him, and he had no room for.
    pub dropped: u64,
}

impl Network {
    /// Of each tap (of tun, too) and macvtap of this namespace, by name.
    pub async fn traffic(&self) -> Result<BTreeMap<String, Traffic>, Error> {
        let links = self.dump("them", Message::GetLink(LinkMessage::default()), link).await?;
        Ok(links.iter().filter_map(|message| Some((name_of(message)?.to_owned(), of(message)?))).collect())
    }
}

fn of(message: &LinkMessage) -> Option<Traffic> {
    let counted = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(counted) => Some(counted),
        _ => None,
    });
    let Stats64 { rx_packets, tx_packets, rx_dropped, tx_dropped, .. } = *counted?;
    let about = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(about) => Some(about),
        _ => None,
    });
    about.flatten().find_map(|about| match about {
        // The end of a cable, whose other end is the descriptor: what it sends arrives there.
        LinkInfo::Kind(InfoKind::Tun) => {
            Some(Traffic { received: tx_packets, sent: rx_packets, dropped: tx_dropped })
        }
        // Its descriptor takes the place of the host's network stack.
        LinkInfo::Kind(InfoKind::MacVtap) => {
            Some(Traffic { received: rx_packets, sent: tx_packets, dropped: rx_dropped })
        }
        _ => None,
    })
}
