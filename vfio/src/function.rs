//! Access to one PCI function, whoever serves it.
//!
//! Three makers stand behind [`PciFunction`]: the kernel's VFIO, a vfio-user socket, and a fake. What each must do
//! is written down once, in the contract suite that runs against all three.
//!
//! Terms, region indices and interrupt indices are those of the kernel's `include/uapi/linux/vfio.h`.

use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What can go wrong between us and a function. Every message names the function and what was being done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel (or the server behind a socket) refused or failed; `source` carries the errno.
    #[error("{function}: {doing}: {source}")]
    Io {
        /// The label of the function, or of the address space.
        function: String,
        /// What was being done: `reading 4 bytes at 0x10 of config space`.
        doing: String,
        /// The errno.
        source: std::io::Error,
    },
    /// The function is gone: unplugged, its VF removed, or its server hung up. It will not come back.
    #[error("{function}: the device is gone ({doing})")]
    Gone {
        /// The label of the function.
        function: String,
        /// What was being done.
        doing: String,
    },
    /// The caller asked for what this function does not have (a region, an interrupt, an area out of bounds).
    #[error("{function}: {what}")]
    Invalid {
        /// The label of the function.
        function: String,
        /// What was wrong.
        what: String,
    },
    /// The process may not lock as much memory as the device needs to reach.
    #[error(
        "{function}: pinning {needed} bytes of guest memory exceeds the locked-memory limit of {limit} bytes; \
         raise it (LimitMEMLOCK= of the service, `ulimit -l`, or CAP_SYS_RESOURCE)"
    )]
    Memlock {
        /// The label of the address space.
        function: String,
        /// Bytes that must be locked in all.
        needed: u64,
        /// RLIMIT_MEMLOCK as it is, in bytes.
        limit: u64,
    },
}

/// The regions of a PCI function, numbered as VFIO numbers them (VFIO_PCI_*_REGION_INDEX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RegionIndex {
    /// A base address register, 0 to 5.
    Bar(u8),
    /// The expansion ROM.
    Rom,
    /// Configuration space, 256 or 4096 bytes.
    Config,
    /// The VGA ranges.
    Vga,
}

impl RegionIndex {
    /// The VFIO region index.
    pub fn number(self) -> u32 {
        match self {
            Self::Bar(bar) => u32::from(bar),
            Self::Rom => 6,
            Self::Config => 7,
            Self::Vga => 8,
        }
    }
}

/// A part of a region that may be mapped. Offsets are from the start of the region, in bytes, page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapArea {
    /// Offset from the start of the region.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// One region of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Size in bytes; 0 where the function does not have it.
    pub size: u64,
    /// Reads are allowed.
    pub readable: bool,
    /// Writes are allowed.
    pub writable: bool,
    /// What may be mapped: empty for none, one area for all of it, several where the kernel leaves holes
    /// (VFIO_REGION_INFO_CAP_SPARSE_MMAP). Whether the page of the MSI-X table is among them is the maker's
    /// matter (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE): who maps must leave it out.
    pub mmap: Vec<MmapArea>,
}

impl Region {
    /// All of `length` bytes at `offset` are in it.
    pub fn holds(&self, offset: u64, length: usize) -> bool {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        end.is_some_and(|end| end <= self.size)
    }

    /// All of `area` lies in one of the areas that may be mapped.
    pub fn can_map(&self, area: MmapArea) -> bool {
        let within = |whole: &MmapArea| {
            let into = area.offset.checked_sub(whole.offset);
            let end = into.and_then(|into| into.checked_add(area.size));
            end.is_some_and(|end| end <= whole.size)
        };
        self.mmap.iter().any(within)
    }
}

/// The interrupts of a PCI function (VFIO_PCI_*_IRQ_INDEX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IrqKind {
    /// The legacy pin.
    Intx,
    /// Message signalled interrupts.
    Msi,
    /// MSI-X.
    Msix,
    /// The device reported an error it did not correct (AER).
    Err,
    /// The host asks for the device back.
    Req,
}

impl IrqKind {
    /// The VFIO interrupt index.
    pub fn number(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
            Self::Err => 3,
            Self::Req => 4,
        }
    }
}

/// What is known of one interrupt index (struct vfio_irq_info).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IrqInfo {
    /// Number of vectors; 0 where the function has none.
    pub count: u32,
    /// It can be masked and unmasked (VFIO_IRQ_INFO_MASKABLE).
    pub maskable: bool,
    /// It masks itself when it fires (VFIO_IRQ_INFO_AUTOMASKED): INTx.
    pub automasked: bool,
    /// Vectors cannot be added once some are set (VFIO_IRQ_INFO_NORESIZE).
    pub noresize: bool,
}

