//! Devices of the guest's file, for a guest that runs: prepared as at its start, and given back as at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::Context;
use vfio::PciAddress;
use vfio::kernel::{Backend, Iommu};
use vmm::machine::{DeviceSource, Error};
use vmm::spec::NewDevice;

use super::super::check;
use super::super::failure::Failure;
use super::ready_to_plan;
use crate::apply::{self, Applied, Host, Ledger, Taps};
use crate::config::Vm;
use crate::faults;
use crate::guest;

/// What a guest of a file has, and can have.
pub(super) struct Devices {
    file: String,
    /// Where relative paths of the file start.
    folder: PathBuf,
    vm: String,
    state: PathBuf,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// All functions of the guest are in one I/O address space, which ends with the last of them.
    iommu: Weak<Iommu>,
    /// By the machine's name for it.
    given: BTreeMap<String, Applied>,
    /// Whose stopped DMA is told of.
    watched: BTreeSet<PciAddress>,
}

impl Devices {
    /// For a guest of `file`, whose start has given it `applied`.
    pub(super) fn new(file: &str, folder: PathBuf, vm: &str, state: PathBuf, applied: &Applied) -> Self {
        let held = Held {
            given: by_name(applied),
            watched: applied.slots.iter().flat_map(|(_, functions)| functions).copied().collect(),
            ..Held::default()
        };
        Self { file: file.to_owned(), folder, vm: vm.to_owned(), state, held: Mutex::new(held) }
    }

    /// The guest's I/O address space.
    pub(super) fn iommu(&self, kvm: impl FnOnce() -> anyhow::Result<OwnedFd>) -> anyhow::Result<Arc<Iommu>> {
        let mut held = self.lock();
        if let Some(iommu) = held.iommu.upgrade() {
            return Ok(iommu);
        }
        let iommu = Iommu::new(Backend::Auto, Some(kvm()?))?;
        held.iommu = Arc::downgrade(&iommu);
        Ok(iommu)
    }

    fn open_one(&self, name: &str, kvm: &dyn Fn() -> Result<OwnedFd, Error>) -> anyhow::Result<NewDevice> {
        let (document, config) =
            check::load(&self.file).map_err(|problems| plain(Failure::Input(problems)))?;
        let gone = || format!("{} has no guest `{}` any more", self.file, self.vm);
        let vm = guest::only(config.vms.get(&self.vm).with_context(gone)?, name)
            .with_context(|| format!("Guest `{}` of {}", self.vm, self.file))?;
        if vm.nics.is_empty() && vm.pci.is_empty() {
            return guest::own_device(&vm, &self.folder);
        }
        let (host, ledger) = (Host::at(&self.state), Ledger::at(&self.state));
        let applied = {
            let _lock = ledger.lock()?;
            let plan = ready_to_plan(&self.state, &host, &ledger)
                .and_then(|()| super::plan_for(&document, &config, &self.vm, &vm, &host, &ledger));
            apply::extend(&plan.map_err(plain)?, &self.vm, &host, &ledger)?
        };
        let opened = self.open_applied(&vm, &applied, &host.taps, kvm);
        match &opened {
            Ok(_) => {
                self.watch(&applied);
                self.lock().given.extend(by_name(&applied));
            }
            Err(_) => {
                if let Err(error) = self.put_back(&applied) {
                    tracing::error!("{error:#}");
                }
            }
        }
        opened
    }

    fn open_applied(
        &self,
        vm: &Vm,
        applied: &Applied,
        taps: &Taps,
        kvm: &dyn Fn() -> Result<OwnedFd, Error>,
    ) -> anyhow::Result<NewDevice> {
        if let Some((name, addresses)) = applied.slots.first() {
            let iommu = self.iommu(|| Ok(kvm()?))?;
            return Ok(NewDevice::Functions(guest::slot(vm, name, addresses, &iommu)?));
        }
        guest::card(vm, &applied.cards, taps)
    }

    fn watch(&self, applied: &Applied) {
        let mut held = self.lock();
        let functions = applied.slots.iter().flat_map(|(_, functions)| functions).copied();
        let fresh: Vec<_> = functions.filter(|function| held.watched.insert(*function)).collect();
        if !fresh.is_empty()
            && let Err(error) = faults::watch(&self.vm, fresh)
        {
            tracing::warn!("DMA that the IOMMU stops will be in the kernel's log only: {error}");
        }
    }

    fn put_back(&self, applied: &Applied) -> anyhow::Result<()> {
        let (host, ledger) = (Host::at(&self.state), Ledger::at(&self.state));
        let _lock = ledger.lock()?;
        apply::give_back(applied, &self.vm, &host, &ledger)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceSource for Devices {
    fn open(&self, name: &str, kvm: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<NewDevice, String> {
        self.open_one(name, kvm).map_err(|error| format!("{error:#}"))
    }

    fn give_back(&self, name: &str) -> Result<(), String> {
        // Disks and the source of entropy have nothing of the host's.
        let Some(applied) = self.lock().given.remove(name) else { return Ok(()) };
        self.put_back(&applied).map_err(|error| format!("{error:#}"))
    }
}

/// What was applied, each device for itself.
fn by_name(applied: &Applied) -> BTreeMap<String, Applied> {
    let slots = applied
        .slots
        .iter()
        .map(|slot| (slot.0.clone(), Applied { slots: vec![slot.clone()], cards: Vec::new() }));
    let cards = applied
        .cards
        .iter()
        .map(|card| (guest::card_name(card), Applied { slots: Vec::new(), cards: vec![card.clone()] }));
    slots.chain(cards).collect()
}

/// A failure in words alone, without its place in the file where it has none.
fn plain(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Input(problems) => {
            let all: Vec<String> =
                problems.iter().map(|problem| problem.render().trim_end().to_owned()).collect();
            anyhow::anyhow!(all.join("\n"))
        }
        Failure::Refused(error) | Failure::Fault(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_given_back_for_itself() {
        let address: PciAddress = "0000:65:10.2".parse().unwrap();
        let applied = Applied {
            slots: vec![("wan".into(), vec![address]), ("gpu".into(), Vec::new())],
            cards: Vec::new(),
        };
        let devices = Devices::new("box.yaml", PathBuf::new(), "firewall", PathBuf::new(), &applied);
        let held = devices.lock();
        assert_eq!(held.given.keys().collect::<Vec<_>>(), ["gpu", "wan"]);
        assert_eq!(held.given["wan"].slots, [("wan".to_owned(), vec![address])]);
        assert_eq!(held.watched, [address].into());
    }
}
