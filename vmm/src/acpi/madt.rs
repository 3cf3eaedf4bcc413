//! MADT: interrupt controllers (ACPI 6.5, 5.2.12).
//!
//! Made of bytes: the crate's MADT knows neither x2APICs, nor overrides, nor the table's flags.

use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::cpuid::apic_id;
use crate::layout;
use crate::spec::CpuSpec;

/// Table flags: there are also two 8259 PICs, to be masked.
const PCAT_COMPAT: u32 = 1;
/// Processor flags: usable.
const ENABLED: u32 = 1;
/// Interrupt flags: as the bus has it; or active high and level-triggered.
const CONFORMS: u16 = 0;
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// An id that an 8-bit local APIC cannot have: it means all of them.
const BROADCAST: u32 = 0xff;
/// The local interrupt pin that NMI comes by.
const NMI_PIN: u8 = 1;

pub(super) fn build(cpus: CpuSpec) -> Sdt {
    let mut body = Vec::new();
    let mut put = |bytes: &[u8]| body.extend_from_slice(bytes);
    put(&u32::try_from(layout::LAPIC).unwrap_or(u32::MAX).to_le_bytes());
    put(&PCAT_COMPAT.to_le_bytes());

    let mut any_wide = false;
    for index in 0..cpus.count() {
        let id = apic_id(index, cpus);
        // What both fields can say in eight bits is a local APIC, the rest x2APICs (5.2.12.12).
        match (u8::try_from(index), u8::try_from(id)) {
            (Ok(uid), Ok(narrow)) if id < BROADCAST && index < BROADCAST => put(&local_apic(uid, narrow)),
            _ => {
                any_wide = true;
                put(&local_x2apic(index, id));
            }
        }
    }
    put(&io_apic());
    // The timer's interrupt is wired to the I/O APIC's third pin; the SCI is as PCI and ACPI want it.
    put(&interrupt_override(0, 2, CONFORMS));
    let sci = u8::try_from(layout::SCI_IRQ).unwrap_or(u8::MAX);
    put(&interrupt_override(sci, layout::SCI_IRQ, ACTIVE_HIGH_LEVEL));
    put(&[4, 6, 0xff, 0, 0, NMI_PIN]);
    if any_wide {
        put(&[0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, NMI_PIN, 0, 0, 0]);
    }

    let mut table = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table
}

/// Processor Local APIC (5.2.12.2).
fn local_apic(uid: u8, id: u8) -> [u8; 8] {
    let [a, b, c, d] = ENABLED.to_le_bytes();
    [0, 8, uid, id, a, b, c, d]
}

/// Processor Local x2APIC (5.2.12.12).
fn local_x2apic(uid: u32, id: u32) -> Vec<u8> {
    let words = [id, ENABLED, uid].map(u32::to_le_bytes);
    [&[9, 16, 0, 0][..], words.as_flattened()].concat()
}

/// I/O APIC 0, whose first pin is GSI 0 (5.2.12.3).
fn io_apic() -> Vec<u8> {
    let words = [u32::try_from(layout::IOAPIC).unwrap_or(u32::MAX), 0].map(u32::to_le_bytes);
    [&[1, 12, 0, 0][..], words.as_flattened()].concat()
}

/// Interrupt Source Override of an ISA interrupt (5.2.12.5).
fn interrupt_override(irq: u8, gsi: u32, flags: u16) -> Vec<u8> {
    [&[2, 10, 0, irq][..], &gsi.to_le_bytes(), &flags.to_le_bytes()].concat()
}
