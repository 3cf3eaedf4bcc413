//! What has to be done so that the host is as the whole file says. Pure.

use std::collections::BTreeMap;
use std::fmt;

use netconfig::merge::{Problem, merge, nats};
use netconfig::section::NetworkType;
use netconfig::{LinkSettings, VfAttributes, VfState};
use serde::Serialize;
use vfio::PciAddress;
use vfio::bind::VFIO_PCI;
use vfio::inventory::Function;

use super::management::Management;
use super::nic::derived_mac;
use super::{Planner, Refusal, Step, Target};
use crate::apply::Undo;
use crate::config::{Config, Sriov};
use crate::host::HostState;

/// All that is to be done to the host, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostPlan {
    /// Steps, each with what it does to others.
    pub steps: Vec<Planned>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Planned {
    /// What is done.
    pub step: Step,
    /// Who else feels it.
    pub blast: Vec<String>,
    /// It changes the way that the administrator comes by.
    pub management: bool,
}

impl HostPlan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// It changes the way that the administrator comes by, so somebody must say that he still comes in.
    pub fn needs_confirmation(&self) -> bool {
        self.steps.iter().any(|planned| planned.management)
    }
}

impl fmt::Display for HostPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("Nothing is to be done: the host is as the file says.");
        }
        for (at, planned) in self.steps.iter().enumerate() {
            writeln!(f, "{:>3}. {}", at + 1, planned.step)?;
            planned.blast.iter().try_for_each(|blast| writeln!(f, "       {blast}"))?;
            if planned.management {
                writeln!(f, "       ! this is the way to this box")?;
            }
        }
        let count = self.steps.len();
        write!(f, "{count} step{}.", if count == 1 { "" } else { "s" })?;
        if self.needs_confirmation() {
            f.write_str("\nAfter it `apply` waits for `throughway confirm`, and puts everything back where nobody does.")?;
        }
        Ok(())
    }
}

/// Plans the whole file. `originals` are things as they were before Throughway first changed them: what the file does not name
/// any more goes back to that.
pub fn whole(config: &Config, host: &HostState, originals: &[Undo]) -> Result<HostPlan, Vec<Refusal>> {
    let mut whole = Whole {
        planner: Planner::new(config, host, ""),
        management: Management::of(config, host),
        steps: Vec::new(),
    };
    whole.hugepages();
    whole.release(originals);
    whole.sriov();
    whole.networks();
    whole.nats();
    whole.devices();
    let Whole { planner, steps, .. } = whole;
    if planner.refusals.is_empty() { Ok(HostPlan { steps }) } else { Err(planner.refusals) }
}

/// Plans to put things back, last first: what is so already is left out.
pub fn release(config: &Config, host: &HostState, undo: &[Undo]) -> HostPlan {
    let management = Management::of(config, host);
    let steps = undo.iter().rev().filter(|undo| !host.is(undo)).map(|undo| {
        let step = Step::Release(undo.clone());
        Planned { management: management.touched_by(&step), step, blast: Vec::new() }
    });
    HostPlan { steps: steps.collect() }
}

struct Whole<'a> {
    planner: Planner<'a>,
    management: Management,
    steps: Vec<Planned>,
}

impl<'a> Whole<'a> {
    fn step(&mut self, step: Step, blast: Vec<String>) {
        let management = self.management.touched_by(&step);
        if !self.steps.iter().any(|planned| planned.step == step) {
            self.steps.push(Planned { step, blast, management });
        }
    }

    fn hugepages(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        for (size, to) in &config.host.hugepages {
            let Some(from) = host.hugepages.get(&size.0).copied() else {
                let path = ["host", "hugepages", &size.to_string()];
                let help = Some("1GiB pages need a processor that has pdpe1gb");
                self.planner.refuse(&path, format!("This host has no huge pages of {size}"), help);
                continue;
            };
            if from != *to {
                self.step(Step::Hugepages { size: *size, from, to: *to }, Vec::new());
            }
        }
    }

