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
        let label = function.label();
        let failed = || Error::host(label, "Mapping a BAR");
        let (file, offset) = function.mmap_source(index, area)?;
        let length = usize::try_from(area.size).map_err(io::Error::other).map_err(failed())?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other).map_err(failed())?;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(failed()(io::Error::last_os_error()));
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
    fn sparse_areas_and_ragged_ends_are_kept_within_pages() {
        let sparse = [area(0x10_0000, 0x2000), area(0, 0x1800)];
        assert_eq!(mappable(&sparse, 0x20_0000, &[]), [area(0, 0x1000), area(0x10_0000, 0x2000)]);
        assert_eq!(mappable(&[area(0, 256)], 256, &[]), []);
        assert_eq!(mappable(&[area(u64::MAX - 4, 100)], u64::MAX, &[(u64::MAX, 9)]), []);
    }
}
