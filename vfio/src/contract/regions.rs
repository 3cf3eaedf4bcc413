//! Config space, BARs, and their mappings.

use super::memory::{Memory, PAGE};
use super::{Awake, COMMAND, Judged, MASTER, Subject, ensure, skip};
use crate::function::{Error, MmapArea, PciFunction, RegionIndex};

const ALL: [RegionIndex; 9] = [
    RegionIndex::Bar(0),
    RegionIndex::Bar(1),
    RegionIndex::Bar(2),
    RegionIndex::Bar(3),
    RegionIndex::Bar(4),
    RegionIndex::Bar(5),
    RegionIndex::Rom,
    RegionIndex::Config,
    RegionIndex::Vga,
];

pub(super) fn config_reads(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    let size = function.region(RegionIndex::Config).map_or(0, |region| region.size);
    ensure!(size == 256 || size == 4096, "config space has {size} bytes");
    let mut whole = [0; 4];
    function.read(RegionIndex::Config, 0, &mut whole)?;
    ensure!(whole[..2] != [0xff; 2] && whole[..2] != [0; 2], "its vendor is {:02x?}", &whole[..2]);
    for length in [1, 2] {
        let mut parts = [0; 4];
        for (part, offset) in parts.chunks_mut(length).zip((0..).step_by(length)) {
            function.read(RegionIndex::Config, offset, part)?;
        }
        ensure!(parts == whole, "{parts:02x?} by {length} bytes at a time, {whole:02x?} at once");
    }
    let mut last = [0; 4];
    function.read(RegionIndex::Config, size - 4, &mut last)?;
    Ok(())
}

pub(super) fn config_writes(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    for wanted in [MASTER, 0, MASTER, 0] {
        function.write(RegionIndex::Config, COMMAND, &[wanted, 0])?;
        let mut command = [0; 2];
        function.read(RegionIndex::Config, COMMAND, &mut command)?;
        ensure!(
            command[0] & MASTER == wanted,
            "wrote {wanted:#x}, the command register reads {command:02x?}"
        );
    }
    Ok(())
}

pub(super) fn bounds(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let function = &*awake.0;
    for index in ALL {
        let size = function.region(index).map_or(0, |region| region.size);
        for offset in [size, size.saturating_sub(2), size + 0x1000, u64::MAX - 1, u64::MAX] {
            let mut data = [0x5a; 4];
            let read = function.read(index, offset, &mut data);
            ensure!(
                is_invalid(&read),
                "4 bytes at {offset:#x} of {index:?} ({size:#x} bytes) read as {read:?}"
            );
            ensure!(data == [0xff; 4], "4 bytes at {offset:#x} of {index:?} read {data:02x?}");
            let write = function.write(index, offset, &[0; 4]);
            ensure!(is_invalid(&write), "4 bytes at {offset:#x} of {index:?} written as {write:?}");
        }
        let area = MmapArea { offset: size, size: 4096 };
        let map = function.mmap_source(index, area).map(|_| ());
        ensure!(is_invalid(&map), "a page behind {index:?} can be mapped: {map:?}");
    }
    Ok(())
}

fn is_invalid(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Invalid { .. }))
}

pub(super) fn descriptions(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    for index in ALL {
        let Some(region) = function.region(index) else { continue };
        ensure!(region.size > 0, "{index:?} is there with no bytes");
        let mut free = 0;
        for area in &region.mmap {
            let aligned = area.offset.is_multiple_of(PAGE as u64) && area.size.is_multiple_of(PAGE as u64);
            ensure!(aligned && area.size > 0, "{area:x?} of {index:?} is not made of pages");
            let end = area.offset.checked_add(area.size).filter(|end| *end <= region.size);
            ensure!(area.offset >= free && end.is_some(), "{area:x?} of {index:?} overlaps or is outside");
            free = end.unwrap_or(u64::MAX);
            let source = function.mmap_source(index, *area).map(|_| ());
            ensure!(source.is_ok(), "{area:x?} of {index:?} cannot be mapped: {source:?}");
        }
        let whole = MmapArea { offset: 0, size: region.size };
        if !region.mmap.contains(&whole) {
            let source = function.mmap_source(index, whole).map(|_| ());
            ensure!(
                is_invalid(&source),
                "all of {index:?} can be mapped, which is not among {:x?}",
                region.mmap
            );
        }
    }
    Ok(())
}

pub(super) fn mappings(subject: &dyn Subject) -> Judged {
    let Some((index, offset)) = subject.scratch() else { return skip("no register keeps what is written") };
    let awake = Awake::new(subject)?;
    let function = &*awake.0;
    let page = MmapArea { offset: offset & !(PAGE as u64 - 1), size: PAGE as u64 };
    let mapped = Memory::of(function, index, page)?;
    let at = usize::try_from(offset - page.offset).unwrap_or(0);
    let read = || {
        let mut data = [0; 4];
        function.read(index, offset, &mut data).map(|()| u32::from_le_bytes(data))
    };
    // Low bits and high bits may be fixed in a device's register.
    for value in [0x0123_4500_u32, 0x0765_4300] {
        function.write(index, offset, &value.to_le_bytes())?;
        ensure!(mapped.word(at) == value, "wrote {value:#x}, the mapping has {:#x}", mapped.word(at));
        let other = value ^ 0x0777_7700;
        mapped.set_word(at, other);
        let seen = read()?;
        ensure!(seen == other, "the mapping was given {other:#x}, a read gives {seen:#x}");
    }
    function.write(index, offset, &[0; 4])?;
    Ok(())
}

/// Reads the vendor: the least that a function that answers can do.
pub(super) fn vendor(function: &dyn PciFunction) -> Result<[u8; 2], Error> {
    let mut vendor = [0; 2];
    function.read(RegionIndex::Config, 0, &mut vendor)?;
    Ok(vendor)
}
