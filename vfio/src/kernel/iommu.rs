//! One I/O address space of the kernel's.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use serde::{Deserialize, Serialize};
use vfio_ioctls::{VfioDeviceFd, VfioIommufd};

use super::cdev::Cdev;
use super::failure::{convert, failed};
use super::function::{Handle, KernelFunction};
use super::ioctl;
use super::space::{Container, Trouble};
use crate::PciAddress;
use crate::function::{DmaSource, Error, IoAddressSpace};

/// Which of the kernel's two interfaces to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Backend {
    /// iommufd where the kernel has it for VFIO, groups otherwise.
    #[default]
    Auto,
    /// /dev/iommu and /dev/vfio/devices/vfioN.
    Iommufd,
    /// /dev/vfio/vfio and /dev/vfio/GROUP.
    Group,
}

/// The file of an I/O address space: of /dev/iommu, or of /dev/vfio/vfio. Whoever has it needs no path.
#[derive(Debug)]
pub struct SpaceFile {
    /// Which interface it is of; never [`Backend::Auto`].
    pub backend: Backend,
    /// The file.
    pub file: OwnedFd,
}

impl SpaceFile {
    /// Opens one.
    ///
    /// # Errors
    /// It is not there, or this process may not.
    pub fn open(backend: Backend) -> Result<Self, Error> {
        let iommufd = match backend {
            Backend::Auto => Path::new("/dev/iommu").exists() && Path::new("/dev/vfio/devices").exists(),
            Backend::Iommufd => true,
            Backend::Group => false,
        };
        let (backend, path, doing) = if iommufd {
            (Backend::Iommufd, "/dev/iommu", "opening /dev/iommu")
        } else {
            (Backend::Group, "/dev/vfio/vfio", "opening the VFIO container")
        };
        match open(Path::new(path)) {
            Ok(file) => Ok(Self { backend, file }),
            Err(error) => Err(failed(if iommufd { "iommufd" } else { path }, doing, error)),
        }
    }
}

/// The file of a function that is bound to vfio-pci: its character device, or that of its group.
#[derive(Debug)]
pub struct FunctionFile {
    /// The group, where it is the group's.
    pub group: Option<u32>,
    /// The file; none where the group is open already, for another function of it.
    pub file: Option<OwnedFd>,
}

