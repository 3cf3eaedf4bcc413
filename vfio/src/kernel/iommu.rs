//! One I/O address space of the kernel's.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioIommufd, VfioOps};

use super::failure::{convert, failed};
use super::function::KernelFunction;
use super::ioctl;
use crate::PciAddress;
use crate::function::{DmaSource, Error, IoAddressSpace};

/// Which of the kernel's two interfaces to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// iommufd where the kernel has it for VFIO, groups otherwise.
    #[default]
    Auto,
    /// /dev/iommu and /dev/vfio/devices/vfioN.
    Iommufd,
    /// /dev/vfio/vfio and /dev/vfio/GROUP.
    Group,
}

enum Kind {
    Iommufd(Arc<VfioIommufd>),
    Group(Arc<VfioContainer>),
}

/// One I/O address space; functions opened in it share its maps.
pub struct Iommu {
    kind: Kind,
}

impl Iommu {
    /// Makes an empty address space. `kvm` is the KVM VFIO device (KVM_DEV_TYPE_VFIO) of the guest's machine: KVM is told of
    /// each function before it is opened.
    pub fn new(backend: Backend, kvm: Option<OwnedFd>) -> Result<Arc<Self>, Error> {
        let kvm = kvm.map(|fd| {
            // SAFETY: `into_raw_fd` gives up the only owner of this descriptor.
            Arc::new(VfioDeviceFd::new_from_kvm(unsafe { FromRawFd::from_raw_fd(fd.into_raw_fd()) }))
        });
        let iommufd = match backend {
            Backend::Auto => Path::new("/dev/iommu").exists() && Path::new("/dev/vfio/devices").exists(),
            Backend::Iommufd => true,
            Backend::Group => false,
        };
        let kind = if iommufd {
            let doing = "opening /dev/iommu";
            let fd = IommuFd::new()
                .map_err(|error| failed("iommufd", doing, io::Error::other(error.to_string())))?;
            let made = VfioIommufd::new(Arc::new(fd), None, kvm);
            Kind::Iommufd(Arc::new(
                made.map_err(|error| convert("iommufd", "making an I/O address space", error))?,
            ))
        } else {
            let made = VfioContainer::new(kvm);
            Kind::Group(Arc::new(
                made.map_err(|error| convert("/dev/vfio/vfio", "opening the VFIO container", error))?,
            ))
        };
        Ok(Arc::new(Self { kind }))
    }

    /// Which interface it is.
    pub fn backend(&self) -> Backend {
        match self.kind {
            Kind::Iommufd(_) => Backend::Iommufd,
            Kind::Group(_) => Backend::Group,
        }
    }

    /// Opens a function that is bound to vfio-pci, and attaches it to this address space.
    pub fn open(self: &Arc<Self>, address: PciAddress) -> Result<Arc<KernelFunction>, Error> {
        let label = address.to_string();
        let path = PathBuf::from("/sys/bus/pci/devices").join(&label);
        let ops: Arc<dyn VfioOps> = match &self.kind {
            Kind::Iommufd(iommufd) => Arc::clone(iommufd) as _,
            Kind::Group(container) => Arc::clone(container) as _,
        };
        let device = VfioDevice::new(&path, ops, true)
            .map_err(|error| convert(&label, "opening it through VFIO", error))?;
        KernelFunction::new(label, path, device, Arc::clone(self)).map(Arc::new)
    }

    fn ops(&self) -> &dyn VfioOps {
        match &self.kind {
            Kind::Iommufd(iommufd) => iommufd.as_ref(),
            Kind::Group(container) => container.as_ref(),
        }
    }
}

impl IoAddressSpace for Iommu {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        let ranges = match &self.kind {
            Kind::Iommufd(iommufd) => {
                ioctl::ioas_ranges(borrow(iommufd.iommufd().as_ref()), iommufd.ioas().id())
            }
            Kind::Group(container) => ioctl::container_ranges(borrow(container.as_ref())),
        };
        ranges.unwrap_or_else(|error| {
            tracing::warn!(
                "Asking the IOMMU for its IOVA ranges: {error}; all addresses are taken for valid"
            );
            vec![0..=u64::MAX]
        })
    }

    unsafe fn map(&self, iova: u64, size: u64, source: DmaSource<'_>) -> Result<(), Error> {
        let doing = || format!("mapping {size:#x} bytes at I/O address {iova:#x}");
        let length =
            usize::try_from(size).map_err(|error| failed("IOMMU", doing(), io::Error::other(error)))?;
        // SAFETY: the caller keeps the memory mapped until `unmap`, and no reference to guest RAM is ever made.
        match unsafe { self.ops().vfio_dma_map(iova, length, source.host_address) } {
            Ok(()) => Ok(()),
            Err(error) => Err(convert("IOMMU", doing(), error)),
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        let doing = || format!("unmapping {size:#x} bytes at I/O address {iova:#x}");
        let length =
            usize::try_from(size).map_err(|error| failed("IOMMU", doing(), io::Error::other(error)))?;
        self.ops().vfio_dma_unmap(iova, length).map_err(|error| convert("IOMMU", doing(), error))
    }
}

/// A borrow of a descriptor whose owner does not lend it as `AsFd`.
fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor lives as long as its owner, which the borrow keeps.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
