//! A function's character device in an iommufd, through `vfio-ioctls`: it takes a file that somebody else has opened.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd, VfioRegionInfoCap};

use super::space::Known;
use crate::function::{MmapArea, Region};

/// A function that is in an address space. Dropped, it leaves it.
pub(super) struct Cdev {
    /// Dropped by hand: its destructor panics where the kernel does not let it go.
    device: ManuallyDrop<VfioDevice>,
}

impl Cdev {
    /// Binds it and attaches it to the iommufd's address space. KVM is told of it by the library.
    pub(super) fn new(
        file: OwnedFd,
        iommufd: &Arc<VfioIommufd>,
        kvm: Option<&Arc<OwnedFd>>,
    ) -> Result<Self, VfioError> {
        let again = file.as_fd().try_clone_to_owned().map_err(VfioError::OpenDeviceCdev)?;
        match VfioDevice::new_from_fd(File::from(file), Arc::clone(iommufd), true) {
            Ok(device) => Ok(Self { device: ManuallyDrop::new(device) }),
            Err(error) => {
                // Else KVM would keep open what the library has told it of, and the function could not be given back.
                drop(kvm.map(|kvm| Known::of(kvm, again.as_fd())));
                Err(error)
            }
        }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.device`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }

    /// What a region is, and at which offset the file shows it; of no size where the device does not have it.
    pub(super) fn region(&self, index: u32) -> (Region, u64) {
        let (device, flags) = (&self.device, self.device.get_region_flags(index));
        let size = device.get_region_size(index);
        let mut mmap = Vec::new();
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && size > 0 {
            mmap.push(MmapArea { offset: 0, size });
            for capability in device.get_region_caps(index) {
                if let VfioRegionInfoCap::SparseMmap(sparse) = capability {
                    let area = |area: &vfio_ioctls::VfioRegionSparseMmapArea| MmapArea {
                        offset: area.offset,
                        size: area.size,
                    };
                    mmap = sparse.areas.iter().map(area).collect();
                }
            }
        }
        let (readable, writable) =
            (flags & VFIO_REGION_INFO_FLAG_READ != 0, flags & VFIO_REGION_INFO_FLAG_WRITE != 0);
        (Region { size, readable, writable, mmap }, device.get_region_offset(index))
    }

    /// Flags and number of interrupts of one kind.
    pub(super) fn irq_info(&self, index: u32) -> io::Result<(u32, u32)> {
        let irq = self.device.get_irq_info(index).ok_or(io::ErrorKind::NotFound)?;
        Ok((irq.flags, irq.count))
    }
}

impl Drop for Cdev {
    fn drop(&mut self) {
        // SAFETY: nothing touches `self.device` after this, and this runs once.
        let device = unsafe { ManuallyDrop::take(&mut self.device) };
        // The library takes the kernel's agreement for granted. Twice is as good as once.
        if let Err(error) = device.detach_hwpt() {
            tracing::warn!(
                "A function cannot be taken out of its I/O address space ({error}); its descriptor is kept until this process ends"
            );
            std::mem::forget(device);
        } else if catch_unwind(AssertUnwindSafe(|| drop(device))).is_err() {
            tracing::warn!("A function could not be let go cleanly");
        }
    }
}
