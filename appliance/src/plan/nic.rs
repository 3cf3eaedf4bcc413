//! Network cards: the VF that a guest gets, and what the PF needs for it.

use netconfig::{MacAddress, VfAttributes};
use vfio::PciAddress;
use vfio::inventory::Function;

use super::{Planner, SlotPlan, Step, Target};
use crate::config::{Nic, Pool, Sriov, Vm, range};

/// A VF that a nic will get.
struct Choice<'a> {
    pf: &'a Function,
    sriov: &'a Sriov,
    interface: String,
    vf: u16,
}

impl<'a> Planner<'a> {
    pub(super) fn nics(&mut self, vm: &Vm) {
        for (key, nic) in &vm.nics {
            let Some(choice) = self.choose(key, nic) else { continue };
            self.prepare(&choice);
            let target = Target::Vf { pf: choice.pf.address, vf: choice.vf };
            let attributes = self.attributes(key, nic, &choice);
            let (pf, vf, interface) = (choice.pf.address, choice.vf, choice.interface);
            self.plan.steps.push(Step::SetVf { pf, interface, vf, attributes });
            self.plan.steps.push(Step::Lend(target.clone()));
            self.plan.slots.push(SlotPlan { name: key.clone(), functions: vec![target] });
        }
    }

    fn choose(&mut self, key: &str, nic: &Nic) -> Option<Choice<'a>> {
        let config = self.config;
        if let (Some(pf), Some(vf)) = (&nic.pf, nic.vf) {
            let choice = self.physical(pf, vf)?;
            return self.free(&["vms", self.vm, "nics", key, "vf"], &choice, true).then(|| self.take(choice));
        }
        let name = nic.pool.as_deref()?;
        let pool = config.pools.get(name)?;
        let refused = self.refusals.len();
        for pf in &pool.pf {
            for vf in self.indices(pf, pool) {
                let Some(choice) = self.physical(pf, vf) else { break };
                if self.free(&[], &choice, false) {
                    return Some(self.take(choice));
                }
            }
        }
        if self.refusals.len() == refused {
            let message = format!("No VF of pool `{name}` is free");
            self.refuse(
                &["vms", self.vm, "nics", key, "pool"],
                message,
                Some("stop a guest that holds one, or raise num-vfs"),
            );
        }
        None
    }

    /// The VFs of a pool on one PF that no nic of the file names for itself.
    fn indices(&self, pf: &str, pool: &Pool) -> Vec<u16> {
        let config = self.config;
        let Some(sriov) = config.sriov.get(pf) else { return Vec::new() };
        let (first, last) = pool.vf_range.as_deref().and_then(range).unwrap_or((0, u16::MAX));
        let named = |vf: u16| {
            config
                .vms
                .values()
                .flat_map(|vm| vm.nics.values())
                .any(|nic| nic.pf.as_deref() == Some(pf) && nic.vf == Some(vf))
        };
        (first..=last.min(sriov.num_vfs.saturating_sub(1)))
            .filter(|vf| *vf < sriov.num_vfs && !named(*vf))
            .collect()
    }

    /// A VF of a PF that is there and fit for it.
    fn physical(&mut self, name: &str, vf: u16) -> Option<Choice<'a>> {
        let (sriov, device) = (self.config.sriov.get(name)?, self.config.devices.get(name)?);
        let pf = self.find(name, device)?;
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
                None,
            );
            return None;
        }
        if able.num_vfs != sriov.num_vfs
            && let Some((held, holder)) =
                able.vfs.iter().find_map(|held| Some((held, self.host.held.get(held)?)))
        {
            let message = format!(
                "num-vfs {} -> {} would take {held} from guest `{}`",
                able.num_vfs, sriov.num_vfs, holder.vm
            );
            self.refuse(
                &path,
                message,
                Some("stop that guest first: the number changes only by removing all virtual functions"),
            );
            return None;
        }
        let Some(interface) = pf.interfaces.first() else {
            let driver = pf.driver.as_deref().unwrap_or("no driver");
            self.refuse(
                &["sriov", name],
                format!("{} has no network interface ({driver} holds it)", pf.address),
                Some("its host driver must hold it to serve virtual functions"),
            );
            return None;
        };
        Some(Choice { pf, sriov, interface: interface.clone(), vf })
    }

    fn free(&mut self, path: &[&str], choice: &Choice<'_>, say: bool) -> bool {
        let pf = choice.pf.address;
        if self.taken.contains(&Target::Vf { pf, vf: choice.vf }) {
            if say {
                self.refuse(path, format!("VF {} of {pf} is given to this guest already", choice.vf), None);
            }
            return false;
        }
        let Some(address) = address_of(choice.pf, choice.vf) else { return true };
        if let Some(holder) = self.host.held.get(&address) {
            if say {
                self.refuse(
                    path,
                    format!("{address} is in use by guest `{}` (process {})", holder.vm, holder.pid),
                    Some("stop that guest first"),
                );
            }
            return false;
        }
        let used = self.host.uses.get(&address).and_then(|uses| uses.first());
        if let (Some(used), true) = (used, say) {
            self.refuse(
                path,
                format!("{address} is in use by the host: {used}"),
                Some("take it out of that use first"),
            );
        }
        used.is_none()
    }

    fn take(&mut self, choice: Choice<'a>) -> Choice<'a> {
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
}

/// Where a VF is, when it is there.
fn address_of(pf: &Function, vf: u16) -> Option<PciAddress> {
    pf.sriov.as_ref()?.vfs.get(usize::from(vf)).copied()
}

/// A locally administered address that depends on the names alone (FNV-1a, 64 bits, over `vm`, NUL, `nic`).
pub(super) fn derived_mac(vm: &str, nic: &str) -> MacAddress {
    let bytes = vm.bytes().chain([0]).chain(nic.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = (hash ^ hash >> 40).to_le_bytes();
    MacAddress([0x02, a, b, c, d, e])
}
