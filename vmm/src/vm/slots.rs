//! Memory slots: which guest addresses are which host memory.

use std::collections::BTreeSet;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::Error;

/// A range of guest addresses that is host memory now. Not `Clone`: who holds it takes it back.
#[derive(Debug, PartialEq, Eq)]
pub struct MappedSlot {
    slot: u32,
    guest_address: u64,
    size: u64,
}

impl MappedSlot {
    /// First guest physical address.
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Slot numbers: the lowest free one is given out.
pub(super) struct Slots {
    next: u32,
    most: u32,
    free: BTreeSet<u32>,
}

impl Slots {
    pub(super) fn new(most: u32) -> Self {
        Self { next: 0, most, free: BTreeSet::new() }
    }

    fn take(&mut self) -> Result<u32, Error> {
        if let Some(slot) = self.free.pop_first() {
            return Ok(slot);
        }
        if self.next >= self.most {
            return Err(Error::Exhausted("memory slot"));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// # Safety
    /// `host_address` must stay mapped for `size` bytes until `unmap`.
    pub(super) unsafe fn map(
        &mut self,
        vm: &VmFd,
        guest_address: u64,
        host_address: *mut u8,
        size: u64,
        read_only: bool,
    ) -> Result<MappedSlot, Error> {
        let slot = self.take()?;
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: guest_address,
            memory_size: size,
            userspace_addr: host_address as u64,
            flags: if read_only { KVM_MEM_READONLY } else { 0 },
        };
        // SAFETY: the caller keeps the memory mapped until the slot is taken back.
        let result = unsafe { vm.set_user_memory_region(region) };
        if let Err(error) = result {
            self.free.insert(slot);
            return Err(Error::call(format!("Mapping {size:#x} bytes at guest address {guest_address:#x}"))(
                error,
            ));
        }
        Ok(MappedSlot { slot, guest_address, size })
    }

    pub(super) fn unmap(&mut self, vm: &VmFd, mapped: MappedSlot) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot: mapped.slot,
            guest_phys_addr: mapped.guest_address,
            memory_size: 0,
            userspace_addr: 0,
            flags: 0,
        };
        // SAFETY: a slot of size 0 refers to no memory.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::call(format!("Unmapping guest address {:#x}", mapped.guest_address)))?;
        self.free.insert(mapped.slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_numbers_run_out_and_come_back() {
        let mut slots = Slots::new(2);
        assert_eq!((slots.take().unwrap(), slots.take().unwrap()), (0, 1));
        assert!(matches!(slots.take(), Err(Error::Exhausted(_))));
        slots.free.insert(0);
        assert_eq!(slots.take().unwrap(), 0);
    }
}
