//! IOMMU groups: what can only be given away together.

use serde::{Deserialize, Serialize};

use super::Function;
use crate::PciAddress;
use crate::bind::VFIO_PCI;
use crate::sysfs::{Sysfs, names, number, read_maybe};

/// One IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Group {
    /// Its number, for this boot.
    pub number: u32,
    /// Its functions, by address.
    pub members: Vec<Member>,
}

/// One function of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Member {
    /// Where it is.
    pub address: PciAddress,
    /// The driver that holds it.
    pub driver: Option<String>,
    /// It is a bridge.
    pub bridge: bool,
}

impl Member {
    /// It may keep its driver while others of the group are given away: no driver, vfio-pci, pci-stub, or a bridge's
    /// own driver that does no DMA for itself (vfio_dev_viable in the kernel's drivers/vfio/group.c).
    pub fn is_harmless(&self) -> bool {
        match self.driver.as_deref() {
            None | Some(VFIO_PCI | "pci-stub") => true,
            Some("pcieport") => self.bridge,
            Some(_) => false,
        }
    }
}

impl Group {
    pub(super) fn add(&mut self, function: &Function) {
        let (address, driver) = (function.address, function.driver.clone());
        self.members.push(Member { address, driver, bridge: function.is_bridge() });
    }

    /// The members other than `given` whose drivers keep the group from being viable.
    pub fn blockers<'a>(&'a self, given: &'a [PciAddress]) -> impl Iterator<Item = &'a Member> {
        self.members.iter().filter(|member| !given.contains(&member.address) && !member.is_harmless())
    }
}

/// What there is of an IOMMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct IommuState {
    /// IOMMU units that the kernel uses: `dmar0`, `ivhd0`; none where it is off or absent.
    pub units: Vec<String>,
    /// Whether they can remap interrupts; none where sysfs does not say (AMD), which VFIO finds out when a group is opened.
    pub interrupt_remapping: Option<bool>,
}

impl IommuState {
    /// DMA of a device can be kept to a guest's own memory.
    pub fn is_on(&self) -> bool {
        !self.units.is_empty()
    }

    pub(super) fn read(sysfs: &Sysfs) -> Self {
        let folder = sysfs.path("class/iommu");
        let units = names(&folder);
        // Bit 3 of the extended capability register (VT-d 4.1, 11.4.3): the unit supports interrupt remapping.
        let remaps = |unit: &String| {
            let ecap = read_maybe(&folder.join(unit).join("intel-iommu/ecap"))?;
            Some(number(&format!("0x{ecap}"))? & 1 << 3 != 0)
        };
        let told: Vec<bool> = units.iter().filter_map(remaps).collect();
        let interrupt_remapping = (!told.is_empty()).then(|| told.iter().all(|remaps| *remaps));
        Self { units, interrupt_remapping }
    }
}
