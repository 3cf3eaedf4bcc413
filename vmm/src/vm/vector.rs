//! One message signalled interrupt: an eventfd from a device to KVM, and the route it takes there.
//!
//! ```text
//!   device (VFIO, vhost, a thread of ours) -> eventfd --(delivering)--> irqfd -> GSI -> message -> guest
//!                            \--(held)--> stays readable: the pending bit
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Error, MsiMessage, Vm};

/// An eventfd that never blocks.
pub struct Signal(EventFd);

impl Signal {
    /// One that is not raised.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Self)
    }

    /// The eventfd itself.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// For waiting: readable while it is raised.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is, and the answer borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// Raises it; never blocks.
    pub fn raise(&self) {
        // Fails only when 2^64 - 2 signals wait already: then it is signalled.
        let _ = self.0.write(1);
    }

    /// True if it was raised. It is not any more.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// True if it is raised; stays so.
    pub fn is_raised(&self) -> bool {
        let fd = self.fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// A vector of MSI or MSI-X. Made at its first use: it takes a descriptor and a GSI.
pub(crate) struct Vector {
    vm: Arc<Vm>,
    gsi: u32,
    signal: Arc<Signal>,
    delivering: bool,
}

impl Vector {
    /// A vector that holds what arrives until [`deliver`](Self::deliver).
    pub(crate) fn new(vm: &Arc<Vm>) -> Result<Self, Error> {
        let failed = |source| Error::Call { doing: "Making an eventfd for an interrupt".into(), source };
        let signal = Arc::new(Signal::new().map_err(failed)?);
        let gsi = vm.allocate_gsi()?;
        Ok(Self { vm: Arc::clone(vm), gsi, signal, delivering: false })
    }

    /// The same, for a thread that signals while others mask.
    pub(crate) fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.signal)
    }

    /// What VFIO is to signal.
    pub(crate) fn trigger(&self) -> BorrowedFd<'_> {
        self.signal.fd()
    }

    /// From now on each signal becomes `message`, without an exit; what was held is sent now.
    pub(crate) fn deliver(&mut self, message: MsiMessage) -> Result<(), Error> {
        self.vm.route_msi(self.gsi, Some(message))?;
        if self.delivering {
            return Ok(());
        }
        // KVM looks at the eventfd when it is attached, and injects once if it is readable. It leaves the count, which
        // would be a pending bit that is not true when the vector is masked next: `hold` clears it.
        self.vm.attach_irqfd(self.signal.eventfd(), self.gsi)?;
        self.delivering = true;
        Ok(())
    }

    /// From now on signals stay pending.
    pub(crate) fn hold(&mut self) -> Result<(), Error> {
        if !self.delivering {
            return Ok(());
        }
        // While it is attached KVM empties the count at each signal, under the eventfd's own lock. So what can be read
        // before it is detached was injected already, and what arrives after that stays.
        self.signal.take();
        self.vm.detach_irqfd(self.signal.eventfd(), self.gsi)?;
        self.delivering = false;
        Ok(())
    }

    /// It was signalled while it was held.
    pub(crate) fn is_pending(&self) -> bool {
        !self.delivering && self.signal.is_raised()
    }

    /// Forgets what was held.
    pub(crate) fn forget(&self) {
        if !self.delivering {
            self.signal.take();
        }
    }

    /// As if the device had signalled it.
    pub(crate) fn raise(&self) {
        self.signal.raise();
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let ended = self.hold().and_then(|()| self.vm.release_gsi(self.gsi));
        if let Err(error) = ended {
            tracing::warn!("Letting an interrupt go: {error}");
        }
    }
}