    /// What was changed once and is no longer named goes back to what it was, last first.
    fn release(&mut self, originals: &[Undo]) {
        let (config, host) = (self.planner.config, self.planner.host);
        let named_pfs = self.pfs();
        let wanted = merge(&config.networks, &host.links).unwrap_or_default();
        let lent = self.lent();
        for undo in originals.iter().rev() {
            let named = match undo {
                Undo::Hugepages { size, .. } => config.host.hugepages.contains_key(size),
                Undo::Link { name, .. } => {
                    wanted.iter().any(|(wanted, _)| wanted == name) || self.is_of_pf(name, &named_pfs)
                }
                Undo::Nat { name, .. } => {
                    config.networks.get(name).is_some_and(|section| section.kind == NetworkType::Nat)
                }
                Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => named_pfs.contains_key(pf),
                Undo::Driver { address, .. } => {
                    lent.iter().any(|target| self.address(target) == Some(*address))
                }
            };
            let gone = match undo {
                Undo::Driver { address, .. } => host.inventory.function(*address).is_none(),
                Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => host.inventory.function(*pf).is_none(),
                Undo::Link { .. } | Undo::Nat { .. } | Undo::Hugepages { .. } => false,
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
            Undo::Link { .. } | Undo::Nat { .. } | Undo::Hugepages { .. } => None,
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

    /// The PFs that the file names, each with its section and name.
    fn pfs(&mut self) -> BTreeMap<PciAddress, (&'a str, &'a Sriov)> {
        let config = self.planner.config;
        let mut found = BTreeMap::new();
        for (name, sriov) in &config.sriov {
            let Some(device) = config.devices.get(name) else { continue };
            if let Some(function) = self.planner.find(name, device) {
                found.insert(function.address, (name.as_str(), sriov));
            }
        }
        found
    }

    fn sriov(&mut self) {
        for (address, (name, sriov)) in self.pfs() {
            let host = self.planner.host;
            let Some((pf, interface)) = self.planner.able(name, sriov) else { continue };
            debug_assert_eq!(pf.address, address);
            let settings = host.pfs.get(&address).copied().unwrap_or_default();
            let from = pf.sriov.as_ref().map_or(0, |able| able.num_vfs);
            let mut fresh = from != sriov.num_vfs;
            if let Some(to) = sriov.eswitch_mode.filter(|to| Some(*to) != settings.eswitch_mode) {
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
                self.step(Step::SetVf { pf: address, interface, vf, attributes }, Vec::new());
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

    fn blast_of_resize(&self, pf: PciAddress, to: u16) -> Vec<String> {
        let Some(sriov) = self.planner.host.inventory.function(pf).and_then(|pf| pf.sriov.as_ref()) else {
            return Vec::new();
        };
        if sriov.num_vfs == 0 || sriov.num_vfs == to {
            return Vec::new();
        }
        let driver = |vf: &PciAddress| self.planner.host.inventory.function(*vf)?.driver.clone();
        let lose = |(index, vf): (usize, &PciAddress)| {
            driver(vf).map_or_else(
                || format!("VF {index} ({vf}) is made anew"),
                |driver| format!("VF {index} ({vf}) is taken from {driver} and made anew"),
            )
        };
        sriov.vfs.iter().enumerate().map(lose).collect()
    }

    fn networks(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let wanted = match merge(&config.networks, &host.links) {
            Ok(wanted) => wanted,
            Err(problems) => return self.refuse_networks(problems),
        };
        for (name, mut to) in wanted {
            let from = host.links.get(&name).cloned();
            // An address that the kernel chose is no wish of the file's.
            if let Some(from) = &from
                && config.networks.get(&name).is_none_or(|section| section.mac_address.is_none())
            {
                to.mac_address = from.mac_address;
            }
            self.port_is_free(&name, &to);
            if from.as_ref() == Some(&to) {
                continue;
            }
            let blast = blast_of_link(from.as_ref(), &to);
            self.step(Step::Link { name, from: from.map(Box::new), to: Some(Box::new(to)) }, blast);
        }
    }

    /// After the links: NAT networks are bridges first.
    fn nats(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let wanted = match nats(&config.networks) {
            Ok(wanted) => wanted,
            Err(problems) => return self.refuse_networks(problems),
        };
        for (name, to) in wanted {
            let from = host.nats.get(&name).cloned();
            if from.as_ref() != Some(&to) {
                self.step(Step::Nat { name, from: from.map(Box::new), to: Some(Box::new(to)) }, Vec::new());
            }
        }
    }

    fn refuse_networks(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            let path: Vec<&str> =
                std::iter::once("networks").chain(problem.path.iter().map(String::as_str)).collect();
            self.planner.refuse(&path, problem.message, problem.help);
        }
    }

    /// A bridge's port that a guest has is none.
    fn port_is_free(&mut self, name: &str, to: &LinkSettings) {
        let Some(controller) = &to.controller else { return };
        let host = self.planner.host;
        let function =
            host.inventory.functions.values().find(|function| function.interfaces.iter().any(|i| i == name));
        let Some(function) = function else { return };
        let path = ["networks", controller.as_str(), "ports", name];
        if let Some(holder) = host.held.get(&function.address) {
            let message = format!("`{name}` is {} and in use by guest `{}`", function.address, holder.vm);
            self.planner.refuse(&path, message, Some("stop that guest first"));
        } else if let Some(target) =
            self.lent().into_iter().find(|target| self.address(target) == Some(function.address))
        {
            let message = format!("`{name}` is {target}, which this file gives to a guest");
            self.planner.refuse(&path, message, Some("a function is either the host's or a guest's"));
        }
    }

    /// What the file gives to guests by name, so that it can be made ready: whole functions, and VFs that nics name.
    fn lent(&mut self) -> Vec<Target> {
        let config = self.planner.config;
        let mut lent = Vec::new();
        for vm in config.vms.values() {
            for given in vm.pci.values() {
                let Some(device) = config.devices.get(&given.device) else { continue };
                if let Some(function) = self.planner.find(&given.device, device) {
                    lent.extend(
                        self.planner.scope(function.address, device.group).into_iter().map(Target::Function),
                    );
                }
            }
            for nic in vm.nics.values() {
                let (Some(name), Some(vf)) = (&nic.pf, nic.vf) else { continue };
                let Some(device) = config.devices.get(name) else { continue };
                if let Some(pf) = self.planner.find(name, device) {
                    lent.push(Target::Vf { pf: pf.address, vf });
                }
            }
        }
        lent
    }

    /// Where a target is now; none for a VF that is yet to be made.
    fn address(&self, target: &Target) -> Option<PciAddress> {
        match target {
            Target::Function(address) => Some(*address),
            Target::Vf { pf, vf } => {
                let sriov = self.planner.host.inventory.function(*pf)?.sriov.as_ref()?;
                sriov.vfs.get(usize::from(*vf)).copied()
            }
        }
    }

    fn devices(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let wants = config.vms.iter().find_map(|(name, vm)| {
            let nic = vm.nics.keys().next().map(|key| ("nics", key));
            let (kind, key) = nic.or_else(|| vm.pci.keys().next().map(|key| ("pci", key)))?;
            Some(["vms", name, kind, key])
        });
        if let Some(path) = wants {
            self.planner.iommu(&path);
        }
        for (name, vm) in &config.vms {
            for (key, given) in &vm.pci {
                let path = ["vms", name.as_str(), "pci", key, "device"];
                let Some(device) = config.devices.get(&given.device) else { continue };
                let Some(function) = self.planner.find(&given.device, device) else { continue };
                let functions = self.planner.scope(function.address, device.group);
                let lent = |function: &Function| function.driver.as_deref() == Some(VFIO_PCI);
                if functions.iter().all(|address| host.inventory.function(*address).is_some_and(lent)) {
                    continue;
                }
                self.guard(&path, &functions);
                self.planner.give(&path, function.address, device.group);
                for address in functions {
                    let blast = self.blast_of_lending(address);
                    self.step(Step::Lend(Target::Function(address)), blast);
                }
            }
        }
        self.one_guest_a_vf();
        for target in self.lent() {
            let Target::Vf { pf, .. } = &target else { continue };
            let remade = self
                .steps
                .iter()
                .any(|planned| matches!(planned.step, Step::Resize { pf: of, .. } if of == *pf));
            let address = self.address(&target).filter(|_| !remade);
            let driver = address.and_then(|address| host.inventory.function(address)?.driver.as_deref());
            if driver != Some(VFIO_PCI) {
                let blast = address.map(|address| self.blast_of_lending(address)).unwrap_or_default();
                self.step(Step::Lend(target), blast);
            }
        }
    }

    /// Two guests that name the same VF could never run together.
    fn one_guest_a_vf(&mut self) {
        let mut owners = BTreeMap::new();
        for (vm, guest) in &self.planner.config.vms {
            for (key, nic) in &guest.nics {
                let (Some(pf), Some(vf)) = (&nic.pf, nic.vf) else { continue };
                let owner = format!("vms.{vm}.nics.{key}");
                if let Some(first) = owners.insert((pf, vf), owner) {
                    let message = format!("VF {vf} of `{pf}` is given away already, as {first}");
                    let help = Some("give each nic a VF of its own, or use a pool");
                    self.planner.refuse(&["vms", vm, "nics", key, "vf"], message, help);
                }
            }
        }
    }

    /// What the administrator comes by is never given away, nor what shares its group.
    fn guard(&mut self, path: &[&str], functions: &[PciAddress]) {
        let host = self.planner.host;
        for address in functions {
            let group = host.inventory.group_of(*address).into_iter().flat_map(|group| &group.members);
            let members = group.map(|member| member.address).chain([*address]);
            for member in members {
                let Some(way) = self.management.by(host, member) else { continue };
                let message = if member == *address {
                    format!("{address} is the way to this box: {way}")
                } else {
                    format!(
                        "{address} shares its IOMMU group with {member}, which is the way to this box: {way}"
                    )
                };
                self.planner.refuse(path, message, Some("give another card, or let the administrator come another way (`management.interface`)"));
                break;
            }
        }
    }

    fn blast_of_lending(&self, address: PciAddress) -> Vec<String> {
        let Some(function) = self.planner.host.inventory.function(address) else { return Vec::new() };
        let interfaces = function.interfaces.iter().map(|name| format!("{name} goes away"));
        let disks = function.block_devices.iter().map(|name| format!("{name} goes away"));
        interfaces.chain(disks).collect()
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

fn blast_of_link(from: Option<&LinkSettings>, to: &LinkSettings) -> Vec<String> {
    let Some(from) = from else { return Vec::new() };
    let mut blast = Vec::new();
    let lost = from.addresses.difference(&to.addresses);
    blast.extend(lost.map(|address| format!("{address} is taken away")));
    if let Some(controller) = from.controller.as_ref().filter(|_| from.controller != to.controller) {
        blast.push(format!("leaves {controller}"));
    }
    let routes = from.gateways.difference(&to.gateways);
    blast.extend(routes.map(|gateway| format!("the default route by {gateway} is taken away")));
    blast
}
