//! ACPI tables for firmware that places them itself: bytes whose pointers are offsets, and the script by which the firmware
//! turns those into addresses and makes the checksums right (QEMU, docs/specs and hw/acpi/bios-linker-loader.c: the format
//! that OVMF and SeaBIOS share).

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;

use super::{AcpiSpec, Error, OEM, Offsets, Placed};

/// The name of the script.
pub const LOADER_FILE: &str = "etc/table-loader";
/// The name of the RSDP, in the script too.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The name of all other tables, in the script too.
pub const TABLES_FILE: &str = "etc/acpi/tables";

/// The script's entries have this size, each.
const ENTRY: usize = 128;
/// File names in it have this size, with a NUL.
const NAME: usize = 56;

/// Allocate memory for a file and read the file into it.
const ALLOCATE: u32 = 1;
/// Add the address of one file to a field of another.
const ADD_POINTER: u32 = 2;
/// Make the bytes of a range sum up to 0.
const ADD_CHECKSUM: u32 = 3;

/// Zones of memory to allocate from: anywhere below 4 GiB, or the segment where the RSDP is searched for.
const HIGH: u8 = 1;
const SEGMENT_F: u8 = 2;

/// Offsets in an ACPI table header, in a FADT and in the RSDP (ACPI 6.5, 5.2.6, 5.2.9, 5.2.5.3).
const LENGTH: usize = 4;
const CHECKSUM: u32 = 9;
const XSDT_ENTRIES: u32 = 36;
const FADT_FACS: u32 = 36;
const FADT_DSDT: u32 = 40;
const FADT_X_DSDT: u32 = 140;
const RSDP_CHECKSUM: u32 = 8;
const RSDP_FIRST_LENGTH: u32 = 20;
const RSDP_XSDT: u32 = 24;
const RSDP_EXTENDED_CHECKSUM: u32 = 32;
const RSDP_LENGTH: u32 = 36;

/// Tables that firmware loads.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Loadable {
    /// [`LOADER_FILE`].
    pub script: Vec<u8>,
    /// [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// [`TABLES_FILE`].
    pub tables: Vec<u8>,
}

/// Builds the tables of a machine for firmware to load.
pub fn loadable(spec: &AcpiSpec) -> Result<Loadable, Error> {
    let mut placed = Placed { bytes: Vec::new(), base: 0 };
    let offsets = placed.place_all(spec)?;
    let mut tables = placed.bytes;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, offsets.xsdt).to_aml_bytes(&mut rsdp);
    let script = script(&offsets, &mut tables, &mut rsdp);
    Ok(Loadable { script, rsdp, tables })
}

fn script(offsets: &Offsets, tables: &mut [u8], rsdp: &mut [u8]) -> Vec<u8> {
    let at = |offset: u64, register: u32| u32::try_from(offset).unwrap_or(u32::MAX).saturating_add(register);
    let mut script = Vec::with_capacity(20 * ENTRY);
    let mut put = |entry: [u8; ENTRY]| script.extend_from_slice(&entry);
    put(allocate(TABLES_FILE, 64, HIGH));
    put(allocate(RSDP_FILE, 16, SEGMENT_F));
    for (offset, size) in [
        (at(offsets.fadt, FADT_FACS), 4),
        (at(offsets.fadt, FADT_DSDT), 4),
        (at(offsets.fadt, FADT_X_DSDT), 8),
        (at(offsets.xsdt, XSDT_ENTRIES), 8),
        (at(offsets.xsdt, XSDT_ENTRIES + 8), 8),
        (at(offsets.xsdt, XSDT_ENTRIES + 16), 8),
    ] {
        put(add_pointer(TABLES_FILE, offset, size));
    }
    put(add_pointer(RSDP_FILE, RSDP_XSDT, 8));
    // Only what a pointer was added to has another sum now; the rest is right and stays so.
    for table in [offsets.fadt, offsets.xsdt] {
        let length = u32_at(tables, at(table, 0)).unwrap_or(0);
        put(add_checksum(TABLES_FILE, at(table, CHECKSUM), at(table, 0), length));
        clear(tables, at(table, CHECKSUM));
    }
    for (register, length) in [(RSDP_CHECKSUM, RSDP_FIRST_LENGTH), (RSDP_EXTENDED_CHECKSUM, RSDP_LENGTH)] {
        put(add_checksum(RSDP_FILE, register, 0, length));
        clear(rsdp, register);
    }
    script
}

/// The length that a table at `offset` says it has.
fn u32_at(tables: &[u8], offset: u32) -> Option<u32> {
    let start = usize::try_from(offset).ok()?.checked_add(LENGTH)?;
    tables.get(start..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The firmware subtracts the sum of all bytes, the checksum among them, so it starts as 0.
fn clear(bytes: &mut [u8], offset: u32) {
    if let Some(byte) = usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset)) {
        *byte = 0;
    }
}

fn entry(command: u32, fields: &[&[u8]]) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let bytes =
        command.to_le_bytes().into_iter().chain(fields.iter().flat_map(|field| field.iter().copied()));
    entry.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
    entry
}

fn name(file: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    name.iter_mut().zip(file.bytes().take(NAME - 1)).for_each(|(slot, byte)| *slot = byte);
    name
}

fn allocate(file: &str, alignment: u32, zone: u8) -> [u8; ENTRY] {
    entry(ALLOCATE, &[&name(file), &alignment.to_le_bytes(), &[zone]])
}

/// All pointers are to tables, as the RSDP is pointed to by nobody.
fn add_pointer(file: &str, offset: u32, size: u8) -> [u8; ENTRY] {
    entry(ADD_POINTER, &[&name(file), &name(TABLES_FILE), &offset.to_le_bytes(), &[size]])
}

fn add_checksum(file: &str, result: u32, start: u32, length: u32) -> [u8; ENTRY] {
    entry(ADD_CHECKSUM, &[&name(file), &result.to_le_bytes(), &start.to_le_bytes(), &length.to_le_bytes()])
}
