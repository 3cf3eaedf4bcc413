//! FADT: the chipset's fixed registers (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout;

/// Offsets from PMBASE and lengths in bytes (Intel ICH9 datasheet, 13.8.3).
const PM1_EVENT: (u16, u8) = (0, 4);
const PM1_CONTROL: (u16, u8) = (4, 2);
const PM_TIMER: (u16, u8) = (8, 4);
const GPE0: (u16, u8) = (0x20, 16);

/// The reset control register, and the value that resets all (ICH9 datasheet, 13.7.5).
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 6;
/// The CMOS register that holds the century.
const CENTURY: u8 = 0x32;
/// There are devices on the LPC bus that only these tables tell of: the serial port, the clock.
const LEGACY_DEVICES: u16 = 1 << 0;
/// No VGA to probe for.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// C2 and C3 do not exist: these latencies are above the limits that would allow them.
const NO_C2: u16 = 0x0fff;
const NO_C3: u16 = 0x0fff;

/// Points to FACS and DSDT, which lie below 4 GiB, and to the power management block at port `pm_base`.
pub(super) fn build(facs: u64, dsdt: u64, pm_base: u16) -> FADT {
    let port = |(offset, length): (u16, u8)| (u32::from(pm_base).saturating_add(offset.into()), length);
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button, and no wake-up by clock. The power button is a fixed one, which is what a clear bit says.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    table.firmware_ctrl = u32::try_from(facs).unwrap_or(0).into();
    (table.dsdt, table.x_dsdt) = (u32::try_from(dsdt).unwrap_or(0).into(), dsdt.into());
    // No SMI command port: the machine is in ACPI mode from power-on.
    table.sci_int = u16::try_from(layout::SCI_IRQ).unwrap_or(u16::MAX).into();

    let (event, event_length) = port(PM1_EVENT);
    let (control, control_length) = port(PM1_CONTROL);
    let (timer, timer_length) = port(PM_TIMER);
    let (gpe0, gpe0_length) = port(GPE0);
    (table.pm1a_evt_blk, table.pm1_evt_len, table.x_pm1a_evt_blk) =
        (event.into(), event_length, register(event, event_length));
    (table.pm1a_cnt_blk, table.pm1_cnt_len, table.x_pm1a_cnt_blk) =
        (control.into(), control_length, register(control, control_length));
    let wide = GAS::new(AddressSpace::SystemIo, timer_length * 8, 0, AccessSize::DwordAccess, timer.into());
    (table.pm_tmr_blk, table.pm_tmr_len, table.x_pm_tmr_blk) = (timer.into(), timer_length, wide);
    (table.gpe0_blk, table.gpe0_blk_len, table.x_gpe0_blk) =
        (gpe0.into(), gpe0_length, register(gpe0, gpe0_length));

    (table.p_lvl2_lat, table.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    table.century = CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    table.reset_reg = register(u32::from(RESET_PORT), 1);
    table.reset_value = RESET_VALUE;
    table.finalize()
}

/// A register block of `length` bytes at an I/O port, accessed as ACPI asks for it: words for PM1, bytes for GPE0.
fn register(port: u32, length: u8) -> GAS {
    let access = match length {
        1 | 16 => AccessSize::ByteAccess,
        _ => AccessSize::WordAccess,
    };
    GAS::new(AddressSpace::SystemIo, length * 8, 0, access, u64::from(port))
}
