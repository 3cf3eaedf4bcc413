//! Port 0x92: the A20 gate, which this machine has open for good, and a way to reset (ICH9, 13.7.3).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::Action;
use crate::bus::BusDevice;

/// The port.
pub(super) const PORT: u64 = 0x92;
const RESET: u8 = 1;
const A20: u8 = 1 << 1;

/// The register: what was written to the gate reads back.
pub struct Port92(AtomicU8);

impl Default for Port92 {
    fn default() -> Self {
        Self(AtomicU8::new(A20))
    }
}

impl BusDevice for Port92 {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(self.0.load(Ordering::Relaxed));
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        let Some(value) = data.first() else { return Action::None };
        let resets = value & RESET != 0 && self.0.load(Ordering::Relaxed) & RESET == 0;
        self.0.store(value & A20, Ordering::Relaxed);
        if resets { Action::Reset } else { Action::None }
    }
}
