//! The two functions of the chipset that software looks for: the host bridge at 00:00.0 and the LPC bridge at 00:1f.0
//! (Intel 3 Series Express Chipset, 316966; Intel ICH9, 316972).

use std::sync::{Arc, Mutex, PoisonError};

use super::{ConfigEffect, ConfigSpace, Header, Identity, PciDevice, Window};
use crate::Action;
use crate::bus::BusDevice;
use crate::layout;

/// Red Hat's subsystem IDs, by which guests know a virtual Q35 board.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
const INTEL: u16 = 0x8086;

/// What the chipset functions hold at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOn {
    /// ECAM and the power management block are decoded where [`layout`] says, as firmware would have left it, and for good:
    /// nobody else moves them.
    Programmed,
    /// Nothing is decoded until firmware says where.
    Bare,
}

/// Where PCIEXBAR of the host bridge says that ECAM is, with its enable bit (3 Series, 5.1.13).
pub const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u64 = 1;
/// Bits of the address: 256 MiB of it, for 256 buses, and 36 bits wide. What asks for fewer buses is not taken.
const PCIEXBAR_ADDRESS: u64 = 0xf_f000_0000;

/// Where the LPC bridge says that the power management block is, and that it is (ICH9, 13.1.10 and 13.1.11).
pub const PMBASE: u16 = 0x40;
const PMBASE_ADDRESS: u32 = 0xff80;
const ACPI_CNTL: u16 = 0x44;
const ACPI_ENABLE: u8 = 0x80;

/// A chipset function whose configuration space says where something else is decoded.
pub struct Decoding {
    label: &'static str,
    space: Mutex<ConfigSpace>,
    decodes: fn(&ConfigSpace) -> Option<Window>,
    decoded: Arc<dyn BusDevice>,
}

