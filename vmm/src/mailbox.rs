//! What vCPUs, devices and whoever controls the machine have to say to its owner.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Action;
use crate::machine::HotplugRequest;
use crate::outcome::Crash;

/// One message to the owner of the machine.
#[derive(Debug)]
pub enum Event {
    /// A device wants something done. The vCPU that wrote to it is parked where that is a power-off or a reset.
    Action(Action),
    /// A vCPU cannot go on; it is parked.
    Crash(Box<Crash>),
    /// A vCPU's thread ended by a fault of ours.
    Fault {
        /// Its index.
        vcpu: u32,
    },
    /// End the machine now.
    Stop,
    /// Press the power button: the guest is asked to shut down.
    PowerButton,
    /// Plug a device in, or take one out.
    Hotplug(HotplugRequest),
    /// Write what KVM has counted to the log.
    Stats,
}

/// A queue whose descriptor is readable while there is something in it.
pub struct Mailbox {
    queue: Mutex<VecDeque<Event>>,
    wake: EventFd,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Puts one in; never blocks.
    pub fn post(&self, event: Event) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        if let Err(error) = self.wake.write(1) {
            tracing::error!("Waking the machine's loop: {error}");
        }
    }

    /// Takes the oldest one out. Take until there is none: the descriptor tells of all of them only once.
    pub fn take(&self) -> Option<Event> {
        // Nothing to read is no error: someone else's wake was counted together with this one.
        let _ = self.wake.read();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Forgets what the guest's processors wanted. For a guest that is reset while they are parked: one may have asked at
    /// the same time as another, and its wish is not the next guest's.
    pub fn forget_guest(&self) {
        let of_guest = |event: &Event| match event {
            Event::Action(Action::DeviceError { .. }) => false,
            Event::Action(_) | Event::Crash(_) => true,
            _ => false,
        };
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).retain(|event| !of_guest(event));
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.wake`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_forgets_what_processors_wanted_and_nothing_else() {
        let mailbox = Mailbox::new().unwrap();
        let failed = Action::DeviceError { device: "0000:65:10.2".into(), what: "uncorrectable".into() };
        for event in [
            Event::Action(Action::Reset),
            Event::Action(Action::Panicked),
            Event::Action(failed),
            Event::PowerButton,
            Event::Stop,
        ] {
            mailbox.post(event);
        }
        mailbox.forget_guest();
        assert!(matches!(mailbox.take(), Some(Event::Action(Action::DeviceError { .. }))));
        assert!(matches!(mailbox.take(), Some(Event::PowerButton)));
        assert!(matches!(mailbox.take(), Some(Event::Stop)));
        assert!(mailbox.take().is_none());
    }
}
