//! Config space by two ports (PCI Local Bus 3.0, 3.2.2.3.2), and the reset control register that lies between them
//! (Intel ICH9, 13.7.5).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::Root;
use crate::Action;
use crate::bus::BusDevice;

/// CONFIG_ADDRESS.
pub(super) const FIRST: u16 = 0xcf8;
/// Up to the end of CONFIG_DATA.
pub(super) const COUNT: u64 = 8;

/// CONFIG_ADDRESS: accesses to CONFIG_DATA become config cycles.
const ENABLE: u32 = 1 << 31;
/// Offset of RST_CNT, one byte in the middle of CONFIG_ADDRESS, which in turn takes 4-byte accesses only.
const RST_CNT: u64 = 1;
/// Offset of CONFIG_DATA.
const CONFIG_DATA: u64 = 4;
/// RST_CNT: reset, now.
const RST_CPU: u8 = 1 << 2;
/// RST_CNT: what kind of reset it shall be. They are held.
const RST_KIND: u8 = 1 << 1 | 1 << 3;

pub(super) struct ConfigPorts(Weak<Root>);

impl ConfigPorts {
    pub(super) fn new(root: &Arc<Root>) -> Self {
        Self(Arc::downgrade(root))
    }
}

/// Bus, device and function, and register of an access to CONFIG_DATA, if it is one.
fn target(root: &Root, offset: u64) -> Option<(u8, u8, u16)> {
    let byte = u16::try_from(offset.checked_sub(CONFIG_DATA)?).ok()?;
    let address = root.address.load(Ordering::Relaxed);
    let [register, devfn, bus, _] = address.to_le_bytes();
    (address & ENABLE != 0).then_some((bus, devfn, u16::from(register & 0xfc) + byte))
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(root) = self.0.upgrade() else { return };
        if let Some((bus, devfn, register)) = target(&root, offset) {
            return root.cycle_read(bus, devfn, register, data);
        }
        match (offset, data) {
            (0, data @ [_, _, _, _]) => {
                data.copy_from_slice(&root.address.load(Ordering::Relaxed).to_le_bytes());
            }
            (RST_CNT, [byte]) => *byte = root.reset_control.load(Ordering::Relaxed),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(root) = self.0.upgrade() else { return Action::None };
        if let Some((bus, devfn, register)) = target(&root, offset) {
            return root.cycle_write(bus, devfn, register, data);
        }
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                // The lowest two bits and 24 to 30 are hardwired to 0.
                let address = u32::from_le_bytes([a, b, c, d]) & 0x80ff_fffc;
                root.address.store(address, Ordering::Relaxed);
                Action::None
            }
            (RST_CNT, &[value]) => {
                root.reset_control.store(value & RST_KIND, Ordering::Relaxed);
                if value & RST_CPU != 0 { Action::Reset } else { Action::None }
            }
            _ => Action::None,
        }
    }
}
