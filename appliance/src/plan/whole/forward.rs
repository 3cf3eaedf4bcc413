//! What cards are told of the bridges that they are ports of: a card's own switch floods nothing from its VFs to its port's
//! interface, so what is for a guest on the bridge would leave by the wire.

use std::collections::{BTreeMap, BTreeSet};

use netconfig::merge::merge;
use netconfig::section::NetworkType;
use netconfig::{EswitchMode, LinkKind, MacAddress};

use super::Whole;
use crate::apply::Undo;
use crate::config::{Sriov, derived_mac};
use crate::plan::Step;

/// A PF whose interface is a port of a bridge, perhaps by a bond.
struct Port<'a> {
    pf: &'a str,
    sriov: &'a Sriov,
    interface: &'a str,
    bridge: String,
}

impl<'a> Whole<'a> {
    /// After the links: what lacks.
    pub(super) fn forward(&mut self) {
        let host = self.planner.host;
        for (interface, (bridge, macs)) in self.told() {
            let there = host.forwarded.get(interface);
            let macs: BTreeSet<MacAddress> =
                macs.into_iter().filter(|mac| !there.is_some_and(|there| there.contains(mac))).collect();
            if !macs.is_empty() {
                self.step(Step::Forward { link: interface.to_owned(), bridge, macs }, Vec::new());
            }
        }
    }

    /// For each interface of a PF on a bridge: the bridge, and the guests on it that are not the PF's own.
    pub(super) fn told(&mut self) -> BTreeMap<&'a str, (String, BTreeSet<MacAddress>)> {
        let (config, host) = (self.planner.config, self.planner.host);
        let ports = self.ports();
        let macs_of_bridges = self.macs_of_bridges(&ports);
        let mut told = BTreeMap::new();
        for port in &ports {
            let section = config.networks.get(&port.bridge);
            let mut macs: BTreeSet<MacAddress> =
                section.into_iter().flat_map(|section| section.guest_macs.iter().copied()).collect();
            let beside = |other: &&Port<'_>| other.bridge == port.bridge && other.interface != port.interface;
            for other in ports.iter().filter(beside) {
                macs.extend(self.macs_of(other));
            }
            macs.extend(self.macs_of_pools(port, &ports));
            macs.extend(self.macs_of_cards(&port.bridge));
            // The box itself, where the bridge does not have the card's own address.
            let own = host.links.get(port.interface).and_then(|link| link.mac_address);
            let bridge = macs_of_bridges.get(&port.bridge).copied().filter(|bridge| Some(*bridge) != own);
            macs.extend(bridge);
            if macs.is_empty() {
                continue;
            }
            for own in self.macs_of(port) {
                macs.remove(&own);
            }
            if !macs.is_empty() {
                told.insert(port.interface, (port.bridge.clone(), macs));
            }
        }
        told
    }

    /// The address of each bridge that has a PF as a port: that of a PF where it is yet to be made. Left to the kernel it would
    /// be the least of all ports', and change with them.
    fn macs_of_bridges(&self, ports: &[Port<'_>]) -> BTreeMap<String, MacAddress> {
        let (config, host) = (self.planner.config, self.planner.host);
        let mut macs = BTreeMap::new();
        for port in ports {
            let said = config.networks.get(&port.bridge).and_then(|section| section.mac_address);
            let now = host.links.get(&port.bridge);
            let own = || host.links.get(port.interface)?.mac_address;
            let mac = said.or_else(|| now.map_or_else(own, |now| now.mac_address));
            if let Some(mac) = mac {
                macs.entry(port.bridge.clone()).or_insert(mac);
            }
        }
        macs
    }

    /// The addresses that bridges get as they are made.
    pub(super) fn macs_of_new_bridges(&mut self) -> BTreeMap<String, MacAddress> {
        let ports = self.ports();
        let mut macs = self.macs_of_bridges(&ports);
        macs.retain(|bridge, _| !self.planner.host.links.contains_key(bridge));
        macs
    }

    /// PFs with VFs whose switch is the card's own.
    fn ports(&mut self) -> Vec<Port<'a>> {
        let (config, host) = (self.planner.config, self.planner.host);
        let wanted: BTreeMap<_, _> =
            merge(&config.networks, &host.links).unwrap_or_default().into_iter().collect();
        // What the file does not name is as it was before, or as others made it.
        let originals = self.originals;
        let was = |name: &str| {
            originals.iter().find_map(|undo| match undo {
                Undo::Link { name: of, before } if of == name => Some(before.as_deref()),
                _ => None,
            })
        };
        let controller = |name: &str| {
            let link = wanted.get(name).or_else(|| was(name).unwrap_or_else(|| host.links.get(name)));
            link.and_then(|link| link.controller.clone())
        };
        let is_bridge = |name: &str| match config.networks.get(name) {
            Some(section) => section.kind == NetworkType::Bridge,
            None => host.links.get(name).is_some_and(|link| matches!(link.kind, LinkKind::Bridge(_))),
        };
        let mut ports = Vec::new();
        for (address, (pf, sriov)) in self.pfs() {
            let mode = host.pfs.get(&address).and_then(|settings| settings.eswitch_mode);
            if sriov.num_vfs == 0 || sriov.eswitch_mode.or(mode) == Some(EswitchMode::Switchdev) {
                continue;
            }
            let function = host.inventory.function(address);
            let Some(interface) = function.and_then(|function| function.interfaces.first()) else { continue };
            let (mut at, mut seen) = (controller(interface), BTreeSet::new());
            while let Some(above) = at.filter(|above| seen.insert(above.clone())) {
                if is_bridge(&above) {
                    ports.push(Port { pf, sriov, interface, bridge: above });
                    break;
                }
                at = controller(&above);
            }
        }
        ports
    }

    /// Addresses of a PF's VFs, as far as the file says them.
    fn macs_of(&self, port: &Port<'_>) -> BTreeSet<MacAddress> {
        let vfs = 0..port.sriov.num_vfs;
        vfs.filter_map(|vf| self.attributes(port.pf, port.sriov, vf).mac_address).collect()
    }

    /// Addresses of virtio-net cards on the bridge itself.
    fn macs_of_cards(&self, bridge: &str) -> BTreeSet<MacAddress> {
        let vms = self.planner.config.vms.iter();
        let nics = vms.flat_map(|(vm, guest)| guest.nics.iter().map(move |(key, nic)| (vm, key, nic)));
        nics.filter(|(_, _, nic)| nic.network.as_deref() == Some(bridge))
            .map(|(vm, key, nic)| nic.attributes.mac_address.unwrap_or_else(|| derived_mac(vm, key)))
            .collect()
    }

    /// Addresses of nics that get a VF of another port of the bridge, whichever it will be.
    fn macs_of_pools(&self, port: &Port<'_>, ports: &[Port<'_>]) -> BTreeSet<MacAddress> {
        let config = self.planner.config;
        let beside = |pf: &String| {
            pf != port.pf && ports.iter().any(|other| other.pf == pf && other.bridge == port.bridge)
        };
        let nics =
            config.vms.iter().flat_map(|(vm, guest)| guest.nics.iter().map(move |(key, nic)| (vm, key, nic)));
        nics.filter_map(|(vm, key, nic)| {
            let pool = config.pools.get(nic.pool.as_deref()?)?;
            let all = !pool.pf.is_empty() && pool.pf.iter().all(beside);
            all.then(|| nic.attributes.mac_address.unwrap_or_else(|| derived_mac(vm, key)))
        })
        .collect()
    }
}
