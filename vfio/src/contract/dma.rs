//! The I/O address space.

use std::sync::Arc;

use super::memory::{Memory, PAGE};
use super::{Awake, COMMAND, Judged, MEMORY, Stop, Subject, ensure, skip};
use crate::function::{Error, IoAddressSpace, RegionIndex};

const SIZE: u64 = PAGE as u64;

/// A page of memory at an I/O address, taken back with this.
struct Page<'a> {
    space: &'a dyn IoAddressSpace,
    iova: u64,
    _memory: &'a Memory,
}

impl<'a> Page<'a> {
    fn map(space: &'a dyn IoAddressSpace, iova: u64, memory: &'a Memory, page: usize) -> Result<Self, Error> {
        // SAFETY: the memory is borrowed for as long as this lives, and taken back when it is dropped.
        unsafe { space.map(iova, SIZE, memory.source(page)) }?;
        Ok(Self { space, iova, _memory: memory })
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.space.unmap(self.iova, SIZE) {
            tracing::error!("{error}");
        }
    }
}

/// An I/O address with a mebibyte behind it, that a device with few address bits reaches too.
pub(super) fn place(space: &dyn IoAddressSpace) -> Result<u64, Stop> {
    const WANTED: u64 = 0x100_0000;
    let fits = |range: &std::ops::RangeInclusive<u64>| {
        let start = (*range.start()).max(WANTED).checked_next_multiple_of(1 << 20)?;
        range.contains(&start.checked_add(1 << 20)?).then_some(start)
    };
    let found = space.iova_ranges().iter().find_map(fits);
    found.ok_or_else(|| Stop::Broken(format!("no room in {:x?}", space.iova_ranges())))
}

pub(super) fn ranges(subject: &dyn Subject) -> Judged {
    let ranges = subject.function().address_space().iova_ranges();
    ensure!(!ranges.is_empty(), "no I/O address is valid");
    ensure!(ranges.iter().all(|range| range.start() <= range.end()), "{ranges:x?}");
    ensure!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()), "{ranges:x?}");
    Ok(())
}

pub(super) fn reach(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let space = awake.0.address_space();
    let (memory, at) = (Memory::new(3)?, place(&*space)?);
    let [from, to] = [Page::map(&*space, at, &memory, 0)?, Page::map(&*space, at + 2 * SIZE, &memory, 1)?];
    memory.fill(0, 0x1111);
    if !subject.copy(from.iova, to.iova, PAGE) {
        return skip("the device cannot be made to do DMA");
    }
    ensure!(memory.is_filled(1, 0x1111), "the device's write has not arrived");
    // A page that is not mapped, one that was, and one that is mapped anew elsewhere in memory.
    memory.fill(0, 0x2222);
    subject.copy(from.iova, at + SIZE, PAGE);
    let at_to = to.iova;
    drop(to);
    subject.copy(from.iova, at_to, PAGE);
    ensure!(memory.is_filled(1, 0x1111), "memory that was taken back was written");
    let to = Page::map(&*space, at_to, &memory, 2)?;
    subject.copy(from.iova, to.iova, PAGE);
    ensure!(memory.is_filled(2, 0x2222), "memory that was mapped anew was not written");
    ensure!(memory.is_filled(1, 0x1111), "memory that was taken back was written");
    Ok(())
}

pub(super) fn master(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let space = awake.0.address_space();
    let (memory, at) = (Memory::new(2)?, place(&*space)?);
    let [from, to] = [Page::map(&*space, at, &memory, 0)?, Page::map(&*space, at + SIZE, &memory, 1)?];
    memory.fill(0, 0x3333);
    awake.0.write(RegionIndex::Config, COMMAND, &[MEMORY, 0])?;
    if !subject.copy(from.iova, to.iova, PAGE) {
        return skip("the device cannot be made to do DMA");
    }
    ensure!(memory.word(PAGE) == 0, "a device that may not master the bus has written");
    Ok(())
}

pub(super) fn exact(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    let space = function.address_space();
    ensure!(same(&space, &function.address_space()), "it has another address space each time");
    let (memory, at) = (Memory::new(4)?, place(&*space)?);
    let map = |iova, pages: u64| {
        // SAFETY: `memory` outlives the maps: all are taken back below, or the check is broken and the process ends.
        unsafe { space.map(iova, pages * SIZE, memory.source(0)) }
    };
    map(at, 4)?;
    for (iova, pages) in [(at, 4), (at + SIZE, 1), (at - SIZE, 2)] {
        ensure!(map(iova, pages).is_err(), "{pages} pages at {iova:#x} were mapped over others");
    }
    for (iova, pages) in [(at, 1), (at + SIZE, 3), (at + 8 * SIZE, 1)] {
        let taken = space.unmap(iova, pages * SIZE);
        ensure!(taken.is_err(), "{pages} pages at {iova:#x} were taken back, which were not given so");
    }
    space.unmap(at, 4 * SIZE)?;
    ensure!(space.unmap(at, 4 * SIZE).is_err(), "what is taken back already was taken back");
    // Neighbours are two maps, not one.
    map(at, 1)?;
    map(at + SIZE, 2)?;
    space.unmap(at, SIZE)?;
    space.unmap(at + SIZE, 2 * SIZE)?;
    for (iova, pages) in [(at, 0), (at + 8, 1)] {
        ensure!(map(iova, pages).is_err(), "{pages} pages at {iova:#x} were mapped");
    }
    Ok(())
}

/// Whether both are one.
fn same(one: &Arc<dyn IoAddressSpace>, other: &Arc<dyn IoAddressSpace>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

pub(super) fn invalid(subject: &dyn Subject) -> Judged {
    let space = subject.function().address_space();
    let ranges = space.iova_ranges();
    let memory = Memory::new(1)?;
    let hole = ranges.iter().filter_map(|range| range.end().checked_add(1)).find(|at| {
        let free = |range: &std::ops::RangeInclusive<u64>| !range.contains(at);
        at.is_multiple_of(SIZE) && ranges.iter().all(free)
    });
    let Some(hole) = hole else { return skip("all I/O addresses are valid") };
    // SAFETY: it is refused; were it not, the check is broken and it is taken back.
    let mapped = unsafe { space.map(hole, SIZE, memory.source(0)) };
    if mapped.is_ok() {
        space.unmap(hole, SIZE)?;
    }
    ensure!(mapped.is_err(), "{hole:#x} is in none of {ranges:x?} and was mapped");
    Ok(())
}
