//! A fake's I/O address space: maps that are written down, and that a test does DMA through.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use super::{Call, Log, lock};
use crate::function::{DmaSource, Error, IoAddressSpace};

const PAGE: u64 = 4096;
const LABEL: &str = "fake IOMMU";

/// Memory that was mapped.
#[derive(Clone, Copy)]
struct Mapped {
    size: u64,
    host_address: *mut u8,
}

// SAFETY: who mapped the memory keeps it mapped until it is taken back, for all threads; it is followed under the lock.
unsafe impl Send for Mapped {}

struct State {
    ranges: Vec<RangeInclusive<u64>>,
    maps: BTreeMap<u64, Mapped>,
}

/// An address space whose maps can be looked at.
pub struct FakeSpace {
    log: Log,
    state: Mutex<State>,
}

impl FakeSpace {
    pub(super) fn new(log: Log) -> Self {
        let ranges = std::iter::once(0..=u64::MAX).collect();
        Self { log, state: Mutex::new(State { ranges, maps: BTreeMap::new() }) }
    }

    /// From now on it takes these I/O addresses only.
    pub fn allow(&self, ranges: &[RangeInclusive<u64>]) {
        lock(&self.state).ranges = ranges.to_vec();
    }

    /// What is mapped now: I/O address and bytes, ascending.
    pub fn maps(&self) -> Vec<(u64, u64)> {
        lock(&self.state).maps.iter().map(|(iova, mapped)| (*iova, mapped.size)).collect()
    }

    /// Reads through the maps, as a device does.
    ///
    /// # Errors
    /// [`Error::Io`] with EFAULT where not all of it is mapped: what an IOMMU reports as a fault.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Error> {
        let length = data.len();
        self.walk(iova, length, |done, host, count| {
            // SAFETY: `walk` gives `count` bytes of a mapped range, which the caller of `map` keeps mapped while it is in
            // the maps, as it is under their lock; and as many of the caller's buffer are left.
            unsafe { std::ptr::copy(host, data.as_mut_ptr().wrapping_add(done), count) };
        })
    }

    /// Writes through the maps, as a device does.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), Error> {
        self.walk(iova, data.len(), |done, host, count| {
            // SAFETY: as in `read`, the other way.
            unsafe { std::ptr::copy(data.as_ptr().wrapping_add(done), host, count) };
        })
    }

    /// Hands out the pieces of memory that lie behind `length` bytes: distance from the start, address, bytes.
    fn walk(
        &self,
        iova: u64,
        length: usize,
        mut each: impl FnMut(usize, *mut u8, usize),
    ) -> Result<(), Error> {
        let state = lock(&self.state);
        let mut done = 0;
        while done < length {
            let at = iova.wrapping_add(u64::try_from(done).unwrap_or(u64::MAX));
            let below = state.maps.range(..=at).next_back();
            let piece = below.and_then(|(start, mapped)| {
                let into = at - start;
                let rest = usize::try_from(mapped.size.checked_sub(into)?).ok()?;
                let host = mapped.host_address.wrapping_add(usize::try_from(into).ok()?);
                (rest > 0).then_some((host, rest))
            });
            let Some((host, rest)) = piece else {
                return Err(failed(format!("DMA at {at:#x}"), libc::EFAULT));
            };
            let count = rest.min(length - done);
            each(done, host, count);
            done += count;
        }
        Ok(())
    }
}

impl IoAddressSpace for FakeSpace {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        lock(&self.state).ranges.clone()
    }

    unsafe fn map(&self, iova: u64, size: u64, source: DmaSource<'_>) -> Result<(), Error> {
        lock(&self.log).push(Call::DmaMap(iova, size));
        let mut state = lock(&self.state);
        let doing = || format!("mapping {size:#x} bytes at I/O address {iova:#x}");
        let last = iova.checked_add(size.saturating_sub(1));
        let Some(last) = last.filter(|_| size > 0 && iova.is_multiple_of(PAGE) && size.is_multiple_of(PAGE))
        else {
            return Err(failed(doing(), libc::EINVAL));
        };
        if !state.ranges.iter().any(|range| range.contains(&iova) && range.contains(&last)) {
            return Err(failed(doing(), libc::EINVAL));
        }
        let below = state.maps.range(..=last).next_back();
        if below.is_some_and(|(start, mapped)| start.saturating_add(mapped.size) > iova) {
            return Err(failed(doing(), libc::EEXIST));
        }
        state.maps.insert(iova, Mapped { size, host_address: source.host_address });
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        lock(&self.log).push(Call::DmaUnmap(iova, size));
        let mut state = lock(&self.state);
        if state.maps.get(&iova).is_none_or(|mapped| mapped.size != size) {
            let doing = format!("unmapping {size:#x} bytes at I/O address {iova:#x}");
            return Err(failed(doing, libc::ENOENT));
        }
        state.maps.remove(&iova);
        Ok(())
    }
}

fn failed(doing: String, errno: i32) -> Error {
    Error::Io { function: LABEL.to_owned(), doing, source: io::Error::from_raw_os_error(errno) }
}
