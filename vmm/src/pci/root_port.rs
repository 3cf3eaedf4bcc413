//! A PCI Express root port: the bridge between bus 0 and one guest slot.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config_space::{ConfigSpace, Header, Identity, LayoutError, offset};
use super::{ConfigEffect, PciDevice};

/// The virtual root port that guests know from QEMU.
const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x000c, revision: 0, class: 0x06_0400, subsystem: None };

/// Capability IDs.
const POWER_MANAGEMENT: u8 = 0x01;
const VENDOR_SPECIFIC: u8 = 0x09;
const SUBSYSTEM: u8 = 0x0d;
const PCI_EXPRESS: u8 = 0x10;

/// Secondary bus reset, in the bridge control register (PCIe 7.5.1.3.13).
const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// Registers of the PCI Express capability (PCIe 7.5.3), as offsets from its start, and their bits.
mod express {
    pub(super) const LENGTH: usize = 0x3c;
    pub(super) const CAPABILITIES: u16 = 0x02;
    pub(super) const DEVICE_CAPABILITIES: u16 = 0x04;
    pub(super) const DEVICE_CONTROL: u16 = 0x08;
    pub(super) const DEVICE_STATUS: u16 = 0x0a;
    pub(super) const LINK_CAPABILITIES: u16 = 0x0c;
    pub(super) const LINK_CONTROL: u16 = 0x10;
    pub(super) const LINK_STATUS: u16 = 0x12;
    pub(super) const SLOT_CAPABILITIES: u16 = 0x14;
    pub(super) const SLOT_CONTROL: u16 = 0x18;
    pub(super) const SLOT_STATUS: u16 = 0x1a;
    pub(super) const ROOT_CONTROL: u16 = 0x1c;
    pub(super) const ROOT_STATUS: u16 = 0x20;
    pub(super) const DEVICE_CONTROL_2: u16 = 0x28;
    pub(super) const LINK_CAPABILITIES_2: u16 = 0x2c;
    pub(super) const LINK_CONTROL_2: u16 = 0x30;

    /// Version 2, root port, slot implemented.
    pub(super) const VERSION_2_ROOT_PORT_WITH_SLOT: u16 = 2 | 4 << 4 | 1 << 8;
    pub(super) const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// 16 GT/s.
    pub(super) const SPEED: u16 = 4;
    pub(super) const WIDTH_16: u16 = 16 << 4;
    /// 2.5 to 16 GT/s, in the supported link speeds vector.
    pub(super) const SPEEDS: u32 = 0x1e;
    pub(super) const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
    pub(super) const LINK_ACTIVE: u16 = 1 << 13;
    pub(super) const HOTPLUG_SURPRISE: u32 = 1 << 5;
    pub(super) const HOTPLUG_CAPABLE: u32 = 1 << 6;
    pub(super) const NO_COMMAND_COMPLETED: u32 = 1 << 18;
    pub(super) const PRESENCE_CHANGED: u16 = 1 << 3;
    pub(super) const PRESENT: u16 = 1 << 6;
    pub(super) const LINK_CHANGED: u16 = 1 << 8;
}

/// A root port with one slot. Bus numbers and windows are what the guest, its firmware or the planner wrote; config
/// cycles follow the numbers.
pub struct RootPort {
    label: String,
    express: u16,
    state: Mutex<State>,
}

struct State {
    space: ConfigSpace,
    occupied: bool,
}

impl RootPort {
    /// A root port with `slot` on its slot number (1 to 8191) and port number; `occupied` when something is behind it.
    pub fn new(slot: u16, occupied: bool) -> Result<Self, LayoutError> {
        let mut space = ConfigSpace::new(Header::Bridge, IDENTITY);
        bridge_registers(&mut space);
        let express = express_capability(&mut space, slot)?;
        let power = space.add_capability(POWER_MANAGEMENT, &[0x03, 0, 0, 0, 0, 0])?;
        space.define_u16(power + 4, NO_SOFT_RESET, 0x0003);
        let [vendor, subsystem] = [0x1af4_u16, 0x1100].map(u16::to_le_bytes);
        space.add_capability(SUBSYSTEM, &[0, 0, vendor[0], vendor[1], subsystem[0], subsystem[1]])?;
        space.add_capability(VENDOR_SPECIFIC, &reservation())?;
        let port = Self {
            label: format!("root port {slot}"),
            express,
            state: Mutex::new(State { space, occupied }),
        };
        port.show_occupied(&mut port.lock());
        Ok(port)
    }

