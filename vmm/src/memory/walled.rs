//! Guest RAM between walls, for tests: who reaches beyond its ends ends the process.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vm_memory::mmap::{GuestRegionMmap, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestRegionCollection};

use super::{GuestRam, backing_file};
use crate::spec::MemorySpec;

/// Nothing is readable or writable for this long in front of a region and behind it.
const WALL: usize = 1 << 30;

/// RAM at these guest addresses (start and length in bytes, whole pages), each region with a gibibyte that faults on either
/// side of it in this process. It is never unmapped.
///
/// # Errors
/// What `mmap` says.
pub fn walled(ranges: &[(u64, u64)]) -> io::Result<GuestRam> {
    let size = ranges.iter().map(|(_, length)| length).sum();
    let file = Arc::new(backing_file(&MemorySpec { size, hugepages: None, prefault: false })?);
    file.set_len(size)?;
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, length) in ranges {
        regions.push(region(&file, offset, *start, *length)?);
        offset += length;
    }
    let memory = GuestRegionCollection::from_regions(regions).map_err(io::Error::other)?;
    Ok(GuestRam { memory, listeners: Mutex::default(), size })
}

fn region(file: &Arc<File>, offset: u64, start: u64, length: u64) -> io::Result<GuestRegionMmap<()>> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let around = length.saturating_add(2 * WALL);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let walls = unsafe { libc::mmap(std::ptr::null_mut(), around, libc::PROT_NONE, flags, -1, 0) };
    if walls == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let inside = walls.wrapping_byte_add(WALL);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let offset_there = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: it replaces the middle of the mapping that was just made, which nobody else knows of.
    let mapped: *mut c_void = unsafe {
        libc::mmap(inside, length, access, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd(), offset_there)
    };
    if mapped != inside {
        return Err(io::Error::last_os_error());
    }
    let builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(access)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    // SAFETY: `mapped` is a mapping of that length, and it is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapped.cast()) };
    let region = builder.build().map_err(io::Error::other)?;
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| io::Error::other("The region leaves the address space"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_wall_on_either_side_of_each_region() {
        let ram = walled(&[(0, 0x1_0000), (1 << 32, 0x4000)]).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for region in ram.regions() {
            let start = region.host_address.addr();
            let end = start + usize::try_from(region.size).unwrap();
            let wall =
                |ends: String| maps.lines().any(|line| line.contains(&ends) && line.contains(" ---p "));
            assert!(wall(format!("-{start:x} ")) && wall(format!("{end:x}-")), "{start:x}-{end:x}:\n{maps}");
        }
    }
}
