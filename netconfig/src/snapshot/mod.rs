//! All links of this namespace as they are now, from a handful of lists.

mod addresses;
mod forwarded;
mod kind;
mod routes;
mod vlans;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::network::Error;
use crate::settings::{Address, LinkKind, LinkSettings};
use crate::{MacAddress, Network};

pub(crate) use kind::own_data;
pub(crate) use routes::Route;

/// All links by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    links: BTreeMap<String, Found>,
}

/// A link as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Its number, for this boot.
    pub(crate) index: u32,
    /// What it is set to.
    pub(crate) settings: LinkSettings,
    /// Its addresses as the kernel has them, with what [`LinkSettings`] leaves out.
    pub(crate) addresses: Vec<(Address, AddressMessage)>,
    /// Routes through it that did not come with its addresses.
    pub(crate) routes: Vec<Route>,
}

impl Snapshot {
    pub(crate) fn get(&self, name: &str) -> Option<&Found> {
        self.links.get(name)
    }

    /// All links.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Found)> {
        self.links.iter().map(|(name, found)| (name.as_str(), found))
    }

    /// A link that must be there.
    pub(crate) fn need(&self, name: &str) -> Result<&Found, Error> {
        self.get(name).ok_or_else(|| Error::Absent(name.to_owned()))
    }

    /// The ports of a bridge or bond.
    pub(crate) fn ports<'a>(&'a self, controller: &'a str) -> impl Iterator<Item = (&'a str, &'a Found)> {
        let is_port = move |found: &&Found| found.settings.controller.as_deref() == Some(controller);
        self.links.iter().filter(move |(_, found)| is_port(found)).map(|(name, found)| (name.as_str(), found))
    }

    /// What each link is set to.
    pub(crate) fn settings(self) -> BTreeMap<String, LinkSettings> {
        self.links.into_iter().map(|(name, found)| (name, found.settings)).collect()
    }

    fn by_index(&mut self) -> HashMap<u32, &mut Found> {
        self.links.values_mut().map(|found| (found.index, found)).collect()
    }
}

impl Network {
    /// What every link of this namespace is set to, by name: one look at all of them.
    pub async fn settings(&self) -> Result<BTreeMap<String, LinkSettings>, Error> {
        Ok(self.snapshot().await?.settings())
    }

    /// Addresses that each link takes beside its own (`bridge fdb show self`), whoever told it: ones that Throughway did, others
    /// did, or the kernel by itself. Links that were told nothing are left out.
    pub async fn forwarded(&self) -> Result<BTreeMap<String, BTreeSet<MacAddress>>, Error> {
        let links = self.dump("them", Message::GetLink(link_request(AddressFamily::Unspec)), link).await?;
        Ok(forwarded::all(&links, &self.neighbours().await?))
    }

    async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        let entries = self.dump("their forwarding databases", Message::GetNeighbour(request), |message| {
            if let Message::NewNeighbour(message) = message { Some(message) } else { None }
        });
        entries.await
    }

    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Error> {
        let links = self.dump("them", Message::GetLink(link_request(AddressFamily::Unspec)), link).await?;
        let mut snapshot = of_links(&links);
        let addresses =
            self.dump("their addresses", Message::GetAddress(AddressMessage::default()), |message| {
                if let Message::NewAddress(message) = message { Some(message) } else { None }
            });
        addresses::add(&mut snapshot, addresses.await?);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let routes = self.dump("their routes", Message::GetRoute(request), |message| {
                if let Message::NewRoute(message) = message { Some(message) } else { None }
            });
            routes::add(&mut snapshot, routes.await?);
        }
        let vlans = Message::GetLink(link_request(AddressFamily::Bridge));
        vlans::add(&mut snapshot, &self.dump("their VLANs", vlans, link).await?);
        forwarded::add(&mut snapshot, &links, &self.neighbours().await?);
        Ok(snapshot)
    }
}

/// What a list of links alone tells of them.
pub(crate) struct SkimmedLinks {
    /// Without what hangs on them.
    pub(crate) settings: BTreeMap<String, LinkSettings>,
    /// One of them at least has VFs, as far as VFs were asked for.
    pub(crate) has_vfs: bool,
}

/// Reads no more than one list of links.
pub(crate) fn skim(messages: &[LinkMessage]) -> SkimmedLinks {
    let mut attributes = messages.iter().flat_map(|message| &message.attributes);
    let has_vfs = attributes.any(|attribute| match attribute {
        LinkAttribute::NumVf(count) => *count > 0,
        LinkAttribute::VfInfoList(vfs) => !vfs.is_empty(),
        _ => false,
    });
    SkimmedLinks { settings: of_links(messages).settings(), has_vfs }
}

fn link_request(family: AddressFamily) -> LinkMessage {
    let mask = match family {
        AddressFamily::Bridge => LinkExtentMask::BrvlanCompressed,
        _ => LinkExtentMask::SkipStats,
    };
    let mut request = LinkMessage::default();
    request.header.interface_family = family;
    request.attributes.push(LinkAttribute::ExtMask(vec![mask]));
    request
}

pub(crate) fn link(message: Message) -> Option<LinkMessage> {
    if let Message::NewLink(message) = message { Some(message) } else { None }
}

pub(crate) fn name_of(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The link below, when it is in this namespace.
fn base_of(message: &LinkMessage) -> Option<u32> {
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) if !message.attributes.iter().any(elsewhere) => Some(*index),
        _ => None,
    })
}

fn of_links(messages: &[LinkMessage]) -> Snapshot {
    let names: HashMap<u32, &str> =
        messages.iter().filter_map(|message| Some((message.header.index, name_of(message)?))).collect();
    let links = messages.iter().filter_map(|message| {
        let found = Found {
            index: message.header.index,
            settings: settings_of(message, &names),
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        Some((name_of(message)?.to_owned(), found))
    });
    Snapshot { links: links.collect() }
}

fn settings_of(message: &LinkMessage, names: &HashMap<u32, &str>) -> LinkSettings {
    let name = |index: &u32| names.get(index).map(|name| (*name).to_owned());
    let mut settings = LinkSettings {
        kind: kind::of(message, base_of(message).as_ref().and_then(name)),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac_address: None,
        controller: None,
        addresses: BTreeSet::new(),
        gateways: BTreeSet::new(),
        vlans: BTreeMap::new(),
        forwarded: BTreeSet::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => settings.mtu = *mtu,
            LinkAttribute::Address(octets) => settings.mac_address = mac(octets),
            LinkAttribute::Controller(index) => settings.controller = name(index),
            _ => {}
        }
    }
    settings
}

/// A MAC address; longer ones are of other networks than Ethernet, and zeros are none.
fn mac(octets: &[u8]) -> Option<MacAddress> {
    <[u8; 6]>::try_from(octets).ok().map(MacAddress).filter(|mac| !mac.is_zero())
}

/// It is a bridge whose ports are members of VLANs.
pub(crate) fn filters_vlans(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Bridge(bridge) if bridge.vlan_filtering)
}
