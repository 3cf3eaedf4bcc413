//! One function of the host.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Modules;
use crate::PciAddress;
use crate::bind::VFIO_PCI;
use crate::sysfs::{Folder, Sysfs, number};

/// What sysfs says of one function. Revision, reset methods, registers, link and modules are of one that was
/// [looked at closely](super::Inventory::look_closely): no plan needs them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Function {
    /// Where it is now.
    pub address: PciAddress,
    /// Devices and functions from the root on, `00:01.0/00.0`: where it is plugged in. Survives renumbering of buses.
    pub path: Option<String>,
    /// The bridge that it is below; none on a root bus.
    pub parent: Option<PciAddress>,
    /// Vendor, as in config space.
    pub vendor: u16,
    /// Device, as in config space.
    pub device: u16,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem device.
    pub subsystem_device: u16,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// The driver that holds it.
    pub driver: Option<String>,
    /// `driver_override`, where it is set.
    pub driver_override: Option<String>,
    /// Modules of the running kernel that know it, as modprobe(8) would load them.
    pub modules: Vec<String>,
    /// Its IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Its NUMA node; none where the firmware does not say.
    pub numa_node: Option<u32>,
    /// How the kernel can reset it alone, best first: `flr`, `af_flr`, `pm`, `bus`, ...; empty for not at all.
    pub reset_methods: Vec<String>,
    /// Base address registers in use.
    pub bars: Vec<Bar>,
    /// The link, of a PCI Express function.
    pub link: Option<LinkState>,
    /// Of a physical function that offers virtual ones.
    pub sriov: Option<Sriov>,
    /// Of a virtual function, its physical one.
    pub physical_function: Option<PciAddress>,
    /// Of a virtual function, its index.
    pub vf_index: Option<u16>,
    /// Network interfaces below it.
    pub interfaces: Vec<String>,
    /// Block devices below it, `nvme0n1`, `sda`.
    pub block_devices: Vec<String>,
}

/// One base address register that decodes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Bar {
    /// 0 to 5, or 6 for the expansion ROM.
    pub index: u8,
    /// First address on the host.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// I/O ports, not memory.
    pub io: bool,
    /// 64-bit.
    pub wide: bool,
    /// Prefetchable.
    pub prefetchable: bool,
}

/// Speed and width of a link, now and at best, as sysfs prints them (`8.0 GT/s PCIe`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LinkState {
    /// Speed now.
    pub speed: String,
    /// Lanes now.
    pub width: u8,
    /// Speed at best.
    pub max_speed: String,
    /// Lanes at best.
    pub max_width: u8,
}

/// The virtual functions of a physical one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sriov {
    /// How many there can be.
    pub total_vfs: u16,
    /// How many there are.
    pub num_vfs: u16,
    /// Their addresses, by index.
    pub vfs: Vec<PciAddress>,
}

impl Function {
    /// Reads one; none where it is gone. What a VF has from its PF is left for [`of_vf`](Self::of_vf).
    pub(super) fn read(sysfs: &Sysfs, address: PciAddress) -> Option<Self> {
        let path = sysfs.device(address);
        let folder = Folder::open(&path)?;
        let uevent = folder.text("uevent");
        let ids = Ids::of(uevent.as_deref().unwrap_or_default());
        let driver = if uevent.is_some() { ids.driver } else { folder.link_name("driver") };
        let physical_function: Option<PciAddress> =
            folder.link_name("physfn").and_then(|name| name.parse().ok());
        let own = physical_function.is_none();
        // Interfaces and disks come of drivers. VFs are many, and most have none or are lent: nothing is below those.
        let barren = !own && ids.device.is_some() && matches!(driver.as_deref(), None | Some(VFIO_PCI));
        let folder = if barren { folder } else { folder.listed() };
        let text = |name: &str| folder.text(name);
        let small = |name: &str| u16::try_from(number(&text(name)?)?).ok();
        let steps = from_root(&path, address);
        let (interfaces, block_devices) = below(&folder);
        Some(Self {
            address,
            path: path_from_root(&steps),
            parent: steps.iter().rev().nth(1).copied(),
            vendor: ids.device.map(|ids| ids.0).or_else(|| small("vendor"))?,
            device: ids.device.map(|ids| ids.1).or_else(|| small("device"))?,
            subsystem_vendor: ids
                .subsystem
                .map(|ids| ids.0)
                .or_else(|| small("subsystem_vendor"))
                .unwrap_or(0),
            subsystem_device: ids
                .subsystem
                .map(|ids| ids.1)
                .or_else(|| small("subsystem_device"))
                .unwrap_or(0),
            class: ids.class.or_else(|| u32::try_from(number(&text("class")?)?).ok())?,
            revision: 0,
            driver,
            driver_override: text("driver_override").filter(|text| !text.is_empty() && text != "(null)"),
            iommu_group: folder.link_name("iommu_group").and_then(|name| name.parse().ok()),
            // -1 where the firmware does not say.
            numa_node: own.then(|| text("numa_node")?.parse().ok()).flatten(),
            reset_methods: Vec::new(),
            bars: Vec::new(),
            modules: Vec::new(),
            link: None,
            sriov: own.then(|| sriov(&folder)).flatten(),
            physical_function,
            vf_index: None,
            interfaces,
            block_devices,
        })
    }

