//! Network cards: the VF that a guest gets, and what the PF needs for it.

use netconfig::{MacAddress, VfAttributes};
use vfio::PciAddress;
use vfio::inventory::Function;

use super::device::{ANOTHER_WAY, STOP_IT, give_way, held_by, used_for, way_in};
use super::{Planner, SlotPlan, Step, Target};
use crate::config::{Nic, Sriov, Vm, derived_mac};
use crate::host::HostState;

/// A VF that a nic will get.
#[derive(Clone)]
pub(super) struct Choice<'a> {
    pub(super) pf: &'a Function,
    pub(super) sriov: &'a Sriov,
    pub(super) interface: String,
    pub(super) vf: u16,
}

impl Choice<'_> {
    /// Where it is; none where it is made, perhaps anew, when the plan is applied.
    pub(super) fn address(&self) -> Option<PciAddress> {
        let able = self.pf.sriov.as_ref().filter(|able| able.num_vfs == self.sriov.num_vfs)?;
        able.vfs.get(usize::from(self.vf)).copied()
    }
}

impl<'a> Planner<'a> {
    pub(super) fn nics(&mut self, vm: &Vm) {
        let mut given = Vec::new();
        for (key, nic) in vm.nics.iter().filter(|(_, nic)| nic.network.is_none()) {
            let Some(choice) = self.choose(key, nic) else { continue };
            self.prepare(&choice);
            let target = Target::Vf { pf: choice.pf.address, vf: choice.vf };
            let attributes = self.attributes(key, nic, &choice);
            self.mac_is_free(key, &choice, &attributes);
            given.extend(choice.address().map(|address| (key, address)));
            let (pf, vf, interface) = (choice.pf.address, choice.vf, choice.interface);
            self.plan.steps.push(Step::SetVf { pf, interface, vf, from: None, attributes });
            self.plan.steps.push(Step::Lend(target.clone()));
            self.plan.slots.push(SlotPlan { name: key.clone(), functions: vec![target] });
        }
        // Only now is it known what goes to this guest with it.
        let mut all: Vec<_> = given.iter().map(|(_, address)| *address).collect();
        all.extend(self.taken.iter().filter_map(|target| match target {
            Target::Function(address) => Some(*address),
            Target::Vf { .. } => None,
        }));
        for (key, address) in given {
            self.viable(&["vms", self.vm, "nics", key], address, &all);
        }
    }

