//! Virtual functions: how many, how they are made, and what each has.

use netconfig::{EswitchMode, VfAttributes, VfState};
use vfio::PciAddress;

use super::Whole;
use crate::config::Sriov;
use crate::plan::Step;
use crate::plan::nic::derived_mac;

impl Whole<'_> {
    pub(super) fn sriov(&mut self) {
        for (address, (name, sriov)) in self.pfs() {
            let host = self.planner.host;
            let Some((pf, interface)) = self.planner.able(name, sriov) else { continue };
            debug_assert_eq!(pf.address, address);
            let settings = host.pfs.get(&address).copied().unwrap_or_default();
            let from = pf.sriov.as_ref().map_or(0, |able| able.num_vfs);
            let mut fresh = from != sriov.num_vfs;
            // A driver that knows no modes runs its switch by MAC address and VLAN.
            let mode = settings.eswitch_mode.unwrap_or(EswitchMode::Legacy);
            if let Some(to) = sriov.eswitch_mode.filter(|to| *to != mode) {
                if settings.eswitch_mode.is_none() {
                    let message = format!("{address} has no eswitch-mode: its driver offers none");
                    let help = "take it out, or use a card whose driver has devlink's eswitch";
                    self.planner.refuse(&["sriov", name, "eswitch-mode"], message, Some(help));
                    continue;
                }
                // Drivers change it only without VFs.
                if from != 0 {
                    if let Some((message, help)) = self.planner.in_the_way(pf, 0) {
                        self.planner.refuse(&["sriov", name, "eswitch-mode"], message, Some(help));
                        continue;
                    }
                    let blast = self.blast_of_resize(address, 0);
                    self.step(Step::Resize { pf: address, from, to: 0 }, blast);
                    fresh = true;
                }
                self.step(Step::Eswitch { pf: address, from: settings.eswitch_mode, to }, Vec::new());
            }
            let up = host.links.get(&interface).is_some_and(|link| link.up);
            if sriov.num_vfs > 0 && !up && !self.names_link(&interface) {
                self.step(Step::BringUp { pf: address, interface: interface.clone() }, Vec::new());
            }
            if settings.drivers_autoprobe.is_some_and(|on| on != sriov.drivers_autoprobe) {
                self.step(Step::Autoprobe { pf: address, on: sriov.drivers_autoprobe }, Vec::new());
            }
            if fresh {
                let from =
                    if self.steps.iter().any(
                        |planned| matches!(planned.step, Step::Resize { pf, to: 0, .. } if pf == address),
                    ) {
                        0
                    } else {
                        from
                    };
                if from != sriov.num_vfs {
                    let blast = self.blast_of_resize(address, sriov.num_vfs);
                    self.step(Step::Resize { pf: address, from, to: sriov.num_vfs }, blast);
                }
            }
            for vf in 0..sriov.num_vfs {
                let wanted = self.attributes(name, sriov, vf);
                let now = (!fresh).then(|| host.vfs.get(&address)?.get(usize::from(vf))).flatten();
                let attributes = now.map_or_else(|| wanted.clone(), |now| differing(&wanted, now));
                if attributes == VfAttributes::default() {
                    continue;
                }
                // A guest that runs has what its nic says; it gets the file's when it starts again.
                let held = pf.sriov.as_ref().and_then(|able| able.vfs.get(usize::from(vf)));
                if !fresh && held.is_some_and(|address| host.held.contains_key(address)) {
                    continue;
                }
                let interface = interface.clone();
                let from = now.cloned();
                self.step(Step::SetVf { pf: address, interface, vf, from, attributes }, Vec::new());
            }
        }
    }

    /// The file says itself how this link shall be.
    fn names_link(&self, name: &str) -> bool {
        let networks = &self.planner.config.networks;
        networks.contains_key(name) || networks.values().any(|section| section.ports.contains_key(name))
    }

    /// What a VF shall have: that of the nic which names it, then its own, then the defaults.
    fn attributes(&self, pf: &str, sriov: &Sriov, vf: u16) -> VfAttributes {
        let own = sriov.vfs.iter().find(|entry| entry.id == vf);
        let own = own.map(|entry| entry.attributes.clone()).unwrap_or_default().or(&sriov.vf_defaults);
        let nics = self
            .planner
            .config
            .vms
            .iter()
            .flat_map(|(vm, guest)| guest.nics.iter().map(move |(key, nic)| (vm, key, nic)));
        let named = nics.into_iter().find(|(_, _, nic)| nic.pf.as_deref() == Some(pf) && nic.vf == Some(vf));
        let Some((vm, key, nic)) = named else { return own };
        let mut attributes = nic.attributes.clone().or(&own);
        attributes.mac_address = attributes.mac_address.or_else(|| Some(derived_mac(vm, key)));
        attributes
    }

    pub(super) fn blast_of_resize(&self, pf: PciAddress, to: u16) -> Vec<String> {
        let Some(sriov) = self.planner.host.inventory.function(pf).and_then(|pf| pf.sriov.as_ref()) else {
            return Vec::new();
        };
        if sriov.num_vfs == 0 || sriov.num_vfs == to {
            return Vec::new();
        }
        let driver = |vf: &PciAddress| self.planner.host.inventory.function(*vf)?.driver.clone();
        let lose = |(index, vf): (usize, &PciAddress)| {
            let then = if index < usize::from(to) { "is made anew" } else { "goes away" };
            driver(vf).map_or_else(
                || format!("VF {index} ({vf}) {then}"),
                |driver| format!("VF {index} ({vf}), which {driver} has, {then}"),
            )
        };
        sriov.vfs.iter().enumerate().map(lose).collect()
    }
}

/// What of `wanted` a VF does not have. What the driver does not report cannot be compared, and is left.
fn differing(wanted: &VfAttributes, now: &VfState) -> VfAttributes {
    fn unless<T: PartialEq>(wanted: Option<T>, now: Option<T>) -> Option<T> {
        wanted.filter(|wanted| now.is_some_and(|now| now != *wanted))
    }
    let mut left = VfAttributes {
        mac_address: unless(wanted.mac_address, now.mac_address),
        vlan_id: unless(wanted.vlan_id, now.vlan_id),
        qos: unless(wanted.qos, now.qos),
        vlan_proto: unless(wanted.vlan_proto, now.vlan_proto),
        spoof_check: unless(wanted.spoof_check, now.spoof_check),
        trust: unless(wanted.trust, now.trust),
        link_state: unless(wanted.link_state, now.link_state),
        min_tx_rate: unless(wanted.min_tx_rate, now.min_tx_rate),
        max_tx_rate: unless(wanted.max_tx_rate, now.max_tx_rate),
    };
    // A tag's parts are set together.
    if left.qos.is_some() || left.vlan_proto.is_some() {
        left.vlan_id = wanted.vlan_id.or(now.vlan_id);
    }
    left
}
