//! The address map of the machine, in guest physical addresses. Q35-shaped, so that stock firmware finds what it expects.

/// Guest RAM below 4 GiB ends here at the latest; what does not fit continues at 4 GiB.
pub const LOW_RAM_END: u64 = 0x8000_0000;
/// Where RAM goes on above the 32-bit holes.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// The 32-bit window for BARs: from the end of low RAM up to ECAM.
pub const MMIO32_START: u64 = LOW_RAM_END;
/// One past the 32-bit window.
pub const MMIO32_END: u64 = ECAM_START;

/// ECAM, 1 MiB for each of 256 buses (PCI Firmware Specification 3.3, 4.1.2).
pub const ECAM_START: u64 = 0xE000_0000;
/// Size of ECAM in bytes.
pub const ECAM_SIZE: u64 = 0x1000_0000;

/// The I/O APIC.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// The local APICs; also the MSI window.
pub const LAPIC: u64 = 0xFEE0_0000;
/// KVM's identity-map page and the three pages of its TSS (Intel without unrestricted guest), below the firmware.
pub const KVM_IDENTITY_MAP: u64 = 0xFEFF_C000;
/// KVM's TSS pages.
pub const KVM_TSS: u64 = 0xFEFF_D000;

/// The I/O window that BARs and bridges may use.
pub const PIO_WINDOW: std::ops::Range<u16> = 0xC000..0xFFFF;

/// AMD's HyperTransport hole, where no DMA address may lie (1012 GiB to 1 TiB).
pub const HYPERTRANSPORT_HOLE: std::ops::Range<u64> = 0xFD_0000_0000..0x100_0000_0000;

/// I/O port of PM1a event block, and with it of PMBASE (ICH9: LPC config 0x40).
pub const PMBASE: u16 = 0x600;
/// The interrupt of ACPI events (SCI).
pub const SCI_IRQ: u32 = 9;
/// The first of the eight I/O APIC inputs that the PCI pins use.
pub const PIRQ_GSI_BASE: u32 = 16;
/// Inputs of the in-kernel I/O APIC: GSIs from here on are free for MSI routes.
pub const IOAPIC_PINS: u32 = 24;

/// The I/O APIC input of a pin (0 = INTA) of a device on bus 0, as the ACPI `_PRT` also says it.
/// Behind a root port the standard swizzle leads here (PCI-to-PCI Bridge 1.2, 9.1).
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    PIRQ_GSI_BASE + (u32::from(device) + u32::from(pin)) % 8
}
