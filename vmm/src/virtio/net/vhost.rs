//! vhost-net: the kernel walks a pair of rings (linux/vhost.h). Each pair has a descriptor of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use ::vhost::VhostBackend;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::tap::Tap;
use crate::memory::GuestRam;
use crate::virtio::ActiveQueue;
use crate::virtio::vhost::{Calls, Tables, failed, set_ring};
use crate::vm::Signal;

/// `struct vhost_vring_file`.
#[repr(C)]
struct RingFile {
    index: u32,
    fd: i32,
}

ioctl_iow_nr!(VHOST_NET_SET_BACKEND, 0xaf, 0x30, RingFile);

/// One pair of queues in the kernel.
pub(super) struct VhostNet {
    fd: Arc<File>,
    features: u64,
    owned: bool,
    running: Option<Calls>,
}

impl VhostNet {
    /// `fd` is of /dev/vhost-net.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(File::from(fd));
        let calls = Calls::new(&fd);
        let features = calls.get_features().map_err(failed)?;
        Ok(Self { fd, features, owned: false, running: None })
    }

    /// What it can.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Before its rings: features and memory.
    pub(super) fn begin(&mut self, tables: &Tables, features: u64, ram: &GuestRam) -> io::Result<()> {
        let calls = Calls::of(&self.fd, ram);
        if !self.owned {
            calls.set_owner().map_err(failed)?;
            self.owned = true;
        }
        calls.set_features(features & self.features).map_err(failed)?;
        self.running = Some(calls);
        tables.give(&self.fd)
    }

    /// Ring 0 receives, ring 1 sends. The driver's kicks go to the kernel, and the kernel's calls to the guest.
    pub(super) fn ring(
        &self,
        ring: usize,
        queue: &ActiveQueue,
        call: &Signal,
        error: &Signal,
    ) -> io::Result<()> {
        let Some(calls) = &self.running else { return Ok(()) };
        set_ring(calls, ring, queue, call, error)
    }

    /// Both rings begin with the tap as their other end, or end.
    pub(super) fn connect(&self, tap: Option<&Tap>) -> io::Result<()> {
        for index in 0..2 {
            let file = RingFile { index, fd: tap.map_or(-1, |tap| tap.as_fd().as_raw_fd()) };
            // SAFETY: the descriptor is vhost-net's, and the kernel reads one `vhost_vring_file`.
            if unsafe { ioctl_with_ref(&*self.fd, VHOST_NET_SET_BACKEND(), &file) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// When this returns the kernel touches neither ring until [`go_on`](Self::go_on); it remembers where it was in both.
    pub(super) fn pause(&self) -> io::Result<()> {
        if self.running.is_some() { self.connect(None) } else { Ok(()) }
    }

    /// After a pause.
    pub(super) fn go_on(&self, tap: &Tap) -> io::Result<()> {
        if self.running.is_some() { self.connect(Some(tap)) } else { Ok(()) }
    }

    /// When this returns the kernel touches neither ring any more.
    pub(super) fn end(&mut self, tables: &Tables) {
        if self.running.take().is_some() {
            if let Err(error) = self.connect(None) {
                tracing::warn!("Stopping vhost-net: {error}");
            }
            tables.take(&self.fd);
        }
    }
}