    /// What a VF has from its PF: which of its VFs it is, and the node.
    pub(super) fn of_vf(&mut self, index: u16, pf: &Self) {
        self.vf_index = Some(index);
        self.numa_node = pf.numa_node;
    }

    /// Reads what only people ask for. A VF has its link from its PF, as it has no registers of one (SR-IOV 1.1, 3.5.6).
    pub(super) fn look_closely(&mut self, sysfs: &Sysfs, modules: &Modules) {
        let Some(folder) = Folder::open(&sysfs.device(self.address)) else { return };
        self.revision =
            folder.text("revision").and_then(|text| u8::try_from(number(&text)?).ok()).unwrap_or(0);
        let resets = folder.text("reset_method").unwrap_or_default();
        self.reset_methods = resets.split_whitespace().map(str::to_owned).collect();
        self.bars = folder.text("resource").map(|text| bars(&text)).unwrap_or_default();
        self.modules = folder.text("modalias").map(|alias| modules.of_alias(&alias)).unwrap_or_default();
        let linked = match self.physical_function {
            Some(pf) => Folder::open(&sysfs.device(pf)),
            None => Some(folder),
        };
        self.link = linked.as_ref().and_then(link);
    }

    /// A bridge: it belongs to the hierarchy and is never given away.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }
}

/// The file `resource`: a line a register, `start end flags` in hexadecimal (include/linux/ioport.h). Lines past the sixth
/// are the ROM and, on a PF, the VFs' registers.
fn bars(text: &str) -> Vec<Bar> {
    const IO: u64 = 0x100;
    const PREFETCH: u64 = 0x2000;
    const WIDE: u64 = 0x10_0000;
    let bar = |(index, line): (usize, &str)| {
        let mut fields = line.split_whitespace().map(number);
        let (start, end, flags) = (fields.next()??, fields.next()??, fields.next()??);
        if end <= start {
            return None;
        }
        let size = end.checked_sub(start)?.checked_add(1)?;
        let index = u8::try_from(index).ok()?;
        Some(Bar {
            index,
            start,
            size,
            io: flags & IO != 0,
            wide: flags & WIDE != 0,
            prefetchable: flags & PREFETCH != 0,
        })
    };
    text.lines().take(7).enumerate().filter_map(bar).collect()
}

/// What `uevent` says of a function (`pci_uevent` in the kernel): five attributes in one, of VFs too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ids {
    driver: Option<String>,
    class: Option<u32>,
    device: Option<(u16, u16)>,
    subsystem: Option<(u16, u16)>,
}

impl Ids {
    fn of(text: &str) -> Self {
        let pair = |text: &str| {
            let (vendor, device) = text.split_once(':')?;
            Some((u16::from_str_radix(vendor, 16).ok()?, u16::from_str_radix(device, 16).ok()?))
        };
        let mut ids = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "DRIVER" => ids.driver = Some(value.to_owned()),
                "PCI_CLASS" => ids.class = u32::from_str_radix(value, 16).ok(),
                "PCI_ID" => ids.device = pair(value),
                "PCI_SUBSYS_ID" => ids.subsystem = pair(value),
                _ => {}
            }
        }
        ids
    }
}

/// Bridges and the function, from where the kernel keeps it: `.../pci0000:00/0000:00:01.0/0000:01:00.0`.
fn from_root(folder: &Path, address: PciAddress) -> Vec<PciAddress> {
    // In a tree that somebody made by hand the folder may be no link.
    let Ok(real) = std::fs::read_link(folder) else { return vec![address] };
    real.iter().filter_map(|part| part.to_str()?.parse().ok()).collect()
}