    /// Something was plugged in or taken out: presence and link follow, with their change bits.
    pub fn set_occupied(&self, occupied: bool) {
        let mut state = self.lock();
        if state.occupied != occupied {
            state.occupied = occupied;
            self.show_occupied(&mut state);
            let slot_status = self.express + express::SLOT_STATUS;
            let changed = express::PRESENCE_CHANGED | express::LINK_CHANGED;
            let status = state.space.u16(slot_status) | changed;
            state.space.set_u16(slot_status, status);
        }
    }

    fn show_occupied(&self, state: &mut State) {
        let (presence, link) = if state.occupied { (express::PRESENT, express::LINK_ACTIVE) } else { (0, 0) };
        for (register, bit, value) in [
            (express::SLOT_STATUS, express::PRESENT, presence),
            (express::LINK_STATUS, express::LINK_ACTIVE, link),
        ] {
            let register = self.express + register;
            let rest = state.space.u16(register) & !bit;
            state.space.set_u16(register, rest | value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What firmware shall set aside for devices that are plugged in later (QEMU, docs/pcie_pci_bridge.txt): no I/O ports, of
/// which there are too few for all slots, and else what it sets aside by itself.
fn reservation() -> Vec<u8> {
    const LENGTH: u8 = 32;
    const RESOURCES: u8 = 1;
    const DEFAULT: [u8; 8] = [0xff; 8];
    let (buses, ports, memory) = (&DEFAULT[..4], [0; 8], &DEFAULT[..4]);
    [&[LENGTH, RESOURCES], buses, &ports, memory, memory, &DEFAULT].concat()
}

/// Power management control: D3hot to D0 is no reset (PCIe 7.5.2.2).
const NO_SOFT_RESET: u16 = 1 << 3;

/// Bus numbers, windows and control of the type 1 header (PCIe 7.5.1.3).
fn bridge_registers(space: &mut ConfigSpace) {
    for register in [offset::PRIMARY_BUS, offset::SECONDARY_BUS, offset::SUBORDINATE_BUS] {
        space.define_u8(register, 0, 0xff);
    }
    for register in [offset::IO_BASE, offset::IO_LIMIT] {
        space.define_u8(register, 0, 0xf0);
    }
    space.clears_u16(offset::SECONDARY_STATUS, 0xf900);
    for register in [offset::MEMORY_BASE, offset::MEMORY_LIMIT] {
        space.define_u16(register, 0, 0xfff0);
    }
    for register in [offset::PREFETCHABLE_BASE, offset::PREFETCHABLE_LIMIT] {
        // 1: the upper 32 bits are there too.
        space.define_u16(register, 1, 0xfff0);
    }
    for register in [offset::PREFETCHABLE_BASE_UPPER, offset::PREFETCHABLE_LIMIT_UPPER] {
        space.define_u32(register, 0, u32::MAX);
    }
    space.define_u16(offset::BRIDGE_CONTROL, 0, 0x001f | SECONDARY_BUS_RESET);
}

fn express_capability(space: &mut ConfigSpace, slot: u16) -> Result<u16, LayoutError> {
    let start = space.add_capability(PCI_EXPRESS, &[0; express::LENGTH - 2])?;
    let at = |register: u16| start + register;
    let slot = u32::from(slot & 0x1fff);
    space.define_u16(at(express::CAPABILITIES), express::VERSION_2_ROOT_PORT_WITH_SLOT, 0);
    space.define_u32(at(express::DEVICE_CAPABILITIES), express::ROLE_BASED_ERRORS, 0);
    space.define_u16(at(express::DEVICE_CONTROL), 0, 0x00ff);
    space.clears_u16(at(express::DEVICE_STATUS), 0x000f);
    let link = u32::from(express::SPEED | express::WIDTH_16);
    let port_number = (slot & 0xff) << 24;
    space.define_u32(at(express::LINK_CAPABILITIES), port_number | express::LINK_ACTIVE_REPORTING | link, 0);
    space.define_u16(at(express::LINK_CONTROL), 0, 0x00c3);
    space.define_u16(at(express::LINK_STATUS), express::SPEED | express::WIDTH_16, 0);
    let slot_abilities =
        express::HOTPLUG_CAPABLE | express::HOTPLUG_SURPRISE | express::NO_COMMAND_COMPLETED | slot << 19;
    space.define_u32(at(express::SLOT_CAPABILITIES), slot_abilities, 0);
    space.define_u16(at(express::SLOT_CONTROL), 0, 0x1038);
    space.clears_u16(at(express::SLOT_STATUS), 0x011f);
    space.define_u16(at(express::ROOT_CONTROL), 0, 0x000f);
    space.clears_u32(at(express::ROOT_STATUS), 1 << 16);
    space.define_u16(at(express::DEVICE_CONTROL_2), 0, 0x001f);
    space.define_u32(at(express::LINK_CAPABILITIES_2), express::SPEEDS, 0);
    space.define_u16(at(express::LINK_CONTROL_2), express::SPEED, 0x000f);
    Ok(start)
}

impl PciDevice for RootPort {
    fn label(&self) -> &str {
        &self.label
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        let mut state = self.lock();
        let before = state.space.u16(offset::BRIDGE_CONTROL);
        let effect = state.space.write(offset, data);
        let begun = !before & state.space.u16(offset::BRIDGE_CONTROL) & SECONDARY_BUS_RESET;
        ConfigEffect { reset_below: begun != 0, ..effect }
    }

    fn bridge_buses(&self) -> Option<(u8, u8)> {
        let state = self.lock();
        Some((state.space.u8(offset::SECONDARY_BUS), state.space.u8(offset::SUBORDINATE_BUS)))
    }

    fn reset(&self) -> Result<(), String> {
        let mut state = self.lock();
        state.space.reset();
        self.show_occupied(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(port: &RootPort, offset: u16) -> u32 {
        port.lock().space.u32(offset)
    }

    #[test]
    fn it_is_a_root_port_with_an_occupied_hotplug_slot() {
        let port = RootPort::new(5, true).unwrap();
        assert_eq!(u32_at(&port, 0x00), 0x000c_1b36);
        assert_eq!(u32_at(&port, 0x08) >> 8, 0x06_0400);
        assert_eq!(u32_at(&port, 0x34) & 0xff, 0x40);
        assert_eq!(u32_at(&port, 0x40) >> 16, 0x0142);
        assert_eq!(u32_at(&port, 0x54) >> 19, 5, "slot number");
        assert_eq!(u32_at(&port, 0x58) >> 16 & 0x40, 0x40, "present");
        assert_eq!(u32_at(&port, 0x50) >> 16, 0x2104, "link active, x16, 16 GT/s");
    }

    #[test]
    fn firmware_sets_no_ports_aside_for_hotplug() {
        let port = RootPort::new(1, true).unwrap();
        let mut at = u32_at(&port, 0x34) & 0xff;
        while u32_at(&port, u16::try_from(at).unwrap()) & 0xff != 0x09 {
            at = u32_at(&port, u16::try_from(at).unwrap()) >> 8 & 0xff;
            assert_ne!(at, 0, "the list ends");
        }
        let word = |index: u32| u32_at(&port, u16::try_from(at + 4 * index).unwrap());
        assert_eq!(word(0) >> 16, 0x0120);
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(word), [u32::MAX, 0, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX]);
    }

    #[test]
    fn it_forwards_the_buses_that_were_written() {
        let port = RootPort::new(1, true).unwrap();
        assert_eq!(port.bridge_buses(), Some((0, 0)));
        assert!(port.write_config(0x18, &[0, 3, 4, 0]).buses);
        assert_eq!(port.bridge_buses(), Some((3, 4)));
        port.reset().unwrap();
        assert_eq!(port.bridge_buses(), Some((0, 0)));
        assert_eq!(u32_at(&port, 0x58) >> 16 & 0x40, 0x40, "still present");
    }

    #[test]
    fn setting_secondary_bus_reset_resets_once() {
        let port = RootPort::new(1, true).unwrap();
        assert!(port.write_config(0x3e, &[0x40, 0]).reset_below);
        assert!(!port.write_config(0x3e, &[0x42, 0]).reset_below);
        assert!(!port.write_config(0x3e, &[0x02, 0]).reset_below);
        assert!(port.write_config(0x3c, &[0, 0, 0x40, 0]).reset_below);
    }

    #[test]
    fn plugging_shows_presence_link_and_their_changes() {
        let port = RootPort::new(1, false).unwrap();
        assert_eq!(u32_at(&port, 0x58) >> 16, 0);
        port.set_occupied(true);
        assert_eq!(u32_at(&port, 0x58) >> 16, 0x0148);
        let _ = port.write_config(0x5a, &[0x08, 0x01]);
        assert_eq!(u32_at(&port, 0x58) >> 16, 0x0040);
    }

    #[test]
    fn windows_have_the_granules_of_a_bridge() {
        let port = RootPort::new(1, true).unwrap();
        for register in [0x1c, 0x20, 0x24, 0x28, 0x2c] {
            let _ = port.write_config(register, &[0xff; 4]);
        }
        assert_eq!(u32_at(&port, 0x1c) & 0xffff, 0xf0f0);
        assert_eq!(u32_at(&port, 0x20), 0xfff0_fff0);
        assert_eq!(u32_at(&port, 0x24), 0xfff1_fff1);
        assert_eq!(u32_at(&port, 0x28), u32::MAX);
    }
}
