//! Memory of ours that the guest reads and runs without an exit, and whose writes come to us.

use std::sync::Arc;

use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

use crate::Action;
use crate::bus::BusDevice;
use crate::vm::{self, MappedSlot, Vm};

/// A mapping, and the memory slot that shows it to the guest while it does.
pub(super) struct ReadOnly {
    vm: Arc<Vm>,
    // Before `region`: the slot goes before the memory that it shows (see `drop`).
    slot: Option<MappedSlot>,
    region: MmapRegion,
    guest_address: u64,
}

impl ReadOnly {
    /// Not shown yet.
    pub(super) fn new(vm: &Arc<Vm>, region: MmapRegion, guest_address: u64) -> Self {
        Self { vm: Arc::clone(vm), slot: None, region, guest_address }
    }

    /// The guest's reads no longer exit.
    pub(super) fn show(&mut self) -> Result<(), vm::Error> {
        if self.slot.is_none() {
            let size = u64::try_from(self.region.size()).unwrap_or(0);
            // SAFETY: `region` stays mapped as long as `self`, and dropping `self` takes the slot away first.
            let slot = unsafe { self.vm.map(self.guest_address, self.region.as_ptr(), size, true) }?;
            self.slot = Some(slot);
        }
        Ok(())
    }

    /// The guest's reads exit.
    pub(super) fn hide(&mut self) -> Result<(), vm::Error> {
        match self.slot.take() {
            Some(slot) => self.vm.unmap(slot),
            None => Ok(()),
        }
    }

    /// The memory: the guest may be reading it.
    pub(super) fn bytes(&self) -> VolatileSlice<'_> {
        self.region.as_volatile_slice()
    }
}

/// On the bus for what does not go by the memory slot: writes, which change nothing, and our own looks at what the guest runs.
impl BusDevice for ReadOnly {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(offset) = usize::try_from(offset) {
            // Past the end is all ones, as anywhere on a bus.
            let _ = self.bytes().read_slice(data, offset);
        }
    }

    fn write(&self, _: u64, _: &[u8]) -> Action {
        Action::None
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        if let Err(error) = self.hide() {
            tracing::error!("Taking the firmware from the guest: {error}");
        }
    }
}
