//! The host's end: a tap's or macvtap's descriptor (Documentation/networking/tuntap.rst; both know the same calls).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use super::{HEADER, feature};

ioctl_iow_nr!(TUNSETOFFLOAD, 0x54, 208, libc::c_uint);
ioctl_ior_nr!(TUNGETIFF, 0x54, 210, libc::c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, 0x54, 216, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, 0x54, 217, libc::c_int);

/// What the reader of the tap takes: checksums to be computed, segments to be made.
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// One queue of a tap.
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// Sets it up for virtio 1: the long header, and never waiting. What fails comes with what was being done.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, (&'static str, io::Error)> {
        let length = libc::c_int::try_from(HEADER).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open, and the kernel reads one int.
        if unsafe { ioctl_with_ref(&fd, TUNSETVNETHDRSZ(), &length) } != 0 {
            return Err(("the length of the packets' header", io::Error::last_os_error()));
        }
        let flags = fcntl_getfl(&fd).map_err(|error| ("its flags", error.into()))?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|error| ("not to wait", error.into()))?;
        Ok(Self(fd))
    }

    /// Lets the host leave to the guest what `features` say that it takes.
    pub(super) fn offload(&self, features: u64) -> io::Result<()> {
        let mut flags = 0;
        // Segmentation without checksums there is not.
        if features & feature::GUEST_CSUM != 0 {
            flags |= TUN_F_CSUM;
            flags |= if features & feature::GUEST_TSO4 != 0 { TUN_F_TSO4 } else { 0 };
            flags |= if features & feature::GUEST_TSO6 != 0 { TUN_F_TSO6 } else { 0 };
        }
        // SAFETY: the descriptor is open, and the argument is a number.
        match unsafe { ioctl_with_val(&self.0, TUNSETOFFLOAD(), flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes part in receiving, of a tap with several queues.
    pub(super) fn attach(&self, on: bool) -> io::Result<()> {
        // SAFETY: an `ifreq` of zeroes is one: a name of no length and numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or(0);
        // SAFETY: the descriptor is open, and the kernel reads one `ifreq`.
        match unsafe { ioctl_with_ref(&self.0, TUNSETQUEUE(), &request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its link is there still.
    pub(super) fn is_there(&self) -> bool {
        // SAFETY: an `ifreq` of zeroes is one: a name of no length and numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the kernel writes one `ifreq`.
        unsafe { ioctl_with_mut_ref(&self.0, TUNGETIFF(), &mut request) == 0 }
    }

    pub(super) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, packet)?)
    }

    /// Sends a packet that lies in parts.
    ///
    /// # Safety
    /// Each part must be mapped, for its length, during the call.
    pub(super) unsafe fn write_parts(&self, parts: &[libc::iovec]) -> io::Result<()> {
        let count = libc::c_int::try_from(parts.len()).map_err(io::Error::other)?;
        // SAFETY: the caller vouches for the parts; the kernel reads them and writes to none.
        match unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), count) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
