//! What a link is wanted to be against what it is, field by field.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Network;
use crate::VlanProtocol;
use crate::network::Error;
use crate::settings::{BondMode, LinkKind, LinkSettings, MacvtapMode, VlanMembership};

/// How long the kernel may take to settle, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// A field that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The field's name, as in [`LinkSettings`]; `link` for the whole of it.
    pub field: String,
    /// What it is to be.
    pub wanted: String,
    /// What it is.
    pub actual: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, wanted {}", self.field, self.actual, self.wanted)
    }
}

impl Network {
    /// What of a link is not as wanted (`None`: not there), when it has had a moment to settle.
    pub async fn differences(
        &self,
        name: &str,
        wanted: Option<&LinkSettings>,
    ) -> Result<Vec<Difference>, Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = differences(name, wanted, &self.settings().await?);
            if found.is_empty() || Instant::now() >= end {
                return Ok(found);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What of the link `name` is not as wanted, among `links` as they are.
///
/// A MAC address that is not said is any. A port of a bond has the bond's MAC address, whatever its own is to be, and an
/// address told to a port that its bridge or another port of it has is told by the bridge.
pub fn differences(
    name: &str,
    wanted: Option<&LinkSettings>,
    links: &BTreeMap<String, LinkSettings>,
) -> Vec<Difference> {
    let (wanted, actual) = match (wanted, links.get(name)) {
        (Some(wanted), Some(actual)) => (wanted, actual),
        (None, None) => return Vec::new(),
        (Some(wanted), None) => {
            return vec![difference("link", kind_in_words(&wanted.kind), "absent".to_owned())];
        }
        (None, Some(actual)) => {
            return vec![difference("link", "absent".to_owned(), kind_in_words(&actual.kind))];
        }
    };
    let mut wanted = wanted.clone();
    let controller = actual.controller.as_ref().and_then(|name| links.get(name));
    let of_bond = controller.is_some_and(|controller| matches!(controller.kind, LinkKind::Bond(_)));
    if wanted.mac_address.is_none() || of_bond {
        wanted.mac_address = actual.mac_address;
    }
    if let Some(controller) = &actual.controller {
        let of_bridge = links
            .iter()
            .filter(|(name, link)| *name == controller || link.controller.as_ref() == Some(controller));
        for mac in of_bridge.filter_map(|(_, link)| link.mac_address) {
            if !actual.forwarded.contains(&mac) {
                wanted.forwarded.remove(&mac);
            }
        }
    }
    if let (LinkKind::Foreign(wanted), LinkKind::Foreign(actual)) = (&mut wanted.kind, &actual.kind) {
        wanted.clone_from(actual);
    }
    compare(&wanted, actual)
}

fn compare(wanted: &LinkSettings, actual: &LinkSettings) -> Vec<Difference> {
    let shown = |settings: &LinkSettings| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
        let up = if settings.up { "up" } else { "down" };
        [
            ("kind", kind_in_words(&settings.kind)),
            ("up", up.to_owned()),
            ("mtu", settings.mtu.to_string()),
            ("mac-address", or_none(settings.mac_address.map(|mac| mac.to_string()))),
            ("controller", or_none(settings.controller.clone())),
            ("addresses", list(&settings.addresses)),
            ("gateways", list(&settings.gateways)),
            ("vlans", list(settings.vlans.iter().map(|(vid, membership)| vlan(*vid, *membership)))),
            ("forwarded", list(&settings.forwarded)),
        ]
    };
    let pairs = shown(wanted).into_iter().zip(shown(actual));
    let different = pairs.filter(|((_, wanted), (_, actual))| wanted != actual);
    different.map(|((field, wanted), (_, actual))| difference(field, wanted, actual)).collect()
}

fn difference(field: &str, wanted: String, actual: String) -> Difference {
    Difference { field: field.to_owned(), wanted, actual }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn vlan(vid: u16, VlanMembership { pvid, untagged }: VlanMembership) -> String {
    let pvid = if pvid { " pvid" } else { "" };
    let untagged = if untagged { " untagged" } else { "" };
    format!("{vid}{pvid}{untagged}")
}

/// A kind and its own settings, as they are written in files.
pub(crate) fn kind_in_words(kind: &LinkKind) -> String {
    match kind {
        LinkKind::Foreign(kind) if kind.is_empty() => "a card's interface".to_owned(),
        LinkKind::Foreign(kind) => kind.clone(),
        LinkKind::Bridge(bridge) => {
            let on = |on| if on { "on" } else { "off" };
            let (stp, filtering) = (on(bridge.stp), on(bridge.vlan_filtering));
            let ageing = bridge.ageing_time;
            format!("bridge (stp {stp}, ageing-time {ageing} s, vlan-filtering {filtering})")
        }
        LinkKind::Bond(bond) => format!("bond (mode {}, miimon {} ms)", bond_mode(bond.mode), bond.miimon),
        LinkKind::Vlan { base, id, protocol } => {
            format!("VLAN {id} ({}) on {base}", protocol_name(*protocol))
        }
        LinkKind::Macvtap { base, mode } => format!("macvtap ({}) on {base}", macvtap_mode(*mode)),
        LinkKind::Tap { multi_queue, vnet_hdr } => {
            let several = if *multi_queue { ", several queues" } else { "" };
            let header = if *vnet_hdr { ", virtio-net header" } else { "" };
            format!("tap{several}{header}")
        }
    }
}

fn bond_mode(mode: BondMode) -> &'static str {
    match mode {
        BondMode::BalanceRr => "balance-rr",
        BondMode::ActiveBackup => "active-backup",
        BondMode::BalanceXor => "balance-xor",
        BondMode::Broadcast => "broadcast",
        BondMode::Lacp => "802.3ad",
        BondMode::BalanceTlb => "balance-tlb",
        BondMode::BalanceAlb => "balance-alb",
    }
}

fn macvtap_mode(mode: MacvtapMode) -> &'static str {
    match mode {
        MacvtapMode::Bridge => "bridge",
        MacvtapMode::Vepa => "vepa",
        MacvtapMode::Private => "private",
        MacvtapMode::Passthru => "passthru",
    }
}

