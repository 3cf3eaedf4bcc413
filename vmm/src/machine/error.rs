//! Why a machine could not be built, or could not go on by a fault that is not the guest's.

use std::io;

use crate::{acpi, boot, bus, cpuid, firmware, memory, passthrough, pci, virtio, vm};

/// Each part's own error, which says what was being done to which object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Kernel, initial RAM disk or command line.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Firmware, or its variables.
    #[error(transparent)]
    Firmware(#[from] firmware::Error),
    /// A kernel for processors that start at the reset vector, or firmware for others.
    #[error("What is to boot and where the processors start do not fit together")]
    Starts,
    /// A vCPU's thread cannot be where the specification has it.
    #[error("Keeping vCPU {vcpu} on the host's processors that it was given: {source}")]
    Affinity {
        /// Its index.
        vcpu: u32,
        /// The errno.
        source: io::Error,
    },
    /// Processor identification.
    #[error(transparent)]
    Cpuid(#[from] cpuid::Error),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// A function that finds no place in the hierarchy.
    #[error(transparent)]
    Place(#[from] pci::AddError),
    /// BARs that find no place.
    #[error(transparent)]
    Plan(#[from] pci::PlanError),
    /// A chipset function that contradicts itself.
    #[error(transparent)]
    Layout(#[from] pci::LayoutError),
    /// The watchdog cannot be made.
    #[error(transparent)]
    Watchdog(#[from] pci::watchdog::WatchdogError),
    /// More slots and virtio devices than root ports.
    #[error(
        "A guest has at most 30 slots for PCI functions and virtio devices, those that are empty at first among them"
    )]
    TooManySlots,
    /// A host function that the kernel or its server cannot serve.
    #[error(transparent)]
    Function(#[from] vfio::Error),
    /// A host function that cannot be given to the guest.
    #[error(transparent)]
    Passthrough(#[from] passthrough::Error),
    /// A virtio device that cannot be made.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// A vCPU's thread panicked, and has said why on standard error.
    #[error("vCPU {vcpu} ended by a fault of Throughway itself; please report it with what is said above")]
    Fault {
        /// Its index.
        vcpu: u32,
    },
    /// The thread that makes vCPUs panicked, and has said why on standard error.
    #[error("Making vCPUs ended by a fault of Throughway itself; please report it with what is said above")]
    Processors,
    /// A call on the host failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
