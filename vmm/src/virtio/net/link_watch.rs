//! Hearing that a link of the host may have gone: a tap's own poll wakes for packets as well, which are vhost's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A socket that is readable when something about some link changed (rtnetlink(7), RTMGRP_LINK).
pub(super) struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Hears what a socket hears that was made by [`listen`].
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Forgets what was heard: what it means is asked of the tap.
    pub(super) fn drain(&self) {
        let mut message = [0; 512];
        // A message that does not fit is cut; one that was lost (ENOBUFS) is told once, and means the same.
        while let Ok(1..) | Err(rustix::io::Errno::NOBUFS) = rustix::io::read(&self.0, &mut message) {}
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket for [`Net::hearing`](super::Net::hearing), which hears of links in the network namespace of this thread.
///
/// # Errors
/// What the system says.
pub fn listen() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket(2) has just given us this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an address of zeroes is one: numbers only.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or(0);
    address.nl_groups = u32::try_from(libc::RTMGRP_LINK).unwrap_or(1);
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the socket is open, and `address` is as long as is said.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
