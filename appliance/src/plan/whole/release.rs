//! What goes back to what it was, as the file does not name it any more.

use std::collections::BTreeMap;

use netconfig::LinkSettings;
use netconfig::merge::merge;
use netconfig::section::NetworkType;
use vfio::PciAddress;
use vfio::bind::VFIO_PCI;

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
        // PFs whose VFs are made anew by what was planned so far, and how many: VFs and their drivers come after them.
        let mut remade = BTreeMap::new();
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
                        || self.is_of_drivers(*address, &named_pfs)
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
            let anew = Self::comes_anew(undo, &remade);
            if named || !anew && (gone || host.is(undo)) {
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
            if let Undo::Sriov { pf, before, .. } = undo
                && self.is_remade(undo)
            {
                remade.insert(*pf, before.num_vfs);
            }
            let blast = self.blast_of_release(undo);
            self.step(Step::Release(undo.clone()), blast);
        }
    }

    /// Putting this back makes the VFs of a PF anew.
    fn is_remade(&self, undo: &Undo) -> bool {
        let Undo::Sriov { pf, before, eswitch_mode } = undo else { return false };
        let host = self.planner.host;
        let sriov = host.inventory.function(*pf).and_then(|pf| pf.sriov.as_ref());
        let mode = host.pfs.get(pf).and_then(|settings| settings.eswitch_mode);
        sriov.is_some_and(|sriov| sriov.num_vfs != before.num_vfs) || mode != *eswitch_mode
    }

    /// A VF, or its driver, that will be as new once its PF's VFs are made anew, whatever it is now.
    fn comes_anew(undo: &Undo, remade: &BTreeMap<PciAddress, u16>) -> bool {
        match undo {
            Undo::Vf { pf, before } => remade.get(pf).is_some_and(|vfs| before.id < u32::from(*vfs)),
            Undo::Driver { pf: Some(pf), .. } => remade.contains_key(pf),
            _ => false,
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

    /// A VF of a PF that the file names, and not lent: drivers take it or not, as `drivers-autoprobe` says. One that is lent stays so
    /// where it is about to go with all others: how it was is still to be known when they come back.
    fn is_of_drivers(&self, address: PciAddress, pfs: &BTreeMap<PciAddress, (&'a str, &'a Sriov)>) -> bool {
        let host = self.planner.host;
        let Some(function) = host.inventory.function(address) else { return false };
        let named = function.physical_function.and_then(|pf| Some((pf, pfs.get(&pf)?.1)));
        named.is_some_and(|(pf, wanted)| {
            let now = host.inventory.function(pf).and_then(|pf| Some(pf.sriov.as_ref()?.num_vfs));
            let mode = host.pfs.get(&pf).and_then(|settings| settings.eswitch_mode);
            function.driver.as_deref() != Some(VFIO_PCI)
                || now != Some(wanted.num_vfs)
                || wanted.eswitch_mode.is_some_and(|wanted| mode != Some(wanted))
        })
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