fn path_from_root(steps: &[PciAddress]) -> Option<String> {
    let (first, rest) = steps.split_first()?;
    let domain = if first.domain == 0 { String::new() } else { format!("{:04x}:", first.domain) };
    let root = format!("{domain}{:02x}:{:02x}.{:x}", first.bus, first.device, first.function);
    Some(rest.iter().fold(root, |path, step| format!("{path}/{:02x}.{:x}", step.device, step.function)))
}

fn link(folder: &Folder) -> Option<LinkState> {
    let lanes = |name: &str| folder.text(name)?.parse().ok();
    Some(LinkState {
        speed: folder.text("current_link_speed")?,
        width: lanes("current_link_width")?,
        max_speed: folder.text("max_link_speed")?,
        max_width: lanes("max_link_width")?,
    })
}

fn sriov(folder: &Folder) -> Option<Sriov> {
    let value = |name: &str| folder.text(name)?.parse::<u16>().ok();
    let total_vfs = value("sriov_totalvfs").filter(|total| *total > 0)?;
    let vf = |index| folder.link_name(&format!("virtfn{index}"))?.parse().ok();
    Some(Sriov {
        total_vfs,
        num_vfs: value("sriov_numvfs").unwrap_or(0),
        vfs: (0..total_vfs).map_while(vf).collect(),
    })
}

/// Folders of every function that have neither interfaces nor disks below them.
const BARREN: [&str; 3] = ["power", "msi_irqs", "link"];

/// Network interfaces, those of the function itself first, and block devices. Both may sit a few folders down: `net/eth0`,
/// `virtio2/net/eth0`, `usb1/1-1/1-1:1.0/net/usb0`; `nvme/nvme0/nvme0n1`, `ata1/host0/target.../block/sda`.
fn below(folder: &Folder) -> (Vec<String>, Vec<String>) {
    let (mut interfaces, mut disks) = (Vec::new(), Vec::new());
    collect(folder, 0, &mut interfaces, &mut disks);
    interfaces.sort_unstable();
    disks.sort_unstable();
    (interfaces.into_iter().map(|(_, interface)| interface).collect(), disks)
}

fn collect(folder: &Folder, depth: u8, interfaces: &mut Vec<(u8, String)>, disks: &mut Vec<String>) {
    for name in folder.folders() {
        if depth >= 6 || BARREN.contains(&name) || name.parse::<PciAddress>().is_ok() {
            continue;
        }
        let Some(below) = folder.folder(name) else { continue };
        if name == "net" {
            interfaces.extend(below.folders().map(|interface| (depth, interface.to_owned())));
        } else if below.has("queue") && below.has("size") {
            disks.push(head(name).unwrap_or_else(|| name.to_owned()));
        } else {
            collect(&below, depth.saturating_add(1), interfaces, disks);
        }
    }
}

/// A path of a disk to the disk: with multipath NVMe `nvme0c1n2`, which is hidden, is one way to `nvme0n2`, and only that is
/// partitioned and mounted (`nvme_mpath_set_disk_name` in the kernel).
fn head(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    [subsystem, controller, namespace].into_iter().all(number).then(|| format!("nvme{subsystem}n{namespace}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registers_are_read_with_their_kinds() {
        let text = "0x00000000fe800000 0x00000000fe81ffff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
                    0x00000000e0000000 0x00000000efffffff 0x000000000014220c\n";
        let found: Vec<_> =
            bars(text).iter().map(|bar| (bar.index, bar.size, bar.io, bar.wide, bar.prefetchable)).collect();
        assert_eq!(
            found,
            [
                (0, 0x20000, false, false, false),
                (2, 0x20, true, false, false),
                (3, 0x1000_0000, false, true, true),
            ]
        );
    }

    #[test]
    fn a_path_of_a_disk_stands_for_the_disk() {
        assert_eq!(head("nvme0c1n2").as_deref(), Some("nvme0n2"));
        assert_eq!(head("nvme10c0n11").as_deref(), Some("nvme10n11"));
        for disk in ["nvme0n1", "sda", "sdc", "nvmec0n1", "nvme0c1", "nvme0c1nx", "mmcblk0"] {
            assert_eq!(head(disk), None, "{disk}");
        }
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in "[0-9a-fx \n]{0,400}") {
            bars(&text);
        }
    }
}
