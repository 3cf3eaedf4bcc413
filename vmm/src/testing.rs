//! What tests stand on: guest memory between walls, and a tap that leads nowhere.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::ioctl_with_ref;

pub use crate::memory::walled;

mod ioctls {
    vmm_sys_util::ioctl_iow_nr!(TUNSETIFF, 0x54, 202, libc::c_int);
}
use ioctls::TUNSETIFF;

/// A tap that is up, and a packet socket on it, in a network namespace of this thread: call it on a thread that needs no
/// other.
///
/// # Errors
/// What the kernel says; without the right to make namespaces, that.
pub fn tap() -> io::Result<(OwnedFd, File)> {
    // SAFETY: only this thread goes into a namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an `ifreq` of zeroes is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(*b"t0") {
        *slot = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq`.
    if unsafe { ioctl_with_ref(&tap, TUNSETIFF(), &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = i32::from(u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be());
    // SAFETY: socket(2) takes numbers; the answer is checked and owned here alone.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and both calls take one `ifreq`.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) != 0
            || libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &mut request) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: an address of zeroes is one; SIOCGIFINDEX has filled in the index.
    let (mut address, index): (libc::sockaddr_ll, i32) =
        unsafe { (std::mem::zeroed(), request.ifr_ifru.ifru_ifindex) };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(all).map_err(io::Error::other)?;
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and `address` is as long as is said.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((tap.into(), socket))
}
