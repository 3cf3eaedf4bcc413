//! How functions get into an I/O address space by a container and groups.
//!
//! Only descriptors come in here, opened by whoever may: the calls on them need no rights. `vfio-ioctls` opens the paths of
//! containers and groups itself, and reads sysfs when a function is closed, so it cannot be had here. Numbers and structures: the
//! kernel's `include/uapi/linux/vfio.h` and, for `KVM_SET_DEVICE_ATTR`, `include/uapi/linux/kvm.h`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_TYPE, VFIO_TYPE1v2_IOMMU,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

ioctl_io_nr!(GET_API_VERSION, VFIO_TYPE.into(), VFIO_BASE);
ioctl_io_nr!(CHECK_EXTENSION, VFIO_TYPE.into(), VFIO_BASE + 1);
ioctl_io_nr!(SET_IOMMU, VFIO_TYPE.into(), VFIO_BASE + 2);
ioctl_io_nr!(GROUP_GET_STATUS, VFIO_TYPE.into(), VFIO_BASE + 3);
ioctl_io_nr!(GROUP_SET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 4);
ioctl_io_nr!(GROUP_UNSET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 5);
ioctl_io_nr!(GROUP_GET_DEVICE_FD, VFIO_TYPE.into(), VFIO_BASE + 6);
ioctl_io_nr!(IOMMU_MAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 13);
ioctl_io_nr!(IOMMU_UNMAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 14);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, 0xae, 0xe1, [u64; 3]);

/// KVM_DEV_VFIO_FILE, and what may be done with one.
const KVM_FILE: u64 = 1;
const KVM_FILE_ADD: u64 = 1;
const KVM_FILE_DEL: u64 = 2;

/// A call whose argument is a structure of words.
fn words(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut [u32]) -> io::Result<()> {
    // SAFETY: each request of this module takes a pointer to a structure as long as the array that its caller gives.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) }).map(drop)
}

/// A call whose argument is a number, or none.
fn number(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the requests that are called by this take a number and touch no memory of ours.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) })
}

fn answer(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// The two words of a 64-bit number.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// KVM's knowledge of a file of VFIO's, which ends with this.
pub(super) struct Known {
    kvm: Arc<OwnedFd>,
    file: i32,
}

impl Known {
    /// Tells KVM, where there is one.
    fn new(kvm: Option<&Arc<OwnedFd>>, file: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some(kvm) = kvm else { return Ok(None) };
        let known = Self::of(kvm, file);
        known.tell(KVM_FILE_ADD).map(|()| Some(known))
    }

    /// Of a file that KVM was told of already. It is known by what is open, whichever descriptor says so.
    pub(super) fn of(kvm: &Arc<OwnedFd>, file: BorrowedFd<'_>) -> Self {
        Self { kvm: Arc::clone(kvm), file: file.as_raw_fd() }
    }

    fn tell(&self, what: u64) -> io::Result<()> {
        let file = self.file;
        // struct kvm_device_attr: flags and group, attr, addr.
        let attribute = [KVM_FILE << 32, what, (&raw const file).expose_provenance() as u64];
        let request = KVM_SET_DEVICE_ATTR();
        // SAFETY: the structure is the one that is asked for, and the number that it points at is read during the call.
        answer(unsafe { libc::ioctl(self.kvm.as_raw_fd(), request as _, attribute.as_ptr()) }).map(drop)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Err(error) = self.tell(KVM_FILE_DEL) {
            tracing::debug!("Telling KVM that a function is gone: {error}");
        }
    }
}

/// A type1 container, and the groups in it.
pub(super) struct Container {
    file: Arc<OwnedFd>,
    groups: Mutex<BTreeMap<u32, Weak<Group>>>,
}

/// One group in a container, which it leaves with the last of its functions.
struct Group {
    file: OwnedFd,
    container: Arc<OwnedFd>,
    known: Option<Known>,
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.known.take());
        let mut container = [descriptor(self.container.as_fd())];
        if let Err(error) = words(self.file.as_fd(), GROUP_UNSET_CONTAINER(), &mut container) {
            tracing::debug!("Taking an IOMMU group out of its container: {error}");
        }
    }
}

/// A function's file, and the group that it came from.
pub(super) struct Member {
    // Before the group, which cannot leave the container otherwise.
    file: OwnedFd,
    _group: Arc<Group>,
}

