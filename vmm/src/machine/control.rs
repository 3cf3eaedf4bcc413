//! What may be asked of a running machine from outside.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::hotplug::{Change, Changed, HotplugRequest};
use crate::mailbox::{Event, Mailbox};

/// Something of the owner's that the machine's loop waits for while the guest runs: signals, a terminal. It is called on the
/// thread that runs the machine, so it must not block.
pub trait Watched: Send {
    /// Readable when there is something to do.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Does it, once for each time the descriptor is found readable. False to be waited for no more.
    fn ready(&mut self) -> bool;
}

/// Asks a machine to stop, from any thread. Outlives the machine harmlessly.
#[derive(Clone)]
pub struct Handle {
    pub(super) mailbox: Arc<Mailbox>,
}

impl Handle {
    /// Ends the machine now, as if its power was cut.
    pub fn stop(&self) {
        self.mailbox.post(Event::Stop);
    }

    /// Presses the power button: a guest that listens shuts down by itself.
    pub fn press_power_button(&self) {
        self.mailbox.post(Event::PowerButton);
    }

    /// Plugs a device in or takes one out; what came of it, for a person, arrives when it has. `within` is how long the guest
    /// may take.
    pub fn change(&self, change: Change, within: Duration) -> Receiver<Result<Changed, String>> {
        let (reply, result) = mpsc::channel();
        self.mailbox.post(Event::Hotplug(HotplugRequest { change, within, reply }));
        result
    }

    /// Writes what KVM has counted of each vCPU to the log, at level info.
    pub fn log_stats(&self) {
        self.mailbox.post(Event::Stats);
    }
}
