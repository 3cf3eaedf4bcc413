//! What is asked of a function and of its address space: regions, interrupts, reset, hot reset, IOVA ranges.
//!
//! Structures and numbers: the kernel's `include/uapi/linux/vfio.h` and `include/uapi/linux/iommufd.h`.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_iova_ranges, iommu_iova_range,
};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, VFIO_TYPE, vfio_device_info, vfio_iommu_type1_info,
};
use vmm_sys_util::ioctl_io_nr;

use crate::function::{MmapArea, Region};

ioctl_io_nr!(DEVICE_GET_INFO, VFIO_TYPE.into(), VFIO_BASE + 7);
ioctl_io_nr!(DEVICE_GET_REGION_INFO, VFIO_TYPE.into(), VFIO_BASE + 8);
ioctl_io_nr!(DEVICE_GET_IRQ_INFO, VFIO_TYPE.into(), VFIO_BASE + 9);
ioctl_io_nr!(DEVICE_SET_IRQS, VFIO_TYPE.into(), VFIO_BASE + 10);
ioctl_io_nr!(DEVICE_RESET, VFIO_TYPE.into(), VFIO_BASE + 11);
ioctl_io_nr!(DEVICE_HOT_RESET_INFO, VFIO_TYPE.into(), VFIO_BASE + 12);
ioctl_io_nr!(DEVICE_HOT_RESET, VFIO_TYPE.into(), VFIO_BASE + 13);
ioctl_io_nr!(IOMMU_GET_INFO, VFIO_TYPE.into(), VFIO_BASE + 12);
ioctl_io_nr!(IOAS_IOVA_RANGES, IOMMUFD_TYPE as u32, IOMMUFD_CMD_IOAS_IOVA_RANGES);

/// The most bytes that a capability chain or a list of devices may take: far more than any has.
const MOST: usize = 1 << 20;

/// What a structure's first word says of it: its size in bytes.
pub(super) const fn size<T>() -> u32 {
    assert!(size_of::<T>() < 4096);
    #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
    let size = size_of::<T>() as u32;
    size
}

/// Calls with an argument that starts with its own size and may be written to, as all of VFIO's do.
fn call(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut [u32]) -> io::Result<i32> {
    // SAFETY: every request of this module takes a pointer to a structure whose first word is its size; the callers write
    // there at most the length of the buffer, and the kernel touches no more than that.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a region is, and at which offset the device's file shows it (VFIO_DEVICE_GET_REGION_INFO).
pub(super) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<(Region, u64)> {
    const FIXED: usize = 8;
    let mut argument = vec![32_u32, 0, index, 0, 0, 0, 0, 0];
    call(device, DEVICE_GET_REGION_INFO(), &mut argument)?;
    let whole = usize::try_from(word(&argument, 0)).unwrap_or(0).min(MOST).div_ceil(4);
    if word(&argument, 1) & VFIO_REGION_INFO_FLAG_CAPS != 0 && whole > FIXED {
        argument = vec![0; whole];
        argument[0] = u32::try_from(whole * 4).map_err(io::Error::other)?;
        argument[2] = index;
        call(device, DEVICE_GET_REGION_INFO(), &mut argument)?;
    }
    // argsz, flags, index, cap_offset, size, offset.
    let (flags, chain, size, offset) =
        (word(&argument, 1), word(&argument, 3), long(&argument, 4), long(&argument, 6));
    let mut mmap = Vec::new();
    if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && size > 0 {
        let sparse =
            if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 { None } else { sparse_areas(&argument, chain) };
        mmap = sparse.unwrap_or_else(|| vec![MmapArea { offset: 0, size }]);
    }
    let (readable, writable) =
        (flags & VFIO_REGION_INFO_FLAG_READ != 0, flags & VFIO_REGION_INFO_FLAG_WRITE != 0);
    Ok((Region { size, readable, writable, mmap }, offset))
}

/// What of a region can be mapped, where its capability chain says that it is not all.
fn sparse_areas(words: &[u32], first: u32) -> Option<Vec<MmapArea>> {
    let at = capability(words, first, VFIO_REGION_INFO_CAP_SPARSE_MMAP)?;
    // header: 2 words, nr_areas, reserved, then pairs of 64-bit numbers.
    let count = usize::try_from(word(words, at + 2)).unwrap_or(0).min(words.len() / 4);
    let area = |i| MmapArea { offset: long(words, at + 4 + 4 * i), size: long(words, at + 6 + 4 * i) };
    Some((0..count).map(area).collect())
}

/// Flags and number of interrupts of one kind (VFIO_DEVICE_GET_IRQ_INFO).
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<(u32, u32)> {
    let mut argument = [16_u32, 0, index, 0];
    call(device, DEVICE_GET_IRQ_INFO(), &mut argument)?;
    Ok((argument[1], argument[3]))
}

/// VFIO_DEVICE_GET_INFO: the flags (VFIO_DEVICE_FLAGS_*).
pub(super) fn device_flags(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0_u32; size_of::<vfio_device_info>() / 4];
    info[0] = size::<vfio_device_info>();
    call(device, DEVICE_GET_INFO(), &mut info)?;
    Ok(info[1])
}

