//! Writing a plan into the hierarchy, as firmware does before it starts a kernel.

use std::ops::Range;

use super::{Bridge, Placed, Plan};
use crate::pci::config_space::{command, offset};
use crate::pci::{BarKind, Place, Root};

impl Plan {
    /// Writes bus numbers, windows and BARs, and turns decoding on. Endpoints may not master the bus yet: that is their
    /// drivers' business. The functions are as after power-on.
    pub fn program(&self, root: &Root) {
        for bridge in &self.bridges {
            program_bridge(root, bridge);
        }
        for placed in &self.bars {
            program_bar(root, placed);
        }
        for (place, _) in root.devices() {
            self.enable(root, place);
            route_interrupt(root, place);
        }
        for placed in self.unplaced() {
            tracing::debug!(
                "{}: I/O BAR {} has no address: the I/O windows are taken",
                placed.label,
                placed.bar.index
            );
        }
    }

    /// Turns on what has an address. The ROM's own enable bit stays off.
    fn enable(&self, root: &Root, place: Place) {
        let wants =
            |placed: &&Placed| placed.place == place && placed.address.is_some() && placed.bar.index < 6;
        let mut bits = self.bars.iter().filter(wants).fold(0, |bits, placed| match placed.bar.kind {
            BarKind::Io => bits | command::IO,
            _ => bits | command::MEMORY,
        });
        if self.bridges.iter().any(|bridge| Place::Root(bridge.port) == place) {
            bits |= command::IO | command::MEMORY | command::BUS_MASTER;
        }
        if bits != 0 {
            let mut value = [0; 2];
            root.read_config(place, offset::COMMAND, &mut value);
            write(root, place, offset::COMMAND, &(u16::from_le_bytes(value) | bits).to_le_bytes());
        }
    }
}

fn write(root: &Root, place: Place, offset: u16, data: &[u8]) {
    // No register that is written here asks for anything.
    let _ = root.write_config(place, offset, data);
}

fn program_bridge(root: &Root, bridge: &Bridge) {
    let port = Place::Root(bridge.port);
    for (register, bus) in
        [(offset::PRIMARY_BUS, 0), (offset::SECONDARY_BUS, bridge.bus), (offset::SUBORDINATE_BUS, bridge.bus)]
    {
        write(root, port, register, &[bus]);
    }
    // A window whose base is above its limit is closed.
    let [base, limit] = edges(bridge.io.as_ref(), 0xf000);
    write(root, port, offset::IO_BASE, &[bits::<1>(base >> 8)[0], bits::<1>(limit >> 8)[0]]);
    let [base, limit] = edges(bridge.memory.as_ref(), 0xfff0_0000);
    write(root, port, offset::MEMORY_BASE, &bits::<2>(base >> 16));
    write(root, port, offset::MEMORY_LIMIT, &bits::<2>(limit >> 16));
    let [base, limit] = edges(bridge.prefetchable.as_ref(), 0xfff0_0000);
    write(root, port, offset::PREFETCHABLE_BASE, &bits::<2>(base >> 16));
    write(root, port, offset::PREFETCHABLE_LIMIT, &bits::<2>(limit >> 16));
    write(root, port, offset::PREFETCHABLE_BASE_UPPER, &bits::<4>(base >> 32));
    write(root, port, offset::PREFETCHABLE_LIMIT_UPPER, &bits::<4>(limit >> 32));
}

/// First and last address of a window.
fn edges(window: Option<&Range<u64>>, closed_base: u64) -> [u64; 2] {
    window.map_or([closed_base, 0], |window| [window.start, window.end.saturating_sub(1)])
}

/// The lowest bytes of a register's value.
fn bits<const N: usize>(value: u64) -> [u8; N] {
    let mut low = [0; N];
    for (slot, byte) in low.iter_mut().zip(value.to_le_bytes()) {
        *slot = byte;
    }
    low
}

fn program_bar(root: &Root, placed: &Placed) {
    let Some(address) = placed.address else { return };
    let register = match placed.bar.index {
        6 => offset::ROM,
        index => offset::BAR0.saturating_add(u16::from(index).saturating_mul(4)),
    };
    write(root, placed.place, register, &bits::<4>(address));
    if matches!(placed.bar.kind, BarKind::Memory64 { .. }) {
        write(root, placed.place, register.saturating_add(4), &bits::<4>(address >> 32));
    }
}

/// The interrupt line register tells drivers without ACPI which input the pin leads to.
fn route_interrupt(root: &Root, place: Place) {
    let mut pin = [0];
    root.read_config(place, offset::INTERRUPT_PIN, &mut pin);
    if let Some(line) = place.intx_gsi(pin[0]).and_then(|gsi| u8::try_from(gsi).ok()) {
        write(root, place, offset::INTERRUPT_LINE, &[line]);
    }
}
