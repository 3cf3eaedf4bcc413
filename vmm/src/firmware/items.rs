//! What the firmware is told: processors, memory, where to boot from, who the machine is.

use super::fw_cfg::{BOOT_ORDER, Name};
use super::smbios;
use crate::layout;

/// Keys (QEMU, include/standard-headers/linux/qemu_fw_cfg.h and hw/i386/fw_cfg.c).
const UUID: u16 = 0x02;
const RAM_SIZE: u16 = 0x03;
const NO_GRAPHICS: u16 = 0x04;
const CPUS: u16 = 0x05;
const MOST_CPUS: u16 = 0x0f;

/// Types of ranges in the memory map, as E820 has them.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// From this width of physical addresses on there is the hole for HyperTransport.
const HYPERTRANSPORT_BITS: u8 = 40;

/// The machine, as far as its firmware is told of it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The guest's name.
    pub name: String,
    /// vCPUs.
    pub cpus: u32,
    /// Guest RAM in bytes.
    pub ram_size: u64,
    /// Width of guest physical addresses.
    pub address_bits: u8,
    /// What to boot from, the first one first.
    pub order: Vec<BootDevice>,
    /// What goes before those until the guest is first reset.
    pub once: Option<BootDevice>,
}

/// A device to boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootDevice {
    /// The device number on bus 0 of the root port that it sits behind.
    pub port: u8,
    /// Its function number.
    pub function: u8,
    /// What it is.
    pub kind: BootKind,
}

/// Kinds of devices that firmware tells apart when it looks for one by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootKind {
    /// A virtio disk.
    VirtioDisk,
    /// A CD drive: the one unit of a virtio SCSI host.
    CdDrive,
    /// Anything else that is found by its place: network cards, controllers.
    Other,
}

impl BootDevice {
    /// Its Open Firmware device path, as OVMF's QemuBootOrderLib knows it.
    fn path(self) -> String {
        let Self { port, function, kind } = self;
        let unit = if function == 0 { "0".to_owned() } else { format!("0,{function:x}") };
        let device = match kind {
            BootKind::VirtioDisk => format!("scsi@{unit}/disk@0,0"),
            BootKind::CdDrive => format!("scsi@{unit}/channel@0/disk@0,0"),
            BootKind::Other => format!("ethernet@{unit}/ethernet-phy@0"),
        };
        format!("/pci@i0cf8/pci-bridge@{port:x}/{device}")
    }
}

pub(super) fn all(machine: &Described) -> Vec<(Name, Vec<u8>)> {
    let cpus = u16::try_from(machine.cpus).unwrap_or(u16::MAX).to_le_bytes().to_vec();
    let smbios = smbios::build(&machine.name, machine.ram_size, machine.cpus);
    let mut items = vec![
        (Name::Key(UUID), smbios::uuid(&machine.name).to_vec()),
        (Name::Key(RAM_SIZE), machine.ram_size.to_le_bytes().to_vec()),
        (Name::Key(NO_GRAPHICS), vec![1, 0]),
        (Name::Key(CPUS), cpus.clone()),
        (Name::Key(MOST_CPUS), cpus),
        (Name::File("etc/e820"), memory_map(machine)),
        (Name::File("etc/smbios/smbios-anchor"), smbios.anchor),
        (Name::File("etc/smbios/smbios-tables"), smbios.tables),
    ];
    if !machine.order.is_empty() {
        items.push((Name::File(BOOT_ORDER), boot_order(&machine.order)));
    }
    items
}

/// The boot order of the first start, where it is another one.
pub(super) fn first_order(machine: &Described) -> Option<Vec<u8>> {
    Some(in_front(machine.once?, &machine.order))
}

/// The boot order with a device in front of the others.
pub(super) fn in_front(once: BootDevice, order: &[BootDevice]) -> Vec<u8> {
    let rest = order.iter().copied().filter(|device| *device != once);
    boot_order(&std::iter::once(once).chain(rest).collect::<Vec<_>>())
}

