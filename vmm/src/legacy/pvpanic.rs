//! pvpanic: the port by which a guest's kernel says that it has panicked (QEMU, docs/specs/pvpanic.rst). Linux and Windows
//! know it by the ACPI device QEMU0001.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::Action;
use crate::bus::BusDevice;

/// The kernel panicked, and nobody in the guest takes care of it.
const PANICKED: u8 = 1 << 0;
/// The kernel panicked and goes on as a crash kernel, which sees to the dump.
const CRASH_LOADED: u8 = 1 << 1;

/// The device: reading says which events it knows, writing says that they happened.
#[derive(Default)]
pub struct PvPanic {
    /// What was said since the last reset: each event counts once, so that a guest cannot flood its owner.
    said: AtomicU8,
}

impl PvPanic {
    /// Back to power-on.
    pub fn reset(&self) {
        self.said.store(0, Ordering::Relaxed);
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        let events = data.first().copied().unwrap_or(0) & (PANICKED | CRASH_LOADED);
        let new = events & !self.said.fetch_or(events, Ordering::Relaxed);
        if new & PANICKED != 0 {
            Action::Panicked
        } else if new & CRASH_LOADED != 0 {
            Action::CrashKernel
        } else {
            Action::None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_panic_is_told_once_until_a_reset() {
        let device = PvPanic::default();
        let mut events = [0xff];
        device.read(0, &mut events);
        assert_eq!(events, [3]);
        assert_eq!(device.write(0, &[CRASH_LOADED]), Action::CrashKernel);
        assert_eq!(device.write(0, &[PANICKED]), Action::Panicked);
        assert_eq!(device.write(0, &[PANICKED | CRASH_LOADED]), Action::None);
        device.reset();
        assert_eq!(device.write(0, &[PANICKED | CRASH_LOADED]), Action::Panicked);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_told_twice_at_most(writes: Vec<Vec<u8>>) {
            let device = PvPanic::default();
            let told = writes.iter().filter(|data| device.write(0, data) != Action::None).count();
            prop_assert!(told <= 2);
        }
    }
}