/// What VFIO_DEVICE_SET_IRQS is to do with a range of vectors.
pub(super) struct SetIrqs<'a> {
    /// VFIO_IRQ_SET_DATA_* and VFIO_IRQ_SET_ACTION_*.
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
    /// With DATA_EVENTFD one a vector.
    pub(super) eventfds: &'a [Option<BorrowedFd<'a>>],
}

/// VFIO_DEVICE_SET_IRQS.
pub(super) fn set_irqs(device: BorrowedFd<'_>, set: &SetIrqs<'_>) -> io::Result<()> {
    let words = 5 + set.eventfds.len();
    let size = u32::try_from(words * 4).map_err(io::Error::other)?;
    let mut argument = Vec::with_capacity(words);
    argument.extend([size, set.flags, set.index, set.start, set.count]);
    let raw = |fd: &Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd()).cast_unsigned();
    argument.extend(set.eventfds.iter().map(raw));
    call(device, DEVICE_SET_IRQS(), &mut argument).map(|_| ())
}

/// VFIO_DEVICE_RESET: the function alone, by the best means that the kernel knows.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, DEVICE_RESET(), &mut [0]).map(|_| ())
}

/// One function that a hot reset would reset too (struct vfio_pci_dependent_device).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dependent {
    /// IOMMU group, or with a cdev the device's id in its iommufd.
    pub(super) owner: u32,
    pub(super) segment: u16,
    /// bus << 8 | devfn.
    pub(super) routing_id: u16,
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.
pub(super) fn hot_reset_info(device: BorrowedFd<'_>) -> io::Result<Vec<Dependent>> {
    let mut argument = vec![12_u32, 0, 0];
    match call(device, DEVICE_HOT_RESET_INFO(), &mut argument) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => return Err(error),
        _ => {}
    }
    let count = usize::try_from(argument[2]).unwrap_or(0).min(MOST / 8);
    argument = vec![0; 3 + 2 * count];
    argument[0] = u32::try_from(argument.len() * 4).map_err(io::Error::other)?;
    call(device, DEVICE_HOT_RESET_INFO(), &mut argument)?;
    let told = usize::try_from(argument[2]).unwrap_or(0).min(count);
    let one = |pair: &[u32]| {
        let [owner, place] = *pair else { return None };
        let [a, b, bus, devfn] = place.to_le_bytes();
        Some(Dependent {
            owner,
            segment: u16::from_le_bytes([a, b]),
            routing_id: u16::from_be_bytes([bus, devfn]),
        })
    };
    Ok(argument.get(3..).unwrap_or(&[]).chunks_exact(2).take(told).filter_map(one).collect())
}

/// VFIO_DEVICE_PCI_HOT_RESET: the whole slot or bus. `groups` are the files of all groups involved; empty for a device that
/// was opened by its cdev, whose iommufd proves the ownership.
pub(super) fn hot_reset(device: BorrowedFd<'_>, groups: &[RawFd]) -> io::Result<()> {
    let words = 3 + groups.len();
    let size = u32::try_from(words * 4).map_err(io::Error::other)?;
    let count = u32::try_from(groups.len()).map_err(io::Error::other)?;
    let mut argument = vec![size, 0, count];
    argument.extend(groups.iter().map(|fd| fd.cast_unsigned()));
    call(device, DEVICE_HOT_RESET(), &mut argument).map(|_| ())
}

/// The IOVA ranges of a type1 container (VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE), ascending; all, on kernels before 5.4.
pub(super) fn container_ranges(container: BorrowedFd<'_>) -> io::Result<Vec<RangeInclusive<u64>>> {
    let fixed = size_of::<vfio_iommu_type1_info>();
    let mut argument = vec![0_u32; fixed.div_ceil(4)];
    argument[0] = u32::try_from(fixed).map_err(io::Error::other)?;
    call(container, IOMMU_GET_INFO(), &mut argument)?;
    let whole = usize::try_from(argument[0]).unwrap_or(0).min(MOST);
    if argument[1] & VFIO_IOMMU_INFO_CAPS == 0 || whole <= fixed {
        return Ok(vec![0..=u64::MAX]);
    }
    argument = vec![0; whole.div_ceil(4)];
    argument[0] = u32::try_from(whole).map_err(io::Error::other)?;
    call(container, IOMMU_GET_INFO(), &mut argument)?;
    // flags: word 1; iova_pgsizes: words 2 and 3; cap_offset: word 4.
    Ok(ranges_in_chain(&argument, argument.get(4).copied().unwrap_or(0)))
}

