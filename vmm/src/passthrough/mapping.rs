//! Parts of a function's regions, mapped into this process.

use std::io;
use std::os::fd::AsRawFd;

use vfio::{MmapArea, PciFunction, RegionIndex};

use super::Error;

const PAGE: u64 = 4096;

/// One mapped part of a region. Unmapped when dropped: take it from the guest and from the IOMMU first.
pub(super) struct Mapping {
    address: *mut u8,
    area: MmapArea,
}

// SAFETY: the address is never followed here; it is only handed to the kernel.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `area` of a region, for writing too where the region can be written. It reserves addresses and takes no
    /// memory: the device's own is faulted in when it is touched.
    pub(super) fn new(
        function: &dyn PciFunction,
        index: RegionIndex,
        area: MmapArea,
        writable: bool,
    ) -> Result<Self, Error> {
        let failed = |error| Error::host(function.label(), "Mapping a BAR")(error);
        let (file, offset) = function.mmap_source(index, area)?;
        let length = usize::try_from(area.size).map_err(io::Error::other).map_err(failed)?;
        let file_offset = libc::off_t::try_from(offset).map_err(io::Error::other).map_err(failed)?;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let place = reserve(length, area).map_err(failed)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the mapping replaces the reservation that was just made for it, and nothing else.
        let address = unsafe { libc::mmap(place, length, protection, flags, file.as_raw_fd(), file_offset) };
        if address == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: what is still the reservation is ours alone.
            unsafe { libc::munmap(place, length) };
            return Err(failed(error));
        }
        Ok(Self { address: address.cast(), area })
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }

    pub(super) fn area(&self) -> MmapArea {
        self.area
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let length = usize::try_from(self.area.size).unwrap_or(0);
        // SAFETY: `new` made this mapping with this length, and who shared its address has taken it back.
        unsafe { libc::munmap(self.address.cast(), length) };
    }
}

/// Addresses for `length` bytes. Those of a large area lie as its bytes lie in the BAR, so that the host can map 2 MiB or
/// 1 GiB at once (BARs are naturally aligned in the host's addresses, and the planner aligns them in the guest's).
fn reserve(length: usize, area: MmapArea) -> io::Result<*mut libc::c_void> {
    let alignment = match area.size {
        0x4000_0000.. => 0x4000_0000,
        0x20_0000.. => 0x20_0000,
        _ => PAGE,
    };
    let alignment = usize::try_from(alignment).map_err(io::Error::other)?;
    let phase = usize::try_from(area.offset).map_err(io::Error::other)? % alignment;
    let whole = length.checked_add(alignment).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // At most `alignment` further, as the start is a multiple of pages and so is the phase.
    let skip = phase.wrapping_sub(start.addr()) % alignment;
    let place = start.wrapping_byte_add(skip);
    for (rest, size) in [(start, skip), (place.wrapping_byte_add(length), alignment - skip)] {
        if size > 0 {
            // SAFETY: both ends are parts of the reservation that nobody knows of.
            unsafe { libc::munmap(rest, size) };
        }
    }
    Ok(place)
}

/// What of `areas` may be mapped when the pages of `holes` (start, length) must be trapped. Page-aligned, ascending.
pub(super) fn mappable(areas: &[MmapArea], region_size: u64, holes: &[(u64, u64)]) -> Vec<MmapArea> {
    let mut holes: Vec<_> = holes
        .iter()
        .map(|(start, length)| (start & !(PAGE - 1), round_up(start.saturating_add(*length))))
        .collect();
    holes.sort_unstable();
    let mut parts = Vec::new();
    for area in areas {
        let end = area.offset.saturating_add(area.size).min(region_size) & !(PAGE - 1);
        let mut start = round_up(area.offset);
        for (hole_start, hole_end) in &holes {
            push(&mut parts, start, end.min(*hole_start));
            start = start.max(if *hole_start < end { *hole_end } else { start });
        }
        push(&mut parts, start, end);
    }
    parts.sort_unstable_by_key(|part| part.offset);
    parts
}

fn push(parts: &mut Vec<MmapArea>, start: u64, end: u64) {
    if start < end {
        parts.push(MmapArea { offset: start, size: end - start });
    }
}

fn round_up(value: u64) -> u64 {
    value.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(offset: u64, size: u64) -> MmapArea {
        MmapArea { offset, size }
    }

    #[test]
    fn the_pages_of_holes_are_left_out() {
        let whole = [area(0, 0x4000)];
        assert_eq!(mappable(&whole, 0x4000, &[]), [area(0, 0x4000)]);
        assert_eq!(
            mappable(&whole, 0x4000, &[(0, 0x50), (0x2000, 8)]),
            [area(0x1000, 0x1000), area(0x3000, 0x1000)]
        );
        assert_eq!(mappable(&whole, 0x4000, &[(0x1ff8, 16)]), [area(0, 0x1000), area(0x3000, 0x1000)]);
        assert_eq!(mappable(&whole, 0x4000, &[(0x3000, 0x50), (0x3800, 8)]), [area(0, 0x3000)]);
        assert_eq!(mappable(&whole, 0x4000, &[(0, 0x4000)]), []);
    }

    #[test]
    fn large_areas_lie_in_memory_as_in_the_bar() {
        for (area, alignment) in [
            (area(0x3000, 0x1000), 0x1000),
            (area(0x1000, 0x30_0000), 0x20_0000),
            (area(0x20_1000, 3 << 30), 1 << 30),
        ] {
            let length = usize::try_from(area.size).unwrap();
            let place = reserve(length, area).unwrap();
            assert_eq!(place.addr() as u64 % alignment, area.offset % alignment);
            // SAFETY: the reservation is ours.
            assert_eq!(unsafe { libc::munmap(place, length) }, 0);
        }
    }

    #[test]
    fn sparse_areas_and_ragged_ends_are_kept_within_pages() {
        let sparse = [area(0x10_0000, 0x2000), area(0, 0x1800)];
        assert_eq!(mappable(&sparse, 0x20_0000, &[]), [area(0, 0x1000), area(0x10_0000, 0x2000)]);
        assert_eq!(mappable(&[area(0, 256)], 256, &[]), []);
        assert_eq!(mappable(&[area(u64::MAX - 4, 100)], u64::MAX, &[(u64::MAX, 9)]), []);
    }
}
