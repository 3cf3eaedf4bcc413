//! Devices of the guest's file, for a guest that runs: prepared as at its start, and given back as at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use vfio::PciAddress;

use super::super::check;
use super::super::failure::Failure;
use super::ready_to_plan;
use crate::apply::{self, Applied, Host, Ledger};
use crate::faults;
use crate::guest::{self, parts::New};
use crate::jail::Files;

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
        };
        Self { file: file.to_owned(), folder, vm: vm.to_owned(), state, held: Mutex::new(held) }
    }

    /// Prepares and opens what the file has under this name.
    pub(super) fn open(&self, name: &str) -> anyhow::Result<(New, Files)> {
        let (document, config) =
            check::load(&self.file).map_err(|problems| plain(Failure::Input(problems)))?;
        let gone = || format!("{} has no guest `{}` any more", self.file, self.vm);
        let vm = guest::only(config.vms.get(&self.vm).with_context(gone)?, name)
            .with_context(|| format!("Guest `{}` of {}", self.vm, self.file))?;
        let mut files = Files::default();
        if vm.nics.is_empty() && vm.pci.is_empty() {
            return Ok((guest::own_device(&vm, &self.folder, &mut files)?, files));
        }
        let (host, ledger) = (Host::at(&self.state), Ledger::at(&self.state));
        let applied = {
            let _lock = ledger.lock()?;
            let plan = ready_to_plan(&self.state, &host, &ledger)
                .and_then(|()| super::plan_for(&document, &config, &self.vm, &vm, &host, &ledger));
            apply::extend(&plan.map_err(plain)?, &self.vm, &host, &ledger)?
        };
        let mut open = || -> anyhow::Result<New> {
            if let Some(functions) = guest::functions(&vm, &applied, &mut files)? {
                return Ok(New::Functions(functions));
            }
            let card = applied.cards.first().context("There is no such device")?;
            Ok(New::Card(guest::card(card, &host.taps, &mut files)?))
        };
        let opened = open();
        match opened {
            Ok(new) => {
                self.watch(&applied);
                self.lock().given.extend(by_name(&applied));
                Ok((new, files))
            }
            Err(error) => {
                drop(files);
                if let Err(error) = self.put_back(&applied) {
                    tracing::error!("{error:#}");
                }
                Err(error)
            }
        }
    }

    /// A device is out of the guest and closed: the host gets it back. What the guest was not given is nothing's.
    pub(super) fn give_back(&self, name: &str) -> anyhow::Result<()> {
        // Disks and the source of entropy have nothing of the host's.
        let Some(applied) = self.lock().given.remove(name) else { return Ok(()) };
        self.put_back(&applied)
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
