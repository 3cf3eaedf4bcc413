//! The regions that a server describes (VFIO_USER_DEVICE_GET_REGION_INFO).

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use super::connection::{Connection, Reply};
use super::wire::{Command, Fields, Payload};
use crate::function::{Error, MmapArea, Region};

const PAGE: u64 = 4096;
/// Bytes of `struct vfio_region_info` without its capabilities.
const INFO: u32 = 32;
/// Room for the capabilities of any region there is; the server says when it needs more.
const ROOM: u32 = 4096;
/// More than that is not believed.
const MOST: u32 = 1 << 16;

/// A region, and the file that its mappings come from.
pub(super) struct Place {
    pub(super) region: Region,
    pub(super) file: Option<OwnedFd>,
    /// Where the region begins in the file.
    pub(super) offset: u64,
}

impl Place {
    /// Asks for a region by its index.
    pub(super) fn ask(connection: &Connection, index: u32) -> Result<Self, Error> {
        let doing = || format!("asking for region {index}");
        let ask = |room: u32| {
            let payload = Payload::new().u32(room).u32(0).u32(index).u32(0).u64(0).u64(0);
            connection.call(Command::RegionInfo, payload, &[], doing)
        };
        let mut reply = ask(ROOM)?;
        let wanted = reply.fields().u32(0).unwrap_or(0);
        if wanted > ROOM && wanted <= MOST {
            reply = ask(wanted)?;
        }
        read(connection, &mut reply).ok_or_else(|| connection.short(doing()))
    }
}

fn read(connection: &Connection, reply: &mut Reply) -> Option<Place> {
    let fields = reply.fields();
    let (flags, index, capabilities) = (fields.u32(4)?, fields.u32(8)?, fields.u32(12)?);
    let (size, offset) = (fields.u64(16)?, fields.u64(24)?);
    let mut mmap = Vec::new();
    if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
        mmap.push(MmapArea { offset: 0, size });
        if flags & VFIO_REGION_INFO_FLAG_CAPS != 0
            && let Some(areas) = sparse(fields, capabilities)
        {
            mmap = areas;
        }
    }
    let file = if reply.fds.is_empty() { None } else { Some(reply.fds.swap_remove(0)) };
    let described = mmap.len();
    let length = file.as_ref().map_or(0, file_length);
    mmap.sort_unstable_by_key(|area| area.offset);
    let mut free = 0;
    mmap.retain(|area| {
        let end = usable(*area, size, offset, length).filter(|_| area.offset >= free);
        free = end.unwrap_or(free);
        end.is_some()
    });
    if mmap.len() < described {
        let label = connection.label();
        tracing::warn!(
            "{label}: region {index}: {} areas cannot be mapped as its server describes them; \
             their accesses are slow",
            described - mmap.len()
        );
    }
    let region = Region {
        size,
        readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
        mmap,
    };
    Some(Place { region, file, offset })
}

/// The end of an area that is made of pages, lies in the region and in the file.
fn usable(area: MmapArea, region_size: u64, file_offset: u64, file_length: u64) -> Option<u64> {
    let pages = [area.offset, area.size, file_offset].iter().all(|number| number.is_multiple_of(PAGE));
    let end = area.offset.checked_add(area.size)?;
    let last = file_offset.checked_add(end)?;
    (pages && area.size > 0 && end <= region_size && last <= file_length).then_some(end)
}

/// Bytes that can be mapped without a fault; all, of what is no plain file.
fn file_length(file: &OwnedFd) -> u64 {
    match fstat(file) {
        Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile => {
            u64::try_from(status.st_size).unwrap_or(0)
        }
        Ok(_) => i64::MAX.unsigned_abs(),
        Err(_) => 0,
    }
}

/// The areas of a sparse mmap capability, if there is one in the chain (offsets from the structure's start).
fn sparse(fields: Fields<'_>, first: u32) -> Option<Vec<MmapArea>> {
    let mut at = usize::try_from(first).ok()?;
    while at >= usize::try_from(INFO).ok()? {
        let (id, next) = (fields.u16(at)?, fields.u32(at + 4)?);
        if u32::from(id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = usize::try_from(fields.u32(at + 8)?).ok()?;
            let start = at + 16;
            let area = |number: usize| {
                let at = start.checked_add(number.checked_mul(16)?)?;
                Some(MmapArea { offset: fields.u64(at)?, size: fields.u64(at.checked_add(8)?)? })
            };
            return Some((0..count).map_while(area).collect());
        }
        let next = usize::try_from(next).ok()?;
        if next <= at {
            break;
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sparse_areas_are_found_behind_other_capabilities() {
        let info = [0_u32; 8].map(u32::to_ne_bytes).concat();
        let other = [3_u32 | 1 << 16, 48, 0, 0].map(u32::to_ne_bytes).concat();
        let header = [1_u32 | 1 << 16, 0, 2, 0].map(u32::to_ne_bytes).concat();
        let areas = [0_u64, 0x1000, 0x3000, 0x2000].map(u64::to_ne_bytes).concat();
        let bytes = [info, other, header, areas].concat();
        let found = sparse(Fields(&bytes), 32).unwrap();
        assert_eq!(found, [MmapArea { offset: 0, size: 0x1000 }, MmapArea { offset: 0x3000, size: 0x2000 }]);
        // It says two and has one.
        assert_eq!(sparse(Fields(&bytes[..80]), 32).unwrap().len(), 1);
    }

    #[test]
    fn an_area_must_lie_in_region_and_file() {
        let area = |offset, size| MmapArea { offset, size };
        assert_eq!(usable(area(0x1000, 0x1000), 0x2000, 0, 0x2000), Some(0x2000));
        for (area, region, offset, file) in [
            (area(0x1000, 0x1800), 0x4000, 0, 0x4000),
            (area(0, 0x2000), 0x1000, 0, 0x4000),
            (area(0, 0x2000), 0x2000, 0x1000, 0x2000),
            (area(0, 0x1000), 0x2000, 0x80, 0x2000),
            (area(!0xfff, 0x1000), u64::MAX, 0, u64::MAX),
            (area(0, 0), 0x2000, 0, 0x2000),
        ] {
            assert_eq!(usable(area, region, offset, file), None);
        }
    }

    proptest! {
        #[test]
        fn no_chain_can_panic_or_hang(bytes in proptest::collection::vec(0_u8..64, 0..200), first: u32) {
            let _ = sparse(Fields(&bytes), first % 256);
            let _ = sparse(Fields(&bytes), first);
        }
    }
}
