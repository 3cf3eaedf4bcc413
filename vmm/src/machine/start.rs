//! What the boot processor starts with: a kernel in guest RAM, or firmware below 4 GiB.

use std::fs::File;

use super::hierarchy::Hierarchy;
use super::{Error, Machine};
use crate::firmware::{BootDevice, Described, Installed};
use crate::spec::Boot;
use crate::vcpu::Buses;
use crate::{acpi, boot};

/// The part of a machine that makes guests start.
pub(super) enum Start {
    /// Direct boot.
    Kernel { kernel: File, initrd: Option<File> },
    /// UEFI.
    Firmware(Box<Installed>),
}

impl Start {
    pub(super) fn new(
        machine: &Machine,
        buses: &Buses,
        hierarchy: &Hierarchy,
        boot: Boot,
        address_bits: u8,
    ) -> Result<Self, Error> {
        let Machine { spec, vm, ram, .. } = machine;
        let firmware = match boot {
            Boot::Kernel { kernel, initrd } => return Ok(Self::Kernel { kernel, initrd }),
            Boot::Firmware(firmware) => firmware,
        };
        let described = Described {
            name: spec.name.clone(),
            cpus: spec.cpus.count(),
            ram_size: ram.size(),
            address_bits,
            order: hierarchy.boot_order(&firmware.order),
            once: hierarchy.boot_order(firmware.once.as_slice()).first().copied(),
        };
        let tables = hierarchy.tables(spec.cpus, spec.on_panic.is_some());
        Ok(Self::Firmware(Box::new(Installed::new(vm, ram, buses, firmware, &described, tables)?)))
    }

    /// Before each start. For direct boot it does what firmware would: places BARs, writes tables and kernel, and answers
    /// where the kernel begins.
    pub(super) fn prepare(
        &mut self,
        machine: &Machine,
        hierarchy: &Hierarchy,
    ) -> Result<Option<boot::Entry>, Error> {
        let Self::Kernel { kernel, initrd } = self else { return Ok(None) };
        let Machine { spec, ram, .. } = machine;
        let windows = hierarchy.program()?;
        let decoding = acpi::Decoding::default();
        let panic_port = spec.on_panic.is_some();
        let spec_of_tables = acpi::AcpiSpec { cpus: spec.cpus, windows, decoding, panic_port };
        let rsdp = acpi::write(ram.memory(), &spec_of_tables)?;
        let entry = boot::load(ram.memory(), ram.size(), kernel, initrd.as_mut(), &spec.cmdline, rsdp)?;
        Ok(Some(entry))
    }

    /// Why a device cannot be booted from once.
    pub(super) fn cannot_boot_once(&self) -> Option<&'static str> {
        match self {
            Self::Kernel { .. } => Some("The guest starts from a kernel, without firmware that could choose"),
            Self::Firmware(installed) if installed.has_order() => None,
            Self::Firmware(_) => Some(
                "The guest's file has no `boot.order`, and firmware would keep the device as the first one for ever; give it one",
            ),
        }
    }

    /// Back to power-on. `once` is what firmware begins with this time.
    pub(super) fn reset(&self, once: Option<BootDevice>) {
        if let Self::Firmware(installed) = self {
            installed.reset(once);
        }
    }

    /// The processors have ended.
    pub(super) fn close(&self) {
        if let Self::Firmware(installed) = self {
            installed.close();
        }
    }
}