fn protocol_name(protocol: VlanProtocol) -> &'static str {
    match protocol {
        VlanProtocol::Ieee8021Q => "802.1q",
        VlanProtocol::Ieee8021Ad => "802.1ad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Bond, BondMode, Bridge};

    fn link(kind: LinkKind) -> LinkSettings {
        LinkSettings {
            kind,
            up: true,
            mtu: 1500,
            mac_address: Some("02:00:00:00:00:01".parse().unwrap()),
            controller: None,
            addresses: ["10.0.0.5/24".parse().unwrap()].into(),
            gateways: ["10.0.0.1".parse().unwrap()].into(),
            vlans: BTreeMap::new(),
            forwarded: ["02:00:00:00:00:08".parse().unwrap()].into(),
        }
    }

    fn card() -> LinkSettings {
        link(LinkKind::Foreign(String::new()))
    }

    fn one(actual: LinkSettings) -> BTreeMap<String, LinkSettings> {
        [("eno1".to_owned(), actual)].into()
    }

    #[test]
    fn every_field_counts() {
        let bridge = |ageing_time| LinkKind::Bridge(Bridge { stp: true, ageing_time, vlan_filtering: true });
        let wanted = link(bridge(300));
        let actual = LinkSettings {
            kind: bridge(200),
            up: false,
            mtu: 9000,
            mac_address: None,
            controller: Some("bond0".to_owned()),
            addresses: [].into(),
            gateways: [].into(),
            vlans: [(7, VlanMembership { pvid: true, untagged: true })].into(),
            forwarded: [].into(),
        };
        let found = differences("eno1", Some(&wanted), &one(actual));
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        let want = [
            "kind is bridge (stp on, ageing-time 200 s, vlan-filtering on), wanted bridge (stp on, ageing-time 300 s, \
             vlan-filtering on)",
            "up is down, wanted up",
            "mtu is 9000, wanted 1500",
            "mac-address is none, wanted 02:00:00:00:00:01",
            "controller is bond0, wanted none",
            "addresses is none, wanted 10.0.0.5/24",
            "gateways is none, wanted 10.0.0.1",
            "vlans is 7 pvid untagged, wanted none",
            "forwarded is none, wanted 02:00:00:00:00:08",
        ];
        assert_eq!(text, want);
        assert_eq!(differences("eno1", Some(&wanted), &one(wanted.clone())), []);
    }

    #[test]
    fn what_is_there_or_not_is_one_difference() {
        let found = differences("eno1", None, &one(card()));
        assert_eq!(found[0].to_string(), "link is a card's interface, wanted absent");
        let found = differences("eno2", Some(&card()), &one(card()));
        assert_eq!(found[0].to_string(), "link is absent, wanted a card's interface");
        assert_eq!(differences("eno2", None, &one(card())), []);
    }

    #[test]
    fn a_mac_address_that_is_left_to_the_kernel_or_to_a_bond_is_no_difference() {
        let wanted = LinkSettings { mac_address: None, ..card() };
        assert_eq!(differences("eno1", Some(&wanted), &one(card())), []);
        let other = Some("02:00:00:00:00:02".parse().unwrap());
        let port = LinkSettings { controller: Some("bond0".to_owned()), mac_address: other, ..card() };
        let mut links = one(port.clone());
        let bond = LinkKind::Bond(Bond { mode: BondMode::Lacp, miimon: 100 });
        links.insert("bond0".to_owned(), link(bond));
        let wanted = LinkSettings { mac_address: card().mac_address, ..port };
        assert_eq!(differences("eno1", Some(&wanted), &links), []);
        links.insert(
            "bond0".to_owned(),
            link(LinkKind::Bridge(Bridge { stp: false, ageing_time: 300, vlan_filtering: false })),
        );
        assert_eq!(differences("eno1", Some(&wanted), &links).len(), 1);
    }
}
