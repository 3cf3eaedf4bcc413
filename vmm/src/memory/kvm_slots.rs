//! KVM as a listener of guest RAM: each region is a memory slot.

use std::sync::{Arc, Mutex, PoisonError};

use super::{MemoryListener, RamRegion};
use crate::vm::{MappedSlot, Vm};

/// Shows guest RAM to the guest.
pub struct KvmSlots {
    vm: Arc<Vm>,
    slots: Mutex<Vec<MappedSlot>>,
}

impl KvmSlots {
    /// For one machine.
    pub fn new(vm: Arc<Vm>) -> Self {
        Self { vm, slots: Mutex::default() }
    }
}

impl MemoryListener for KvmSlots {
    fn added(&self, region: RamRegion<'_>) -> Result<(), String> {
        // SAFETY: `GuestRam` keeps the region mapped until `removed` has returned, or until it and its listeners are
        // dropped, which the machine does after its vCPUs have ended.
        let mapped = unsafe { self.vm.map(region.guest_address, region.host_address, region.size, false) };
        let slot = mapped.map_err(|error| error.to_string())?;
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        Ok(())
    }

    fn removed(&self, region: RamRegion<'_>) -> Result<(), String> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = slots.iter().position(|slot| slot.guest_address() == region.guest_address) else {
            return Ok(());
        };
        self.vm.unmap(slots.swap_remove(at)).map_err(|error| error.to_string())
    }
}
