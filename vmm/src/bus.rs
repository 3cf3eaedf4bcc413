//! The two flat address spaces that vCPU exits go to: I/O ports and memory-mapped I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::Action;

/// Something that answers at a range of addresses. Locks inside; accesses come from any vCPU at any time.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the range. `data` arrives as all ones: leave it for what
    /// is not implemented.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

/// Two ranges would overlap, or one has no length or leaves the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The range of {size:#x} bytes at {base:#x} overlaps another one on this bus or is no range")]
pub struct Overlap {
    /// First address of the refused range.
    pub base: u64,
    /// Its length in bytes.
    pub size: u64,
}

struct Entry {
    size: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space. Unassigned reads give all ones, unassigned writes go nowhere.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `size` bytes from `base`.
    pub fn insert(&self, base: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let refused = Overlap { base, size };
        let end = base.checked_add(size).filter(|end| *end > base).ok_or(refused)?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let below = ranges.range(..end).next_back();
        if below.is_some_and(|(start, entry)| start.saturating_add(entry.size) > base) {
            return Err(refused);
        }
        ranges.insert(base, Entry { size, device });
        Ok(())
    }

    /// Takes away what starts at `base`; true if there was something.
    pub fn remove(&self, base: u64) -> bool {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&base).is_some()
    }

    /// A guest's read.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Whether something answers at `address`.
    pub fn is_assigned(&self, address: u64) -> bool {
        self.find(address, 1).is_some()
    }

    /// A guest's write.
    pub fn write(&self, address: u64, data: &[u8]) -> Action {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => Action::None,
        }
    }

    /// The device that holds the whole access; one that crosses an end is unassigned.
    fn find(&self, address: u64, length: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, entry) = ranges.range(..=address).next_back()?;
        let offset = address - base;
        let last = offset.checked_add(u64::try_from(length).ok()?)?;
        (last <= entry.size).then(|| (Arc::clone(&entry.device), offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Answers with the offset and remembers the last write.
    #[derive(Default)]
    struct Probe(AtomicU64);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&offset.to_le_bytes()[..data.len()]);
        }

        fn write(&self, offset: u64, _: &[u8]) -> Action {
            self.0.store(offset, Ordering::Relaxed);
            Action::Reset
        }
    }

    #[test]
    fn accesses_reach_the_device_with_its_own_offsets() {
        let (bus, probe) = (Bus::new(), Arc::new(Probe::default()));
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        let mut byte = [0];
        bus.read(0x100f, &mut byte);
        assert_eq!(byte, [0x0f]);
        assert_eq!(bus.write(0x1004, &[1]), Action::Reset);
        assert_eq!(probe.0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn what_nobody_holds_reads_all_ones() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Probe::default())).unwrap();
        for (address, length) in [(0xfff, 1), (0x1010, 4), (0x100e, 4), (u64::MAX, 8)] {
            let mut data = vec![0; length];
            bus.read(address, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff), "{address:#x}");
            assert_eq!(bus.write(address, &data), Action::None);
        }
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Probe::default())).unwrap();
        for (base, size) in
            [(0x1000, 0x10), (0xfff, 2), (0x100f, 1), (0x0, 0x2000), (0x2000, 0), (u64::MAX, 2)]
        {
            assert!(bus.insert(base, size, Arc::new(Probe::default())).is_err(), "{base:#x}+{size:#x}");
        }
        assert!(bus.remove(0x1000));
        assert!(!bus.remove(0x1000));
    }
}
