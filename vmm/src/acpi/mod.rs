//! ACPI tables: what the guest learns of the machine that it cannot probe (ACPI 6.5).
//!
//! Full ACPI, as a Q35 board has it, with SCI and fixed registers: the tables that UEFI firmware finds and those of
//! direct boot then describe one machine. They lie in the firmware area below 1 MiB, which the memory map reserves.

mod dsdt;
mod fixed;
mod loader;
mod madt;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use loader::{LOADER_FILE, Loadable, RSDP_FILE, TABLES_FILE, loadable};

use crate::layout;
use crate::spec::CpuSpec;

/// The sleep type that powers the machine off: what `\_S5` says, and what the power management block obeys.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Where the tables lie; the RSDP is first, where a legacy search finds it too (ACPI 6.5, 5.2.5.1).
pub const TABLES: Range<u64> = 0xE_0000..0x10_0000;

const OEM: [u8; 6] = *b"THRWAY";
const OEM_TABLE: [u8; 8] = *b"THROUGHW";
const OEM_REVISION: u32 = 1;
/// The FACS must be on a 64-byte boundary (ACPI 6.5, 5.2.10); the others take what it takes.
const ALIGNMENT: usize = 64;

/// The tables cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many processors.
    #[error("ACPI tables for {cpus} vCPUs take {size} bytes, and {} are there for them; use fewer vCPUs", TABLES.end - TABLES.start)]
    TooLarge {
        /// vCPUs.
        cpus: u32,
        /// Bytes.
        size: usize,
    },
    /// A window for BARs is empty, or the 32-bit one leaves the first 4 GiB.
    #[error("{:#x} to {:#x} is no window for PCI memory", .0.start, .0.end)]
    Window(Range<u64>),
    /// Guest RAM has nothing there.
    #[error("Writing ACPI tables into guest memory: {0}")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// The guest physical addresses that PCI BARs may take, as the host bridge's `_CRS` offers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB: at least one.
    pub mmio32: Vec<Range<u64>>,
    /// Above guest RAM, where there are any.
    pub mmio64: Vec<Range<u64>>,
}

/// The machine that the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Processors.
    pub cpus: CpuSpec,
    /// Where BARs may be.
    pub windows: Windows,
    /// Where the chipset decodes.
    pub decoding: Decoding,
    /// There is a pvpanic port.
    pub panic_port: bool,
}

/// Where the chipset decodes what the tables name: fixed under direct boot, and the firmware's to say under UEFI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// Guest physical address of ECAM for 256 buses.
    pub ecam: u64,
    /// First port of the power management block.
    pub pm_base: u16,
}

impl Default for Decoding {
    /// As direct boot has it.
    fn default() -> Self {
        Self { ecam: layout::ECAM_START, pm_base: layout::PMBASE }
    }
}

/// Builds the tables as they lie from [`TABLES`]`.start` on, the RSDP first.
pub fn build(spec: &AcpiSpec) -> Result<Vec<u8>, Error> {
    let mut tables = Placed { bytes: vec![0; Rsdp::len()], base: TABLES.start };
    let offsets = tables.place_all(spec)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, TABLES.start + offsets.xsdt).to_aml_bytes(&mut rsdp);
    for (slot, byte) in tables.bytes.iter_mut().zip(rsdp) {
        *slot = byte;
    }
    let size = tables.bytes.len();
    if size as u64 > TABLES.end - TABLES.start {
        return Err(Error::TooLarge { cpus: spec.cpus.count(), size });
    }
    Ok(tables.bytes)
}

/// Builds the tables and writes them into guest RAM; the answer is the address of the RSDP.
pub fn write(memory: &GuestMemoryMmap<()>, spec: &AcpiSpec) -> Result<u64, Error> {
    memory.write_slice(&build(spec)?, GuestAddress(TABLES.start))?;
    Ok(TABLES.start)
}

/// Tables one after the other, from guest physical address `base` on.
struct Placed {
    bytes: Vec<u8>,
    base: u64,
}

/// Where the tables that point to others lie, from the start of the bytes.
struct Offsets {
    fadt: u64,
    xsdt: u64,
}

impl Placed {
    fn place_all(&mut self, spec: &AcpiSpec) -> Result<Offsets, Error> {
        let base = self.base;
        let facs = self.place(&FACS::new());
        let dsdt = self.place(&dsdt::build(spec)?);
        let fadt = self.place(&fixed::build(base + facs, base + dsdt, spec.decoding.pm_base));
        let madt = self.place(&madt::build(spec.cpus));
        let mcfg = self.place(&mcfg(spec.decoding.ecam));
        let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        [fadt, madt, mcfg].into_iter().for_each(|table| root.add_entry(base + table));
        let xsdt = self.place(&root);
        Ok(Offsets { fadt, xsdt })
    }

    /// Appends a table; its offset.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        offset as u64
    }
}

/// One segment of 256 buses (PCI Firmware Specification 3.3, 4.1.2).
fn mcfg(ecam: u64) -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    table.add_ecam(ecam, 0, 0, 255);
    table
}

#[cfg(test)]
mod tests;
