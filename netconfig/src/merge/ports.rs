//! Ports of bridges and bonds, and the VLANs they are members of.

use std::collections::BTreeMap;

use super::{Merge, default_vlan, is_vlan};
use crate::section::{NetworkSection, NetworkType, Port, PortMode, PortVlan};
use crate::settings::{Bridge, LinkKind, VlanMembership};

impl Merge<'_> {
    /// A port of a bridge or bond: it has no addresses of its own.
    pub(super) fn port(&mut self, controller: &str, section: &NetworkSection, name: &str, port: &Port) {
        let path = [controller, "ports", name];
        let others = self.sections.iter().filter(|(other, _)| other.as_str() < controller);
        if let Some((other, _)) = others.into_iter().find(|(_, other)| other.ports.contains_key(name)) {
            let message = format!("`{name}` is a port of `{other}` already");
            self.report(&path, message, None);
        }
        let Some(mut wanted) = self.wanted.get(name).or_else(|| self.current.get(name)).cloned() else {
            self.absent(&path, name);
            return;
        };
        wanted.controller = Some(controller.to_owned());
        wanted.up = true;
        wanted.addresses.clear();
        wanted.gateways.clear();
        if self
            .sections
            .get(name)
            .is_some_and(|own| own.addresses.is_some() || own.gateway.is_some() || own.dhcp4)
        {
            let help = Some("give the address to the bridge or bond");
            self.report(&path, format!("`{name}` has addresses of its own, which a port cannot use"), help);
        }
        let filtering = matches!(
            self.wanted.get(controller).map(|wanted| &wanted.kind),
            Some(LinkKind::Bridge(Bridge { vlan_filtering: true, .. }))
        );
        match &port.vlan {
            Some(_) if section.kind == NetworkType::Bond => {
                self.report(
                    &[controller, "ports", name, "vlan"],
                    "Ports of a bond have no VLANs of their own",
                    None,
                );
            }
            Some(_) if !filtering => {
                let help = Some("set `vlan-filtering: true` for the bridge");
                self.report(&[controller, "ports", name, "vlan"], "This bridge does not look at VLANs", help);
            }
            Some(vlan) => wanted.vlans = self.vlans(&path, vlan),
            None if filtering && wanted.vlans.is_empty() => wanted.vlans = default_vlan(),
            None => {}
        }
        if let Some(mtu) = section.mtu
            && self.sections.get(name).is_none_or(|own| own.mtu.is_none())
        {
            wanted.mtu = mtu;
        }
        self.wanted.insert(name.to_owned(), wanted);
    }

    fn vlans(&mut self, path: &[&str], vlan: &PortVlan) -> BTreeMap<u16, VlanMembership> {
        let at = |key: &'static str| [path, &["vlan", key]].concat();
        let tags: Vec<u16> = vlan.trunk_tags.iter().flat_map(|tags| tags.all()).collect();
        if let Some(wrong) = tags.iter().find(|tag| !is_vlan(**tag)) {
            self.report(&at("trunk-tags"), format!("A VLAN is 1 to 4094, not {wrong}"), None);
        }
        if let Some(wrong) = vlan.tag.filter(|tag| !is_vlan(*tag)) {
            self.report(&at("tag"), format!("A VLAN is 1 to 4094, not {wrong}"), None);
        }
        let native = VlanMembership { pvid: true, untagged: true };
        match vlan.mode {
            PortMode::Access => {
                if !tags.is_empty() || vlan.enable_native {
                    self.report(
                        &at("mode"),
                        "An access port has one VLAN: `tag`",
                        Some("take trunk-tags and enable-native out, or write `mode: trunk`"),
                    );
                }
                if vlan.tag.is_none() {
                    self.report(&at("mode"), "An access port needs a `tag`", None);
                }
                vlan.tag.map(|tag| (tag, native)).into_iter().collect()
            }
            PortMode::Trunk => {
                if vlan.enable_native != vlan.tag.is_some() {
                    self.report(
                        &at("mode"),
                        "A trunk's native VLAN needs both `enable-native: true` and `tag`",
                        None,
                    );
                }
                if tags.is_empty() && !vlan.enable_native {
                    self.report(&at("mode"), "A trunk needs `trunk-tags`", None);
                }
                let tagged = tags.into_iter().map(|tag| (tag, VlanMembership::default()));
                tagged.chain(vlan.tag.map(|tag| (tag, native))).collect()
            }
        }
    }
}