fn ranges_in_chain(words: &[u32], first: u32) -> Vec<RangeInclusive<u64>> {
    let Some(at) = capability(words, first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) else {
        return vec![0..=u64::MAX];
    };
    // header: 2 words, nr_iovas, reserved, then pairs of 64-bit numbers.
    let count = usize::try_from(word(words, at + 2)).unwrap_or(0).min(words.len() / 4);
    let inside = |i: &usize| at + 4 * i + 8 <= words.len();
    let pair = |i| long(words, at + 4 + 4 * i)..=long(words, at + 6 + 4 * i);
    (0..count).take_while(inside).map(pair).collect()
}

/// A word of a structure; 0 behind its end.
fn word(words: &[u32], at: usize) -> u32 {
    words.get(at).copied().unwrap_or(0)
}

/// Two words of a structure as one number.
fn long(words: &[u32], at: usize) -> u64 {
    u64::from(word(words, at)) | u64::from(word(words, at + 1)) << 32
}

/// Where in a capability chain the capability `wanted` is, in words (struct vfio_info_cap_header: id 16, version 16, next 32;
/// offsets from the structure's start).
fn capability(words: &[u32], first: u32, wanted: u32) -> Option<usize> {
    let mut at = usize::try_from(first / 4).unwrap_or(0);
    // Each capability is at least two words, so a chain that is longer than this is a loop.
    for _ in 0..words.len() / 2 {
        if at == 0 || at + 1 >= words.len() {
            return None;
        }
        if word(words, at) & 0xffff == wanted {
            return Some(at);
        }
        at = usize::try_from(word(words, at + 1) / 4).unwrap_or(0);
    }
    None
}

/// The IOVA ranges of an IOAS (IOMMU_IOAS_IOVA_RANGES), ascending.
pub(super) fn ioas_ranges(iommufd: impl AsFd, ioas_id: u32) -> io::Result<Vec<RangeInclusive<u64>>> {
    let mut ranges = vec![iommu_iova_range { start: 0, last: 0 }; 64];
    loop {
        let mut argument = iommu_ioas_iova_ranges {
            size: size::<iommu_ioas_iova_ranges>(),
            ioas_id,
            num_iovas: u32::try_from(ranges.len()).map_err(io::Error::other)?,
            __reserved: 0,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the structure is the one that this request takes, and its array has `num_iovas` elements.
        let result =
            unsafe { libc::ioctl(iommufd.as_fd().as_raw_fd(), IOAS_IOVA_RANGES() as _, &raw mut argument) };
        let told = usize::try_from(argument.num_iovas).unwrap_or(0);
        if result == 0 {
            let range = |r: &iommu_iova_range| r.start..=r.last;
            return Ok(ranges.iter().take(told).map(range).collect());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EMSGSIZE) || told <= ranges.len() || told > MOST / 16 {
            return Err(error);
        }
        ranges.resize(told, iommu_iova_range { start: 0, last: 0 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let mut words = vec![0_u32; 8];
        words.extend([0x0001_0002, 4 * 10]); // some other capability, then ours
        words.extend([0x0001_0001, 0, 2, 0]);
        words.extend([0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, 0xffff_ffff, 0x7f]);
        assert_eq!(ranges_in_chain(&words, 32), [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
    }

    #[test]
    fn areas_that_can_be_mapped_are_found() {
        let mut words = vec![0_u32; 8];
        words.extend([0x0001_0001, 0, 2, 0]);
        words.extend([0, 0, 0x1000, 0, 0x3000, 0, 0, 1]);
        let area = |offset, size| MmapArea { offset, size };
        assert_eq!(sparse_areas(&words, 32), Some(vec![area(0, 0x1000), area(0x3000, 1 << 32)]));
        words[8] = 0x0001_0003;
        assert_eq!(sparse_areas(&words, 32), None, "all of it");
    }

    proptest! {
        #[test]
        fn no_chain_can_panic_or_hang(words in proptest::collection::vec(0_u32..64, 0..64), first in 0_u32..300) {
            ranges_in_chain(&words, first);
            sparse_areas(&words, first);
        }
    }
}