impl Member {
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a function did not get into a container.
pub(super) enum Trouble {
    /// Another member of its group is a host driver's.
    NotViable,
    /// A call failed.
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Container {
    /// `file` is of /dev/vfio/vfio.
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let version = number(file.as_fd(), GET_API_VERSION(), 0)?;
        let type1 = number(file.as_fd(), CHECK_EXTENSION(), VFIO_TYPE1v2_IOMMU.into())?;
        if version.cast_unsigned() != VFIO_API_VERSION || type1 != 1 {
            return Err(io::Error::other("this kernel's VFIO has no type 1 IOMMU"));
        }
        Ok(Self { file: Arc::new(file), groups: Mutex::default() })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The function `name` of a group. `file` is the group's, which is needed where it has no other function in here.
    pub(super) fn open(
        &self,
        group: u32,
        file: Option<OwnedFd>,
        name: &str,
        kvm: Option<&Arc<OwnedFd>>,
    ) -> Result<Member, Trouble> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        let group = match groups.get(&group).and_then(Weak::upgrade) {
            Some(there) => there,
            None => {
                let file = file.ok_or(io::Error::from_raw_os_error(libc::EBUSY))?;
                let made = Arc::new(self.add(file, groups.is_empty(), kvm)?);
                groups.insert(group, Arc::downgrade(&made));
                made
            }
        };
        let name = CString::new(name).map_err(io::Error::other)?;
        let request = GROUP_GET_DEVICE_FD();
        // SAFETY: the kernel reads the name up to its NUL.
        let fd = answer(unsafe { libc::ioctl(group.file.as_raw_fd(), request as _, name.as_ptr()) })?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(Member { file: unsafe { OwnedFd::from_raw_fd(fd) }, _group: group })
    }

    fn add(&self, file: OwnedFd, first: bool, kvm: Option<&Arc<OwnedFd>>) -> Result<Group, Trouble> {
        let mut status = [8, 0];
        words(file.as_fd(), GROUP_GET_STATUS(), &mut status)?;
        if status[1] & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(Trouble::NotViable);
        }
        words(file.as_fd(), GROUP_SET_CONTAINER(), &mut [descriptor(self.file())])?;
        let mut group = Group { file, container: Arc::clone(&self.file), known: None };
        // With its last group a container loses its IOMMU.
        if first {
            number(self.file(), SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into())?;
        }
        group.known = Known::new(kvm, group.file.as_fd())?;
        Ok(group)
    }

    /// Lets the functions reach `size` bytes of this process.
    ///
    /// # Safety
    /// The memory stays mapped until [`unmap`](Self::unmap), and no reference to it is ever made.
    pub(super) unsafe fn map(&self, iova: u64, size: u64, address: *mut u8) -> io::Result<()> {
        let (address, flags) = (halves(address.expose_provenance() as u64), VFIO_DMA_MAP_FLAG_READ);
        let (iova, size) = (halves(iova), halves(size));
        let flags = flags | VFIO_DMA_MAP_FLAG_WRITE;
        let mut argument = [32, flags, address[0], address[1], iova[0], iova[1], size[0], size[1]];
        words(self.file(), IOMMU_MAP_DMA(), &mut argument)
    }

    pub(super) fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let (iova, wanted) = (halves(iova), halves(size));
        let mut argument = [24, 0, iova[0], iova[1], wanted[0], wanted[1]];
        words(self.file(), IOMMU_UNMAP_DMA(), &mut argument)?;
        // The kernel says how much it was.
        let done = u64::from(argument[4]) | u64::from(argument[5]) << 32;
        if done == size { Ok(()) } else { Err(io::Error::other(format!("only {done:#x} bytes were mapped"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_in_the_kernels_headers() {
        // _IOW(KVMIO, 0xe1, struct kvm_device_attr); _IO(';', 100 + 6).
        assert_eq!(KVM_SET_DEVICE_ATTR(), 0x4018_aee1);
        assert_eq!(GROUP_GET_DEVICE_FD(), 0x3b6a);
        assert_eq!(halves(0x1234_5678_9abc_def0), [0x9abc_def0, 0x1234_5678]);
    }

    #[test]
    fn a_file_that_is_no_container_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Container::new(null.into()).is_err());
    }
}