impl Decoding {
    fn with<T>(&self, access: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        access(&mut self.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PciDevice for Decoding {
    fn label(&self) -> &str {
        self.label
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.with(|space| space.read(offset, data));
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.with(|space| {
            let before = (self.decodes)(space);
            let effect = space.write(offset, data);
            ConfigEffect { windows: effect.windows || before != (self.decodes)(space), ..effect }
        })
    }

    fn windows(&self) -> Vec<Window> {
        self.with(|space| (self.decodes)(space)).into_iter().collect()
    }

    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) {
        self.decoded.read(offset, data);
    }

    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) -> Action {
        self.decoded.write(offset, data)
    }

    fn reset(&self) -> Result<(), String> {
        self.with(ConfigSpace::reset);
        Ok(())
    }
}

/// The Q35 host bridge, for 00:00.0. `ecam` answers where PCIEXBAR says.
///
/// The PAM registers hold what is written and steer nothing: RAM below 1 MiB is RAM.
pub fn host_bridge(ecam: Arc<dyn BusDevice>, power_on: PowerOn) -> Decoding {
    let identity =
        Identity { vendor: INTEL, device: 0x29c0, revision: 0, class: 0x06_0000, subsystem: Some(SUBSYSTEM) };
    let mut space = ConfigSpace::new(Header::Endpoint, identity);
    let (place, writable) = match power_on {
        PowerOn::Programmed => (layout::ECAM_START | PCIEXBAR_ENABLE, 0),
        PowerOn::Bare => (0, PCIEXBAR_ADDRESS | PCIEXBAR_ENABLE),
    };
    space.define(PCIEXBAR, &place.to_le_bytes(), &writable.to_le_bytes());
    // Firmware asks here for a larger TSEG than the chipset's; reading back what it wrote says no.
    space.define_u16(0x50, 0, 0xffff);
    space.define_u8(0x90, 0, 0x30);
    for pam in 0x91..=0x96 {
        space.define_u8(pam, 0, 0x33);
    }
    Decoding { label: "host bridge", space: Mutex::new(space), decodes: ecam_window, decoded: ecam }
}

fn ecam_window(space: &ConfigSpace) -> Option<Window> {
    let register = u64::from(space.u32(PCIEXBAR + 4)) << 32 | u64::from(space.u32(PCIEXBAR));
    let base = register & PCIEXBAR_ADDRESS;
    (register & PCIEXBAR_ENABLE != 0).then_some(Window { bar: 0, io: false, base, size: layout::ECAM_SIZE })
}

/// The ICH9 LPC bridge, for 00:1f.0. `pm` answers at the [`PM_BLOCK_SIZE`](crate::legacy::PM_BLOCK_SIZE) ports from PMBASE.
pub fn lpc_bridge(pm: Arc<dyn BusDevice>, power_on: PowerOn) -> Decoding {
    const PIRQ_ROUTES: [u16; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
    const PIRQ_NOT_ROUTED: u8 = 0x80;
    const RCBA: u16 = 0xf0;
    let identity =
        Identity { vendor: INTEL, device: 0x2918, revision: 2, class: 0x06_0100, subsystem: Some(SUBSYSTEM) };
    let mut space = ConfigSpace::new(Header::Endpoint, identity);
    let ((base, enable), (address, enabling)) = match power_on {
        PowerOn::Programmed => ((u32::from(layout::PMBASE), ACPI_ENABLE), (0, 0)),
        PowerOn::Bare => ((0, 0), (PMBASE_ADDRESS, ACPI_ENABLE)),
    };
    space.define_u32(PMBASE, base | 1, address);
    // The interrupt of ACPI events is number 9 when the lowest bits are 0, and they are.
    space.define_u8(ACPI_CNTL, enable, enabling);
    for register in PIRQ_ROUTES {
        space.define_u8(register, PIRQ_NOT_ROUTED, 0x8f);
    }
    space.define_u32(RCBA, 0, 0xffff_c001);
    Decoding { label: "LPC bridge", space: Mutex::new(space), decodes: pm_window, decoded: pm }
}

fn pm_window(space: &ConfigSpace) -> Option<Window> {
    let base = u64::from(space.u32(PMBASE) & PMBASE_ADDRESS);
    let on = space.u8(ACPI_CNTL) & ACPI_ENABLE != 0 && base != 0;
    on.then_some(Window { bar: 0, io: true, base, size: crate::legacy::PM_BLOCK_SIZE.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }

        fn write(&self, _: u64, _: &[u8]) -> Action {
            Action::Reset
        }
    }

    fn u32_at(function: &Decoding, offset: u16) -> u32 {
        function.with(|space| space.u32(offset))
    }

    #[test]
    fn the_host_bridge_is_a_q35_and_says_where_ecam_is() {
        let bridge = host_bridge(Arc::new(Echo), PowerOn::Programmed);
        assert_eq!(u32_at(&bridge, 0x00), 0x29c0_8086);
        assert_eq!(u32_at(&bridge, 0x2c), 0x1100_1af4);
        assert_eq!(u32_at(&bridge, 0x60), 0xe000_0001);
        assert_eq!(bridge.windows()[0].base, 0xe000_0000);
        assert!(!bridge.write_config(0x60, &[0; 4]).windows, "it is where it is");
        assert_eq!(u32_at(&bridge, 0x60), 0xe000_0001);
        let mut byte = [0];
        bridge.read_bar(0, 0x34, &mut byte);
        assert_eq!(byte, [0x34]);
        let _ = bridge.write_config(0x90, &[0xff; 4]);
        assert_eq!(u32_at(&bridge, 0x90), 0x3333_3330);
        bridge.reset().unwrap();
        assert_eq!((u32_at(&bridge, 0x90), u32_at(&bridge, 0x60)), (0, 0xe000_0001));
    }

    #[test]
    fn the_lpc_bridge_says_where_power_management_is() {
        let bridge = lpc_bridge(Arc::new(Echo), PowerOn::Programmed);
        assert_eq!(u32_at(&bridge, 0x00), 0x2918_8086);
        assert_eq!(u32_at(&bridge, 0x40), 0x601);
        assert_eq!(u32_at(&bridge, 0x44) & 0xff, 0x80);
        assert_eq!(bridge.windows(), [Window { bar: 0, io: true, base: 0x600, size: 0x80 }]);
        assert!(!bridge.write_config(0x40, &0xb001_u32.to_le_bytes()).windows);
        assert!(!bridge.write_config(0x44, &[0]).windows);
        assert_eq!(bridge.write_bar(0, 4, &[1]), Action::Reset);
        let _ = bridge.write_config(0x60, &[0x0b, 0x0b, 0x0b, 0x0b]);
        assert_eq!(u32_at(&bridge, 0x60), 0x0b0b_0b0b);
    }

    #[test]
    fn bare_ones_decode_nothing_until_they_are_told() {
        let (host, lpc) =
            (host_bridge(Arc::new(Echo), PowerOn::Bare), lpc_bridge(Arc::new(Echo), PowerOn::Bare));
        assert!(host.windows().is_empty() && lpc.windows().is_empty());
        // As OVMF does it.
        assert!(!lpc.write_config(0x40, &0x601_u32.to_le_bytes()).windows);
        assert!(lpc.write_config(0x44, &[0x80]).windows);
        assert_eq!(lpc.windows()[0].base, 0x600);
        assert!(lpc.write_config(0x40, &0xb001_u32.to_le_bytes()).windows);
        assert_eq!(lpc.windows()[0].base, 0xb000);
        assert!(!host.write_config(0x64, &[0xf0, 0, 0, 0]).windows, "it has 36 bits");
        assert!(host.write_config(0x60, &0xb000_0001_u32.to_le_bytes()).windows);
        assert_eq!(host.windows(), [Window { bar: 0, io: false, base: 0xb000_0000, size: 0x1000_0000 }]);
        host.reset().unwrap();
        assert!(host.windows().is_empty());
    }
}