/// What the file [`BOOT_ORDER`] holds.
fn boot_order(devices: &[BootDevice]) -> Vec<u8> {
    let paths: Vec<String> = devices.iter().map(|device| device.path()).collect();
    format!("{}\0", paths.join("\n")).into_bytes()
}

/// RAM as it is, with no hole below 1 MiB: that one is for the firmware to make. The hole for HyperTransport is there so
/// that the firmware keeps its window for 64-bit BARs away from it.
fn memory_map(machine: &Described) -> Vec<u8> {
    let low = machine.ram_size.min(layout::LOW_RAM_END);
    let hole = layout::HYPERTRANSPORT_HOLE;
    let mut ranges = vec![
        (0, low, RAM),
        (layout::HIGH_RAM_START, machine.ram_size.saturating_sub(low), RAM),
        (layout::KVM_IDENTITY_MAP, 4 * 4096, RESERVED),
    ];
    if machine.address_bits >= HYPERTRANSPORT_BITS {
        ranges.push((hole.start, hole.end - hole.start, RESERVED));
    }
    let entry = |(start, size, kind): (u64, u64, u32)| {
        [&start.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    ranges.into_iter().filter(|(_, size, _)| *size > 0).flat_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Described {
        Described {
            name: "firewall".into(),
            cpus: 3,
            ram_size: 3 << 30,
            address_bits: 46,
            order: Vec::new(),
            once: None,
        }
    }

    #[test]
    fn the_memory_map_has_all_ram_from_0_on() {
        let map = memory_map(&machine());
        let ranges: Vec<_> = map
            .chunks_exact(20)
            .map(|entry| {
                let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
                (number(0), number(8), entry[16])
            })
            .collect();
        assert_eq!(ranges[..2], [(0, 2 << 30, 1), (4 << 30, 1 << 30, 1)]);
        assert_eq!(ranges[2..], [(0xfeff_c000, 0x4000, 2), (0xfd_0000_0000, 0x3_0000_0000, 2)]);
        let narrow = Described { address_bits: 39, ram_size: 1 << 30, ..machine() };
        assert_eq!(memory_map(&narrow).len(), 40);
    }

    #[test]
    fn boot_order_is_in_paths_of_open_firmware() {
        let order = vec![
            BootDevice { port: 10, function: 0, kind: BootKind::VirtioDisk },
            BootDevice { port: 2, function: 1, kind: BootKind::Other },
            BootDevice { port: 3, function: 0, kind: BootKind::CdDrive },
        ];
        let items = all(&Described { order, ..machine() });
        let order = items.iter().find(|(name, _)| *name == Name::File("bootorder")).unwrap();
        assert_eq!(
            std::str::from_utf8(&order.1).unwrap(),
            "/pci@i0cf8/pci-bridge@a/scsi@0/disk@0,0\n/pci@i0cf8/pci-bridge@2/ethernet@0,1/ethernet-phy@0\n\
             /pci@i0cf8/pci-bridge@3/scsi@0/channel@0/disk@0,0\0"
        );
        assert!(all(&machine()).iter().all(|(name, _)| *name != Name::File("bootorder")));
    }

    #[test]
    fn what_is_booted_once_is_in_front_of_the_others_and_there_once() {
        let disk = |port| BootDevice { port, function: 0, kind: BootKind::VirtioDisk };
        let first =
            first_order(&Described { order: vec![disk(1), disk(2)], once: Some(disk(2)), ..machine() });
        assert_eq!(
            String::from_utf8(first.unwrap()).unwrap(),
            "/pci@i0cf8/pci-bridge@2/scsi@0/disk@0,0\n/pci@i0cf8/pci-bridge@1/scsi@0/disk@0,0\0"
        );
        assert_eq!(first_order(&Described { order: vec![disk(1)], ..machine() }), None);
    }
}
