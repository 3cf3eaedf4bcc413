//! All PCI functions of the host, as sysfs has them at one moment.

mod function;
mod group;
mod modules;
mod names;
mod serial;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use function::{Bar, Function, LinkState, Sriov};
pub use group::{Group, IommuState, Member};
pub use modules::Modules;
pub use names::Names;
pub use serial::{same_serial, serials};

use crate::PciAddress;
use crate::sysfs::{Sysfs, names as entries};

/// A snapshot of the host's functions and their IOMMU groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Inventory {
    /// Every function, by address.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Every IOMMU group, by number. Numbers change from boot to boot.
    pub groups: BTreeMap<u32, Group>,
    /// What there is of an IOMMU.
    pub iommu: IommuState,
}

impl Inventory {
    /// Reads all of it. A function that vanishes while it is read is left out; attributes that an older kernel does not have are
    /// absent.
    pub fn scan(sysfs: &Sysfs) -> Self {
        let addresses: Vec<PciAddress> = entries(&sysfs.path("bus/pci/devices"))
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        let mut functions = read(sysfs, &addresses);
        tell_vfs(&mut functions);
        Self::of(functions, IommuState::read(sysfs))
    }

    /// Of functions that are known, each of which knows its group.
    pub fn of(functions: BTreeMap<PciAddress, Function>, iommu: IommuState) -> Self {
        let mut groups = BTreeMap::<u32, Group>::new();
        for function in functions.values() {
            if let Some(number) = function.iommu_group {
                groups.entry(number).or_insert_with(|| Group { number, members: Vec::new() }).add(function);
            }
        }
        Self { functions, groups, iommu }
    }

    /// Reads of one function, or of all, what no plan needs and only people ask for.
    pub fn look_closely(&mut self, sysfs: &Sysfs, modules: &Modules, address: Option<PciAddress>) {
        let asked =
            self.functions.values_mut().filter(|one| address.is_none_or(|asked| one.address == asked));
        asked.for_each(|one| one.look_closely(sysfs, modules));
    }

    /// The function at an address.
    pub fn function(&self, address: PciAddress) -> Option<&Function> {
        self.functions.get(&address)
    }

    /// The IOMMU group of a function.
    pub fn group_of(&self, address: PciAddress) -> Option<&Group> {
        self.groups.get(&self.function(address)?.iommu_group?)
    }
}

/// From so many functions on they are read by several threads: fewer are read before those have started.
const MANY: usize = 128;
/// Reading is the kernel's work, a few processors' at most: it has locks of its own.
const MOST_THREADS: usize = 4;

fn read(sysfs: &Sysfs, addresses: &[PciAddress]) -> BTreeMap<PciAddress, Function> {
    let read = |addresses: &[PciAddress]| -> Vec<Function> {
        addresses.iter().filter_map(|address| Function::read(sysfs, *address)).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let found = if threads < 2 || addresses.len() < MANY {
        read(addresses)
    } else {
        let parts = addresses.chunks(addresses.len().div_ceil(threads));
        std::thread::scope(|scope| {
            let readers: Vec<_> = parts.map(|part| (part, scope.spawn(move || read(part)))).collect();
            // One that could not do it is no reason to leave its part out.
            readers
                .into_iter()
                .flat_map(|(part, reader)| reader.join().unwrap_or_else(|_| read(part)))
                .collect()
        })
    };
    found.into_iter().map(|function| (function.address, function)).collect()
}

/// Tells each VF what it has from its PF.
fn tell_vfs(functions: &mut BTreeMap<PciAddress, Function>) {
    let pfs: Vec<Function> =
        functions.values().filter(|function| function.sriov.is_some()).cloned().collect();
    for pf in &pfs {
        for (address, index) in pf.sriov.iter().flat_map(|sriov| sriov.vfs.iter().zip(0..)) {
            if let Some(vf) = functions.get_mut(address) {
                vf.of_vf(index, pf);
            }
        }
    }
}

#[cfg(test)]
mod tests;
