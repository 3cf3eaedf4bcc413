//! The two functions of the chipset that software looks for: the host bridge at 00:00.0 and the LPC bridge at 00:1f.0
//! (Intel 3 Series Express Chipset, 316966; Intel ICH9, 316972).

use std::sync::{Mutex, PoisonError};

use super::{ConfigEffect, ConfigSpace, Header, Identity, PciDevice};
use crate::layout;

/// Red Hat's subsystem IDs, by which guests know a virtual Q35 board.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
const INTEL: u16 = 0x8086;

/// A function that is nothing but its configuration space.
pub struct RegisterFile {
    label: &'static str,
    space: Mutex<ConfigSpace>,
}

impl RegisterFile {
    fn new(label: &'static str, space: ConfigSpace) -> Self {
        Self { label, space: Mutex::new(space) }
    }

    fn with<T>(&self, access: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        access(&mut self.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PciDevice for RegisterFile {
    fn label(&self) -> &str {
        self.label
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.with(|space| space.read(offset, data));
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.with(|space| space.write(offset, data))
    }

    fn reset(&self) -> Result<(), String> {
        self.with(ConfigSpace::reset);
        Ok(())
    }
}

/// The Q35 host bridge, for 00:00.0.
///
/// PCIEXBAR (0x60) says where ECAM is; it is fixed, so firmware that writes another place reads back the true one.
/// The PAM registers hold what is written and steer nothing: RAM below 1 MiB is RAM.
pub fn host_bridge() -> RegisterFile {
    const PCIEXBAR: u16 = 0x60;
    const PCIEXBAR_ENABLE: u64 = 1;
    let identity =
        Identity { vendor: INTEL, device: 0x29c0, revision: 0, class: 0x06_0000, subsystem: Some(SUBSYSTEM) };
    let mut space = ConfigSpace::new(Header::Endpoint, identity);
    space.define(PCIEXBAR, &(layout::ECAM_START | PCIEXBAR_ENABLE).to_le_bytes(), &[0; 8]);
    // Firmware asks here for a larger TSEG than the chipset's; reading back what it wrote says no.
    space.define_u16(0x50, 0, 0xffff);
    space.define_u8(0x90, 0, 0x30);
    for pam in 0x91..=0x96 {
        space.define_u8(pam, 0, 0x33);
    }
    RegisterFile::new("host bridge", space)
}

/// The ICH9 LPC bridge, for 00:1f.0.
pub fn lpc_bridge() -> RegisterFile {
    const PMBASE: u16 = 0x40;
    const ACPI_CNTL: u16 = 0x44;
    const ACPI_ENABLE: u8 = 0x80;
    const PIRQ_ROUTES: [u16; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
    const PIRQ_NOT_ROUTED: u8 = 0x80;
    const RCBA: u16 = 0xf0;
    let identity =
        Identity { vendor: INTEL, device: 0x2918, revision: 2, class: 0x06_0100, subsystem: Some(SUBSYSTEM) };
    let mut space = ConfigSpace::new(Header::Endpoint, identity);
    space.define_u32(PMBASE, u32::from(layout::PMBASE) | 1, 0);
    // The interrupt of ACPI events is number 9 when the lowest bits are 0.
    space.define_u8(ACPI_CNTL, ACPI_ENABLE, 0);
    for register in PIRQ_ROUTES {
        space.define_u8(register, PIRQ_NOT_ROUTED, 0x8f);
    }
    space.define_u32(RCBA, 0, 0xffff_c001);
    RegisterFile::new("LPC bridge", space)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(function: &RegisterFile, offset: u16) -> u32 {
        function.with(|space| space.u32(offset))
    }

    #[test]
    fn the_host_bridge_is_a_q35_and_says_where_ecam_is() {
        let bridge = host_bridge();
        assert_eq!(u32_at(&bridge, 0x00), 0x29c0_8086);
        assert_eq!(u32_at(&bridge, 0x2c), 0x1100_1af4);
        assert_eq!(u32_at(&bridge, 0x60), 0xe000_0001);
        let _ = bridge.write_config(0x60, &[0; 4]);
        assert_eq!(u32_at(&bridge, 0x60), 0xe000_0001);
        let _ = bridge.write_config(0x90, &[0xff; 4]);
        assert_eq!(u32_at(&bridge, 0x90), 0x3333_3330);
        bridge.reset().unwrap();
        assert_eq!(u32_at(&bridge, 0x90), 0);
    }

    #[test]
    fn the_lpc_bridge_says_where_power_management_is() {
        let bridge = lpc_bridge();
        assert_eq!(u32_at(&bridge, 0x00), 0x2918_8086);
        assert_eq!(u32_at(&bridge, 0x40), 0x601);
        assert_eq!(u32_at(&bridge, 0x44) & 0xff, 0x80);
        let _ = bridge.write_config(0x60, &[0x0b, 0x0b, 0x0b, 0x0b]);
        assert_eq!(u32_at(&bridge, 0x60), 0x0b0b_0b0b);
    }
}
