//! Virtual functions: how many, how they are made, and what each has.

use std::collections::{BTreeMap, BTreeSet};

use netconfig::{EswitchMode, LinkMode, MacAddress, VfAttributes, VfState, VlanProtocol};
use vfio::PciAddress;
use vfio::inventory::Function;

use super::Whole;
use crate::apply::Undo;
use crate::config::{Sriov, derived_mac};
use crate::plan::Step;
use crate::plan::nic::{COLLISION, collision, holder_of_mac};

impl Whole<'_> {
    pub(super) fn sriov(&mut self) {
        let pfs = self.pfs();
        let named: BTreeMap<(PciAddress, u16), VfAttributes> = pfs
            .iter()
            .flat_map(|(pf, (name, sriov))| (0..sriov.num_vfs).map(move |vf| (*pf, vf, *name, *sriov)))
            .map(|(pf, vf, name, sriov)| ((pf, vf), self.attributes(name, sriov, vf)))
            .collect();
        let macs: BTreeSet<MacAddress> =
            named.values().filter_map(|attributes| attributes.mac_address).collect();
        for (address, (name, sriov)) in pfs {
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
                let before = self.as_it_was(pf, sriov, settings.eswitch_mode, vf, fresh);
                let mut wanted = named.get(&(address, vf)).cloned().unwrap_or_default().or(&before);
                let now = (!fresh).then(|| host.vfs.get(&address)?.get(usize::from(vf))).flatten();
                // One that another VF is to have now, as its nic moved.
                let moved = now.and_then(|now| now.mac_address).filter(|mac| macs.contains(mac));
                if moved.is_some() && wanted.mac_address.is_none() {
                    wanted.mac_address = Some(MacAddress([0; 6]));
                }
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

    /// What a VF had before Throughway first changed it, which it gets again where the file does not say otherwise any more.
    /// What its predecessors had, when there was another number of them, is nothing to it.
    fn as_it_was(
        &self,
        pf: &Function,
        sriov: &Sriov,
        mode: Option<EswitchMode>,
        vf: u16,
        fresh: bool,
    ) -> VfAttributes {
        let originals = || self.originals.iter().enumerate();
        let made_anew = originals().find_map(|(at, undo)| match undo {
            Undo::Sriov { pf: of, before, eswitch_mode } if *of == pf.address => {
                let same = before.num_vfs == sriov.num_vfs && *eswitch_mode == sriov.eswitch_mode.or(mode);
                (!same).then_some(at)
            }
            _ => None,
        });
        let noted = originals().find_map(|(at, undo)| match undo {
            Undo::Vf { pf: of, before } if *of == pf.address && before.id == u32::from(vf) => {
                Some((at, before))
            }
            _ => None,
        });
        let Some((_, before)) = noted.filter(|(at, _)| made_anew.is_none_or(|made| *at > made)) else {
            return VfAttributes::default();
        };
        let was = VfAttributes {
            mac_address: before.mac_address,
            vlan_id: before.vlan_id,
            qos: before.qos,
            vlan_proto: before.vlan_proto,
            spoof_check: before.spoof_check,
            trust: before.trust,
            link_state: before.link_state,
            min_tx_rate: before.min_tx_rate,
            max_tx_rate: before.max_tx_rate,
        };
        if fresh { but_as_made(was) } else { was }
    }

    /// Addresses that are derived for nics which name their VF must be nobody else's on this host.
    pub(super) fn derived_macs(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let pfs: BTreeMap<&str, (PciAddress, &Sriov)> =
            self.pfs().into_iter().map(|(address, (name, sriov))| (name, (address, sriov))).collect();
        for (vm, guest) in &config.vms {
            for (key, nic) in &guest.nics {
                let (Some(name), Some(vf)) = (&nic.pf, nic.vf) else { continue };
                let Some((address, sriov)) = pfs.get(name.as_str()) else { continue };
                let mac = derived_mac(vm, key);
                if self.attributes(name, sriov, vf).mac_address != Some(mac) {
                    continue;
                }
                let gets_another = |pf: PciAddress, id: u32| {
                    self.steps.iter().any(|planned| match &planned.step {
                        Step::Resize { pf: of, .. } => *of == pf,
                        Step::SetVf { pf: of, vf, attributes, .. } => {
                            *of == pf && u32::from(*vf) == id && attributes.mac_address.is_some()
                        }
                        _ => false,
                    })
                };
                let holder = holder_of_mac(host, mac, (*address, vf), &gets_another);
                if let Some(holder) = holder {
                    let path = ["vms", vm.as_str(), "nics", key.as_str()];
                    self.planner.refuse(&path, collision(mac, &holder), Some(COLLISION));
                }
            }
        }
    }

    /// The file says itself how this link shall be.
    fn names_link(&self, name: &str) -> bool {
        let networks = &self.planner.config.networks;
        networks.contains_key(name) || networks.values().any(|section| section.ports.contains_key(name))
    }

    /// What a VF shall have: that of the nic which names it, then its own, then the defaults.
    pub(super) fn attributes(&self, pf: &str, sriov: &Sriov, vf: u16) -> VfAttributes {
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

/// Without what a VF has as it is made, with whatever driver.
fn but_as_made(was: VfAttributes) -> VfAttributes {
    VfAttributes {
        mac_address: was.mac_address.filter(|mac| !mac.is_zero()),
        vlan_id: was.vlan_id.filter(|vlan| *vlan != 0),
        qos: was.qos.filter(|qos| *qos != 0),
        vlan_proto: was.vlan_proto.filter(|proto| *proto != VlanProtocol::default()),
        spoof_check: was.spoof_check,
        trust: was.trust.filter(|trust| *trust),
        link_state: was.link_state.filter(|state| *state != LinkMode::Auto),
        min_tx_rate: was.min_tx_rate.filter(|rate| *rate != 0),
        max_tx_rate: was.max_tx_rate.filter(|rate| *rate != 0),
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
