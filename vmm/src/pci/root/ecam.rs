//! Config space as memory: a page for each function (PCIe 7.2.2).

use std::sync::{Arc, Weak};

use super::Root;
use crate::Action;
use crate::bus::BusDevice;

pub(super) struct Ecam(Weak<Root>);

impl Ecam {
    pub(super) fn new(root: &Arc<Root>) -> Self {
        Self(Arc::downgrade(root))
    }
}

/// Bus, device and function, and register of an offset into ECAM.
fn target(offset: u64) -> (u8, u8, u16) {
    let [devfn, bus, ..] = (offset >> 12).to_le_bytes();
    let [low, high, ..] = offset.to_le_bytes();
    (bus, devfn, u16::from(high & 0xf) << 8 | u16::from(low))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(root) = self.0.upgrade() else { return };
        let (bus, devfn, register) = target(offset);
        root.cycle_read(bus, devfn, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(root) = self.0.upgrade() else { return Action::None };
        let (bus, devfn, register) = target(offset);
        root.cycle_write(bus, devfn, register, data)
    }
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn an_offset_holds_bus_device_function_and_register() {
        assert_eq!(target(0), (0, 0, 0));
        assert_eq!(target(0x000f_8000 + 0x44), (0, 0xf8, 0x44));
        assert_eq!(target(0x0c30_1234), (0xc3, 0x01, 0x234));
        assert_eq!(target(0x0fff_ffff), (0xff, 0xff, 0xfff));
    }
}