    fn choose(&mut self, key: &str, nic: &Nic) -> Option<Choice<'a>> {
        if let (Some(pf), Some(vf)) = (&nic.pf, nic.vf) {
            let choice = self.physical(pf, vf)?;
            if let Some((message, help)) = self.busy(&choice) {
                self.refuse(&["vms", self.vm, "nics", key, "vf"], message, help);
                return None;
            }
            return Some(self.take(choice));
        }
        self.any_of(key, nic.pool.as_deref()?)
    }

    /// A VF of a PF that is there and fit for it.
    pub(super) fn physical(&mut self, name: &str, vf: u16) -> Option<Choice<'a>> {
        let sriov = self.config.sriov.get(name)?;
        let (pf, interface) = self.able(name, sriov)?;
        Some(Choice { pf, sriov, interface, vf })
    }

    /// The PF that a name means, and its interface, when it is there and can have so many VFs.
    pub(super) fn able(&mut self, name: &str, sriov: &Sriov) -> Option<(&'a Function, String)> {
        let pf = self.find(name, self.config.devices.get(name)?)?;
        let path = ["sriov", name, "num-vfs"];
        let Some(able) = &pf.sriov else {
            self.refuse(
                &["sriov", name],
                format!("{} offers no virtual functions", pf.address),
                Some("switch SR-IOV on in the firmware, or take another port"),
            );
            return None;
        };
        if sriov.num_vfs > able.total_vfs {
            self.refuse(
                &path,
                format!(
                    "{} has at most {} virtual functions, and {} are asked for",
                    pf.address, able.total_vfs, sriov.num_vfs
                ),
                Some("ask for fewer; on some cards the vendor's tool raises the limit"),
            );
            return None;
        }
        if able.num_vfs != sriov.num_vfs
            && let Some((message, help)) = self.in_the_way(pf, sriov.num_vfs)
        {
            self.refuse(&path, message, Some(help));
            return None;
        }
        let Some(interface) = pf.interfaces.first() else {
            let (address, host) = (pf.address, self.host);
            if let Some(holder) = host.held.get(&address) {
                self.refuse(&["sriov", name], held_by(address, holder), Some(STOP_IT));
                return None;
            }
            let driver =
                pf.driver.as_deref().map_or("no driver has it".into(), |name| format!("{name} has it"));
            self.refuse(
                &["sriov", name],
                format!("{address} has no network interface: {driver}"),
                Some(
                    "its virtual functions are set up through the interface: bind it to its own host driver",
                ),
            );
            return None;
        };
        Some((pf, interface.clone()))
    }

    /// What keeps the number of VFs from being changed: it changes only by removing all of them.
    pub(super) fn in_the_way(&self, pf: &Function, to: u16) -> Option<(String, &'static str)> {
        let (host, able) = (self.host, pf.sriov.as_ref()?);
        able.vfs.iter().find_map(|vf| {
            let taking = format!("num-vfs {} -> {to} would take {vf} from", able.num_vfs);
            if let Some(holder) = host.held.get(vf) {
                let help = "stop that guest first: the number changes only by removing all virtual functions";
                return Some((format!("{taking} guest `{}` (process {})", holder.vm, holder.pid), help));
            }
            if self.taken.contains(&Target::Function(*vf)) {
                let help = "the number changes only by removing all virtual functions: leave it, or give that one as a nic";
                return Some((format!("{taking} this guest, which is given it under `pci`"), help));
            }
            if let Some(way) = self.management.by(host, *vf) {
                return Some((format!("{taking} the administrator, who comes in by {way}"), ANOTHER_WAY));
            }
            let used = host.uses.get(vf)?.first()?;
            Some((format!("{taking} the host: {used}"), give_way(used)))
        })
    }

    /// Why a VF cannot be had, and what to do.
    pub(super) fn busy(&self, choice: &Choice<'_>) -> Option<(String, Option<&'static str>)> {
        let (pf, vf, host) = (choice.pf.address, choice.vf, self.host);
        let address = choice.address();
        let here = [Some(Target::Vf { pf, vf }), address.map(Target::Function)];
        if here.into_iter().flatten().any(|target| self.taken.contains(&target)) {
            let help = "a VF can be given once: give each nic its own, or use a pool";
            return Some((format!("VF {vf} of {pf} is given to this guest already"), Some(help)));
        }
        let address = address?;
        if let Some(holder) = host.held.get(&address) {
            return Some((held_by(address, holder), Some(STOP_IT)));
        }
        if let Some(way) = self.management.by(host, address) {
            return Some((way_in(address, &way), Some(ANOTHER_WAY)));
        }
        let used = host.uses.get(&address)?.first()?;
        Some((used_for(address, used), Some(give_way(used))))
    }

    pub(super) fn take(&mut self, choice: Choice<'a>) -> Choice<'a> {
        self.taken.insert(Target::Vf { pf: choice.pf.address, vf: choice.vf });
        choice
    }

    /// What the PF needs before the VF: once a PF.
    fn prepare(&mut self, choice: &Choice<'_>) {
        let (pf, interface) = (choice.pf.address, choice.interface.clone());
        let done = |step: &Step| matches!(step, Step::BringUp { pf: other, .. } if *other == pf);
        if self.plan.steps.iter().any(done) {
            return;
        }
        self.plan.steps.push(Step::BringUp { pf, interface });
        let from = choice.pf.sriov.as_ref().map_or(0, |sriov| sriov.num_vfs);
        if from != choice.sriov.num_vfs {
            self.plan.steps.push(Step::Autoprobe { pf, on: choice.sriov.drivers_autoprobe });
            self.plan.steps.push(Step::Resize { pf, from, to: choice.sriov.num_vfs });
        }
    }

    /// The nic's own, then the VF's, then the defaults; a MAC address is derived where nobody says one.
    fn attributes(&self, key: &str, nic: &Nic, choice: &Choice<'_>) -> VfAttributes {
        let vf = choice.sriov.vfs.iter().find(|vf| vf.id == choice.vf);
        let own = vf.map(|vf| vf.attributes.clone()).unwrap_or_default();
        let mut attributes = nic.attributes.clone().or(&own).or(&choice.sriov.vf_defaults);
        attributes.mac_address = attributes.mac_address.or_else(|| Some(derived_mac(self.vm, key)));
        attributes
    }

    /// An address that was derived must be nobody else's on this host.
    fn mac_is_free(&mut self, key: &str, choice: &Choice<'_>, attributes: &VfAttributes) {
        let mac = derived_mac(self.vm, key);
        if attributes.mac_address != Some(mac) {
            return;
        }
        let remade = choice.address().is_none();
        let passed_over = |pf: PciAddress, _: u32| remade && pf == choice.pf.address;
        let target = (choice.pf.address, choice.vf);
        if let Some(holder) = holder_of_mac(self.host, mac, target, &passed_over) {
            self.refuse(&["vms", self.vm, "nics", key], collision(mac, &holder), Some(COLLISION));
        }
    }
}

/// What to do about it.
pub(super) const COLLISION: &str = "give this nic a `mac-address` of its own";

pub(super) fn collision(mac: MacAddress, holder: &str) -> String {
    format!("The MAC address {mac}, which is derived for this nic, is that of {holder} already")
}

/// Who on the host has an address, other than VF `target` itself and VFs that `passed_over` says are to have another.
pub(super) fn holder_of_mac(
    host: &HostState,
    mac: MacAddress,
    (pf, vf): (PciAddress, u16),
    passed_over: &dyn Fn(PciAddress, u32) -> bool,
) -> Option<String> {
    let mut vfs = host.vfs.iter().flat_map(|(of, vfs)| vfs.iter().map(move |state| (*of, state)));
    let other = vfs.find(|(of, state)| {
        let itself = *of == pf && state.id == u32::from(vf);
        state.mac_address == Some(mac) && !itself && !passed_over(*of, state.id)
    });
    if let Some((of, state)) = other {
        return Some(format!("VF {} of {of}", state.id));
    }
    // The interface of a VF has the VF's address, whoever the VF is.
    let is_vf = |name: &str| {
        let mut functions = host.inventory.functions.values();
        functions.any(|function| {
            function.physical_function.is_some() && function.interfaces.iter().any(|own| own == name)
        })
    };
    let links = host.links.iter().filter_map(|(name, link)| Some((name, link.mac_address?)));
    let others = host.macs.iter().chain(&host.permanent_macs).map(|(name, mac)| (name, *mac));
    let mut all = links.chain(others);
    all.find(|(name, own)| *own == mac && !is_vf(name)).map(|(name, _)| format!("`{name}` of this host"))
}
