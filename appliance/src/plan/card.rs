//! Virtio-net cards: a tap on a bridge or NAT network, or a macvtap, for as long as the guest runs.

use std::collections::{BTreeMap, BTreeSet};

use netconfig::section::{NetworkSection, NetworkType};
use netconfig::{LinkKind, LinkSettings, MacAddress, MacvtapMode, VlanMembership};
use vfio::PciAddress;

use super::nic::{COLLISION, collision, holder_of_mac};
use super::{Card, Planner, Step};
use crate::config::{Nic, Vm, derived_mac};

/// Bytes of a link's name, without its NUL (IFNAMSIZ).
const NAME_LENGTH: usize = 15;

impl Planner<'_> {
    /// A link for each card, or what is in its way.
    pub(super) fn cards(&mut self, vm: &Vm) {
        for (key, nic) in &vm.nics {
            let Some(name) = nic.network.as_deref() else { continue };
            let Some(section) = self.config.networks.get(name) else { continue };
            let mac_address = nic.attributes.mac_address.unwrap_or_else(|| derived_mac(self.vm, key));
            let queues = nic.queues.unwrap_or(1);
            if u32::from(queues) > vm.cpus.topology().count {
                let message = format!("The guest has fewer processors than {queues} pairs of queues");
                self.refuse(&["vms", self.vm, "nics", key, "queues"], message, None);
            }
            let link = match section.kind {
                NetworkType::Macvtap => self.macvtap(key, name, section, mac_address),
                _ => self.tap(key, nic, name, queues),
            };
            let Some((link, to)) = link else { continue };
            self.address_is_free(key, &link, mac_address);
            let (kind, mtu) = (to.kind.clone(), to.mtu);
            self.plan.steps.push(Step::Card { link: link.clone(), to: Box::new(to) });
            self.plan.cards.push(Card { name: key.clone(), link, kind, mac_address, mtu, queues });
        }
    }

    /// A port of a bridge.
    fn tap(&mut self, key: &str, nic: &Nic, name: &str, queues: u16) -> Option<(String, LinkSettings)> {
        let path = ["vms", self.vm, "nics", key, "network"];
        let found = self.host.links.get(name);
        let Some((bridge, LinkKind::Bridge(settings))) = found.map(|found| (found, &found.kind)) else {
            let help = "`throughway apply FILE` makes the networks of the file";
            self.refuse(&path, format!("The bridge `{name}` is not there"), Some(help));
            return None;
        };
        let vlans = match &nic.vlan {
            Some(_) if !settings.vlan_filtering => {
                let help = "`throughway apply FILE` makes it as the file says";
                self.refuse(&path, format!("The bridge `{name}` does not look at VLANs now"), Some(help));
                return None;
            }
            Some(vlan) => vlan.memberships().ok()?,
            None if settings.vlan_filtering => {
                BTreeMap::from([(1, VlanMembership { pvid: true, untagged: true })])
            }
            None => BTreeMap::new(),
        };
        let link = self.own_link(key)?;
        let kind = LinkKind::Tap { multi_queue: queues > 1, vnet_hdr: true };
        let controller = Some(name.to_owned());
        Some((link, LinkSettings { controller, vlans, ..settings_of(kind, bridge.mtu, None) }))
    }

    /// A macvtap of the guest's own on the network's base; in mode passthru the base takes one only, which is the network's.
    fn macvtap(
        &mut self,
        key: &str,
        name: &str,
        section: &NetworkSection,
        mac: MacAddress,
    ) -> Option<(String, LinkSettings)> {
        let path = ["vms", self.vm, "nics", key, "network"];
        let help = "`throughway apply FILE` makes the networks of the file";
        let Some(LinkKind::Macvtap { base, mode }) = self.host.links.get(name).map(|link| &link.kind) else {
            self.refuse(&path, format!("The macvtap `{name}` is not there"), Some(help));
            return None;
        };
        let base_link = self.host.links.get(base)?;
        let mtu = section.mtu.unwrap_or(base_link.mtu);
        let link = if *mode == MacvtapMode::Passthru { name.to_owned() } else { self.own_link(key)? };
        let kind = LinkKind::Macvtap { base: base.clone(), mode: *mode };
        Some((link, settings_of(kind, mtu, Some(mac))))
    }

    /// A name for the card's link that nobody has.
    fn own_link(&mut self, key: &str) -> Option<String> {
        let link = link_name(self.vm, key);
        let planned = self.plan.cards.iter().any(|card| card.link == link);
        if planned || self.host.links.contains_key(&link) {
            let message =
                format!("This nic's link on the host would be `{link}`, and there is such a link already");
            let help = "remove that link, or give the nic another name";
            self.refuse(&["vms", self.vm, "nics", key], message, Some(help));
            return None;
        }
        Some(link)
    }

    /// Two cards of one address take each other's packets.
    fn address_is_free(&mut self, key: &str, link: &str, mac: MacAddress) {
        // No VF has that address, so that none is passed over.
        let nobody = (PciAddress::default(), 0);
        let holder = holder_of_mac(self.host, mac, nobody, &|_, _| false);
        if let Some(holder) = holder.filter(|holder| !holder.contains(&format!("`{link}`"))) {
            self.refuse(&["vms", self.vm, "nics", key], collision(mac, &holder), Some(COLLISION));
        }
    }
}

fn settings_of(kind: LinkKind, mtu: u32, mac_address: Option<MacAddress>) -> LinkSettings {
    LinkSettings {
        kind,
        up: true,
        mtu,
        mac_address,
        controller: None,
        addresses: BTreeSet::new(),
        gateways: BTreeSet::new(),
        vlans: BTreeMap::new(),
        forwarded: BTreeSet::new(),
    }
}

/// What the card's link is called on the host: `firewall-lan`, or where that is too long, what there is room for and a number
/// that depends on both names.
pub(crate) fn link_name(vm: &str, nic: &str) -> String {
    let full = format!("{vm}-{nic}");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if full.len() <= NAME_LENGTH && full.chars().all(plain) {
        return full;
    }
    let [.., a, b, c] = derived_mac(vm, nic).0;
    let start: String = full.chars().filter(|c| plain(*c)).take(8).collect();
    format!("{start}-{a:02x}{b:02x}{c:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_called_after_guest_and_nic_within_fifteen_bytes() {
        assert_eq!(link_name("firewall", "lan"), "firewall-lan");
        let long = link_name("a-rather-long-name", "uplink");
        assert_eq!((long.len(), &long[..9]), (15, "a-rather-"));
        assert_ne!(long, link_name("a-rather-long-name", "dmz"));
        assert!(link_name("gäst", "netz").is_ascii());
    }
}
