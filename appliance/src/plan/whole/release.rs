//! What goes back to what it was, as the file does not name it any more.

use std::collections::BTreeMap;

use netconfig::LinkSettings;
use netconfig::merge::merge;
use netconfig::section::NetworkType;
use vfio::PciAddress;

use super::Whole;
use crate::apply::{Undo, backwards};
use crate::config::Sriov;
use crate::plan::Step;

impl<'a> Whole<'a> {
    /// What was changed once and is no longer named goes back to what it was, last first.
    pub(super) fn release(&mut self) {
        let originals = self.originals;
        let (config, host) = (self.planner.config, self.planner.host);
        let named_pfs = self.pfs();
        let wanted = merge(&config.networks, &host.links).unwrap_or_default();
        let lent = self.lent();
        let told = self.told();
        for undo in backwards(originals) {
            let named = match undo {
                Undo::Hugepages { size, .. } => config.host.hugepages.contains_key(size),
                Undo::Link { name, .. } if wanted.iter().any(|(wanted, _)| wanted == name) => true,
                Undo::Link { name, before: Some(before) } if self.is_of_pf(name, &named_pfs) => {
                    self.but_up(name, before);
                    true
                }
                Undo::Link { name, .. } => self.is_of_pf(name, &named_pfs),
                Undo::Nat { name, .. } => {
                    config.networks.get(name).is_some_and(|section| section.kind == NetworkType::Nat)
                }
                Undo::Dhcp { name, .. } => config.networks.get(name).is_some_and(|section| section.dhcp4),
                Undo::Forward { link, mac, .. } => {
                    told.get(link.as_str()).is_some_and(|(_, macs)| macs.contains(mac))
                }
                Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => named_pfs.contains_key(pf),
                Undo::Driver { address, .. } => {
                    lent.iter().any(|target| self.address(target) == Some(*address))
                }
                Undo::Routes { .. } => true,
            };
            let gone = match undo {
                Undo::Driver { address, .. } => host.inventory.function(*address).is_none(),
                Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => host.inventory.function(*pf).is_none(),
                Undo::Forward { link, .. } => !host.links.contains_key(link),
                Undo::Link { .. }
                | Undo::Nat { .. }
                | Undo::Dhcp { .. }
                | Undo::Hugepages { .. }
                | Undo::Routes { .. } => false,
            };
            if named || gone || host.is(undo) {
                continue;
            }
            if let Some(why) = self.in_use(undo) {
                self.planner.refuse(
                    &[],
                    format!("{undo} cannot be put back: {why}"),
                    Some("stop that guest first"),
                );
                continue;
            }
            let blast = self.blast_of_release(undo);
            self.step(Step::Release(undo.clone()), blast);
        }
    }

    /// The link of a PF that the file still names, as it was, but up for the sake of its VFs.
    fn but_up(&mut self, name: &str, before: &LinkSettings) {
        let Some(from) = self.planner.host.links.get(name).cloned() else { return };
        let to = LinkSettings { up: before.up || from.up, mac_address: from.mac_address, ..before.clone() };
        if from != to {
            self.step(
                Step::Link { name: name.to_owned(), from: Some(Box::new(from)), to: Some(Box::new(to)) },
                Vec::new(),
            );
        }
    }

    /// A link is that of a PF that the file names: it is up for its VFs.
    fn is_of_pf(&self, name: &str, pfs: &BTreeMap<PciAddress, (&'a str, &'a Sriov)>) -> bool {
        let functions = pfs.keys().filter_map(|pf| self.planner.host.inventory.function(*pf));
        functions.flat_map(|function| &function.interfaces).any(|interface| interface == name)
    }

    /// A guest that holds what would be put back.
    fn in_use(&self, undo: &Undo) -> Option<String> {
        let host = self.planner.host;
        let held = |address: &PciAddress| {
            host.held.get(address).map(|holder| format!("guest `{}` has {address}", holder.vm))
        };
        match undo {
            Undo::Driver { address, .. } => held(address),
            Undo::Sriov { pf, before, .. } => {
                let sriov = host.inventory.function(*pf)?.sriov.as_ref()?;
                (sriov.num_vfs != before.num_vfs).then(|| sriov.vfs.iter().find_map(held)).flatten()
            }
            Undo::Vf { pf, before } => {
                let sriov = host.inventory.function(*pf)?.sriov.as_ref()?;
                held(sriov.vfs.get(usize::try_from(before.id).ok()?)?)
            }
            Undo::Link { .. }
            | Undo::Nat { .. }
            | Undo::Dhcp { .. }
            | Undo::Forward { .. }
            | Undo::Hugepages { .. }
            | Undo::Routes { .. } => None,
        }
    }

    fn blast_of_release(&self, undo: &Undo) -> Vec<String> {
        match undo {
            Undo::Link { name, before: None } => self.ports_of(name),
            Undo::Sriov { pf, before, .. } => self.blast_of_resize(*pf, before.num_vfs),
            _ => Vec::new(),
        }
    }

    fn ports_of(&self, controller: &str) -> Vec<String> {
        let links = self.planner.host.links.iter();
        links
            .filter(|(_, settings)| settings.controller.as_deref() == Some(controller))
            .map(|(name, _)| format!("{name} is no port any more"))
            .collect()
    }
}
