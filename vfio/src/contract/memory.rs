//! Memory of the suite's own: for DMA, and to look at a region through.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Stop;
use crate::function::{DmaSource, MmapArea, PciFunction, RegionIndex};

/// One page.
pub(super) const PAGE: usize = 4096;

/// Shared memory, unmapped when dropped: take it back from a device first.
pub(super) struct Memory {
    address: *mut u8,
    length: usize,
    file: Option<OwnedFd>,
}

// SAFETY: threads share the mapping as they share a device's memory: by volatile accesses to whole words.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many pages of zeros.
    pub(super) fn new(pages: usize) -> Result<Self, Stop> {
        let file = memfd_create("contract", MemfdFlags::CLOEXEC)?;
        let length = pages * PAGE;
        ftruncate(&file, length as u64)?;
        let address = map(&file, 0, length)?;
        Ok(Self { address, length, file: Some(file) })
    }

    /// A part of a region.
    pub(super) fn of(function: &dyn PciFunction, index: RegionIndex, area: MmapArea) -> Result<Self, Stop> {
        let (file, offset) = function.mmap_source(index, area)?;
        let length = usize::try_from(area.size).map_err(|error| Stop::Broken(error.to_string()))?;
        Ok(Self { address: map(file, offset, length)?, length, file: None })
    }

    /// For DMA, from a page on.
    pub(super) fn source(&self, page: usize) -> DmaSource<'_> {
        let offset = page * PAGE;
        DmaSource {
            host_address: self.address.wrapping_add(offset),
            file: self.file.as_ref().map(|file| (file.as_fd(), offset as u64)),
        }
    }

    /// A 32-bit word at a multiple of four.
    pub(super) fn word(&self, at: usize) -> u32 {
        assert!(at + 4 <= self.length && at.is_multiple_of(4));
        // SAFETY: the word lies in the mapping and is aligned; a device may change it, so it is read as such.
        unsafe { self.address.wrapping_add(at).cast::<u32>().read_volatile() }
    }

    /// Writes a 32-bit word at a multiple of four.
    pub(super) fn set_word(&self, at: usize, value: u32) {
        assert!(at + 4 <= self.length && at.is_multiple_of(4));
        // SAFETY: as in `word`.
        unsafe { self.address.wrapping_add(at).cast::<u32>().write_volatile(value) }
    }

    /// Fills a page with words that tell it and their places apart.
    pub(super) fn fill(&self, page: usize, seed: u32) {
        for (at, place) in (page * PAGE..(page + 1) * PAGE).step_by(4).zip(0_u32..) {
            self.set_word(at, seed ^ place.wrapping_mul(0x9e37_79b9));
        }
    }

    /// Whether a page is as `fill` left it.
    pub(super) fn is_filled(&self, page: usize, seed: u32) -> bool {
        let mut words = (page * PAGE..(page + 1) * PAGE).step_by(4).zip(0_u32..);
        words.all(|(at, place)| self.word(at) == seed ^ place.wrapping_mul(0x9e37_79b9))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length, and nobody follows the address any more.
        if let Err(error) = unsafe { munmap(self.address.cast(), self.length) } {
            tracing::warn!("Unmapping the test's memory: {error}");
        }
    }
}

fn map(file: impl AsFd, offset: u64, length: usize) -> Result<*mut u8, Stop> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let address = unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, offset) }?;
    Ok(address.cast())
}