impl FunctionFile {
    /// Opens the file by which `address` gets into an address space of `backend`.
    ///
    /// # Errors
    /// It is not there, or somebody has it.
    pub fn open(backend: Backend, address: PciAddress) -> Result<Self, Error> {
        let label = address.to_string();
        let folder = PathBuf::from("/sys/bus/pci/devices").join(&label);
        let doing = "opening it through VFIO";
        let told = |error| failed(&label, doing, error);
        if backend == Backend::Iommufd {
            let path = cdev(&folder).map_err(told)?;
            return Ok(Self { group: None, file: Some(open(&path).map_err(told)?) });
        }
        let group = group(&folder).map_err(told)?;
        match open(&Path::new("/dev/vfio").join(group.to_string())) {
            Ok(file) => Ok(Self { group: Some(group), file: Some(file) }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                Ok(Self { group: Some(group), file: None })
            }
            Err(error) => Err(told(error)),
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
}

/// The one character device of a function (Linux, Documentation/driver-api/vfio.rst).
fn cdev(folder: &Path) -> io::Result<PathBuf> {
    let mut entries = folder.join("vfio-dev").read_dir()?;
    let entry = entries.next().ok_or(io::ErrorKind::NotFound)??;
    Ok(Path::new("/dev/vfio/devices").join(entry.file_name()))
}

fn group(folder: &Path) -> io::Result<u32> {
    let link = folder.join("iommu_group").read_link()?;
    let number = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

enum Kind {
    Iommufd(Arc<VfioIommufd>),
    Group(Container),
}

/// One I/O address space; functions opened in it share its maps.
pub struct Iommu {
    kind: Kind,
    kvm: Option<Arc<OwnedFd>>,
}

impl Iommu {
    /// Makes an empty address space. `kvm` is the KVM VFIO device (KVM_DEV_TYPE_VFIO) of the guest's machine: KVM is told of
    /// each function before it is opened.
    ///
    /// # Errors
    /// The kernel has no VFIO, or this process may not.
    pub fn new(backend: Backend, kvm: Option<OwnedFd>) -> Result<Arc<Self>, Error> {
        Self::of(SpaceFile::open(backend)?, kvm)
    }

    /// The same, of a file that is open already.
    ///
    /// # Errors
    /// It is another file, or the kernel refuses.
    pub fn of(space: SpaceFile, kvm: Option<OwnedFd>) -> Result<Arc<Self>, Error> {
        let kind = if space.backend == Backend::Iommufd {
            let doing = "making an I/O address space";
            let told = kvm.as_ref().map(OwnedFd::try_clone).transpose();
            let told = told.map_err(|error| failed("iommufd", doing, error))?.map(|kvm| {
                // SAFETY: `into_raw_fd` gives up the only owner of this descriptor.
                Arc::new(VfioDeviceFd::new_from_kvm(unsafe { FromRawFd::from_raw_fd(kvm.into_raw_fd()) }))
            });
            let fd = Arc::new(IommuFd::new_from_fd(File::from(space.file)));
            let made = VfioIommufd::new(fd, None, told);
            Kind::Iommufd(Arc::new(made.map_err(|error| convert("iommufd", doing, &error))?))
        } else {
            let container = Container::new(space.file);
            let doing = "asking the VFIO container what it can do";
            Kind::Group(container.map_err(|error| failed("/dev/vfio/vfio", doing, error))?)
        };
        Ok(Arc::new(Self { kind, kvm: kvm.map(Arc::new) }))
    }

    /// Which interface it is.
    pub fn backend(&self) -> Backend {
        match self.kind {
            Kind::Iommufd(_) => Backend::Iommufd,
            Kind::Group(_) => Backend::Group,
        }
    }

    /// Opens a function that is bound to vfio-pci, and attaches it to this address space.
    ///
    /// # Errors
    /// It is not there, somebody has it, or it is dead.
    pub fn open(self: &Arc<Self>, address: PciAddress) -> Result<Arc<KernelFunction>, Error> {
        self.attach(address, FunctionFile::open(self.backend(), address)?)
    }

    /// Attaches a function whose file is open.
    ///
    /// # Errors
    /// The kernel refuses, or the function is dead.
    pub fn attach(
        self: &Arc<Self>,
        address: PciAddress,
        function: FunctionFile,
    ) -> Result<Arc<KernelFunction>, Error> {
        let label = address.to_string();
        let told = |error| failed(&label, "opening it through VFIO", error);
        let kvm = self.kvm.as_ref();
        let handle = match (&self.kind, function.group, function.file) {
            (Kind::Iommufd(iommufd), None, Some(file)) => {
                let opened = Cdev::new(file, iommufd, kvm);
                Handle::Cdev(opened.map_err(|error| convert(&label, "opening it through VFIO", &error))?)
            }
            (Kind::Group(container), Some(group), file) => {
                let opened = container.open(group, file, &label, kvm);
                Handle::Member(opened.map_err(|trouble| {
                    match trouble {
                        Trouble::Io(error) => told(error),
                        Trouble::NotViable => Error::Invalid {
                            function: label.clone(),
                            what: "its IOMMU group is not viable: another member is bound to a host driver"
                                .to_owned(),
                        },
                    }
                })?)
            }
            _ => return Err(told(io::ErrorKind::InvalidInput.into())),
        };
        KernelFunction::new(label, handle, Arc::clone(self)).map(Arc::new)
    }
}

impl IoAddressSpace for Iommu {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        let ranges = match &self.kind {
            Kind::Iommufd(iommufd) => {
                ioctl::ioas_ranges(borrow(iommufd.iommufd().as_ref()), iommufd.ioas().id())
            }
            Kind::Group(container) => ioctl::container_ranges(container.file()),
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
        match &self.kind {
            Kind::Iommufd(iommufd) => {
                let length = usize::try_from(size)
                    .map_err(|error| failed("IOMMU", doing(), io::Error::other(error)))?;
                // SAFETY: the caller keeps the memory mapped until `unmap`, and no reference to guest RAM is ever made.
                let mapped = unsafe { iommufd.vfio_dma_map(iova, length, source.host_address) };
                mapped.map_err(|error| convert("IOMMU", doing(), &error))
            }
            // SAFETY: as above.
            Kind::Group(container) => unsafe { container.map(iova, size, source.host_address) }
                .map_err(|error| failed("IOMMU", doing(), error)),
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        let doing = || format!("unmapping {size:#x} bytes at I/O address {iova:#x}");
        match &self.kind {
            Kind::Iommufd(iommufd) => {
                let length = usize::try_from(size)
                    .map_err(|error| failed("IOMMU", doing(), io::Error::other(error)))?;
                iommufd.vfio_dma_unmap(iova, length).map_err(|error| convert("IOMMU", doing(), &error))
            }
            Kind::Group(container) => {
                container.unmap(iova, size).map_err(|error| failed("IOMMU", doing(), error))
            }
        }
    }
}

/// A borrow of a descriptor whose owner does not lend it as `AsFd`.
fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor lives as long as its owner, which the borrow keeps.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
