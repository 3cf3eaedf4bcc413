//! What is lent to vfio-pci: whole functions, and VFs that nics name.

use std::collections::BTreeMap;

use vfio::PciAddress;
use vfio::bind::VFIO_PCI;
use vfio::inventory::Function;

use super::Whole;
use crate::plan::{Step, Target, wants_functions};

impl Whole<'_> {
    pub(super) fn devices(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let wants = config.vms.iter().find_map(|(name, vm)| {
            let (kind, key) = wants_functions(vm)?;
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
                self.has_no_vfs(&path, &functions);
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
                self.vf_is_free(*pf, &target, address);
                let blast = address.map(|address| self.blast_of_lending(address)).unwrap_or_default();
                self.step(Step::Lend(target), blast);
            }
        }
    }

    /// A VF that the host itself uses stays with it.
    fn vf_is_free(&mut self, pf: PciAddress, target: &Target, address: Option<PciAddress>) {
        let (Some(address), Target::Vf { vf, .. }) = (address, target) else { return };
        let config = self.planner.config;
        let nics =
            config.vms.iter().flat_map(|(vm, guest)| guest.nics.iter().map(move |(key, nic)| (vm, key, nic)));
        for (vm, key, nic) in nics.filter(|(_, _, nic)| nic.vf == Some(*vf)) {
            let device = nic.pf.as_ref().and_then(|name| Some((name, config.devices.get(name)?)));
            let Some((name, device)) = device else { continue };
            if self.planner.find(name, device).is_some_and(|function| function.address == pf) {
                self.planner.stays(&["vms", vm, "nics", key, "vf"], address);
            }
        }
    }

    /// A card goes away whole, or the file has VFs of it.
    fn has_no_vfs(&mut self, path: &[&str], functions: &[PciAddress]) {
        let wanted = self.pfs().into_iter().filter(|(_, (_, sriov))| sriov.num_vfs > 0);
        for (address, (name, sriov)) in wanted.filter(|(address, _)| functions.contains(address)) {
            let message = format!(
                "{address} is to have {} virtual functions (`sriov.{name}`), which would vanish with it",
                sriov.num_vfs
            );
            let help = Some("give VFs of it as nics, or take it out of `sriov`");
            self.planner.refuse(path, message, help);
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

    fn blast_of_lending(&self, address: PciAddress) -> Vec<String> {
        let Some(function) = self.planner.host.inventory.function(address) else { return Vec::new() };
        let interfaces = function.interfaces.iter().map(|name| format!("{name} goes away"));
        let disks = function.block_devices.iter().map(|name| format!("{name} goes away"));
        interfaces.chain(disks).collect()
    }
}
