//! All PCI functions of the host, as sysfs has them at one moment.

mod function;
mod group;
mod names;
mod serial;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use function::{Bar, Function, LinkState, Sriov};
pub use group::{Group, IommuState, Member};
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
        let addresses =
            entries(&sysfs.path("bus/pci/devices")).into_iter().filter_map(|name| name.parse().ok());
        let functions: BTreeMap<PciAddress, Function> =
            addresses.filter_map(|address| Some((address, Function::read(sysfs, address)?))).collect();
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

    /// The function at an address.
    pub fn function(&self, address: PciAddress) -> Option<&Function> {
        self.functions.get(&address)
    }

    /// The IOMMU group of a function.
    pub fn group_of(&self, address: PciAddress) -> Option<&Group> {
        self.groups.get(&self.function(address)?.iommu_group?)
    }
}

#[cfg(test)]
mod tests;