/// Host memory that backs a range of I/O addresses.
#[derive(Clone, Copy, Debug)]
pub struct DmaSource<'a> {
    /// Address of the first byte in this process.
    pub host_address: *mut u8,
    /// The file that holds the memory and the offset of the first byte in it: a vfio-user server maps it from there.
    pub file: Option<(BorrowedFd<'a>, u64)>,
}

/// The I/O addresses that one or more functions see: an IOMMU domain, or a vfio-user server's view.
///
/// I/O addresses are guest physical addresses.
pub trait IoAddressSpace: Send + Sync {
    /// The ranges that may be mapped, ascending and disjoint (for Intel and AMD the MSI window is a hole).
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>>;

    /// What is mapped is pinned, and counts as locked memory of this process.
    fn pins(&self) -> bool {
        true
    }

    /// Lets the device reach `size` bytes at `iova`, for reading and writing. Page-aligned. Where it
    /// [pins](Self::pins), that is done when this returns.
    ///
    /// # Safety
    /// `source.host_address` must be mapped for `size` bytes, and stay so until [`unmap`](Self::unmap) of this range
    /// has returned or the address space is dropped.
    unsafe fn map(&self, iova: u64, size: u64, source: DmaSource<'_>) -> Result<(), Error>;

    /// Takes back exactly a range that `map` gave. When it returns the device reaches it no more.
    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error>;
}

/// One PCI function that a guest may be given.
///
/// All methods may be called from any thread at any time; a function that is gone answers [`Error::Gone`] (reads
/// through a mapped BAR then give all ones, or SIGBUS is turned into that by the maker).
pub trait PciFunction: Send + Sync {
    /// What a person calls it: `0000:65:10.2`, or the socket's path.
    fn label(&self) -> &str;

    /// A region, or `None` where the function has none of that kind (size 0).
    fn region(&self, index: RegionIndex) -> Option<&Region>;

    /// Reads `data.len()` bytes at `offset`. On error `data` is all ones, as the bus would have it.
    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error>;

    /// Writes `data` at `offset`.
    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error>;

    /// A file and offset through which `area` (one of [`Region::mmap`], or a page-aligned part of one) can be mapped
    /// MAP_SHARED. Duplicate the descriptor to keep it.
    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error>;

    /// What the function has of an interrupt index.
    fn irq_info(&self, kind: IrqKind) -> IrqInfo;

    /// Ties vectors `first..first + triggers.len()` to eventfds; `None` takes a vector's eventfd away and leaves its
    /// neighbours alone. The first call for a kind enables it (VFIO_DEVICE_SET_IRQS with DATA_EVENTFD, ACTION_TRIGGER).
    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error>;

    /// Ends all vectors of a kind (DATA_NONE, count 0). MSI, MSI-X and INTx exclude one another.
    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error>;

    /// Ties INTx' unmask to an eventfd: each signal lets the pin fire again (DATA_EVENTFD, ACTION_UNMASK).
    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error>;

    /// Masks (`true`) or unmasks INTx by hand.
    fn mask_intx(&self, masked: bool) -> Result<(), Error>;

    /// It can be reset alone (VFIO_DEVICE_FLAGS_RESET).
    fn can_reset(&self) -> bool;

    /// Resets the function: FLR, or whatever the kernel takes for it. Config space reads sane after it or it is an error.
    fn reset(&self) -> Result<(), Error>;

    /// The address space its DMA goes through. Functions of one guest share one where they can.
    fn address_space(&self) -> Arc<dyn IoAddressSpace>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_region_is_told_from_what_is_not() {
        let area = |offset, size| MmapArea { offset, size };
        let mmap = vec![area(0, 0x1000), area(0x3000, 0x2000)];
        let region = Region { size: 0x5000, readable: true, writable: true, mmap };
        assert!(region.holds(0x4ffc, 4) && region.holds(0x5000, 0));
        assert!(!region.holds(0x4ffd, 4) && !region.holds(u64::MAX, 2));
        assert!(region.can_map(area(0x4000, 0x1000)) && region.can_map(area(0, 0x1000)));
        for outside in [area(0, 0x2000), area(0x2000, 0x1000), area(0x4000, 0x2000), area(0x3000, u64::MAX)] {
            assert!(!region.can_map(outside), "{outside:x?}");
        }
    }
}
