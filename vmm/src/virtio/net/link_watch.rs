//! Hearing that a link of the host may have gone: a tap's own poll wakes for packets as well, which are vhost's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tap::Tap;
use super::{Hears, Shared};

/// Messages that are taken before others have their turn.
const AT_ONCE: u32 = 256;

/// Of a card whose taps are on links of the host.
pub(super) struct LinkWatch {
    /// Readable when something about some link changed (rtnetlink(7), RTMGRP_LINK).
    socket: OwnedFd,
    label: String,
    taps: Vec<Arc<Tap>>,
    shared: Arc<Shared>,
    /// It was said.
    is_gone: AtomicBool,
}

impl LinkWatch {
    /// Hears what a socket hears that was made by [`listen`].
    pub(super) fn new(socket: OwnedFd, label: &str, taps: &[Arc<Tap>], shared: &Arc<Shared>) -> Self {
        Self {
            socket,
            label: label.to_owned(),
            taps: taps.to_vec(),
            shared: Arc::clone(shared),
            is_gone: AtomicBool::new(false),
        }
    }
}

impl Hears for LinkWatch {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What was heard is forgotten: what it means is asked of the taps.
    fn heard(&self) {
        let mut message = [0; 512];
        // A message that does not fit is cut; one that was lost (ENOBUFS) is told once, and means the same.
        for _ in 0..AT_ONCE {
            let (Ok(1..) | Err(rustix::io::Errno::NOBUFS)) = rustix::io::read(&self.socket, &mut message)
            else {
                break;
            };
        }
        if !self.taps.iter().all(|tap| tap.is_there()) && !self.is_gone.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "{}: its link on the host was removed while the guest runs; the guest sees its cable pulled. Start the guest again to have the link made anew",
                self.label
            );
            self.shared.set_link(false);
        }
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
