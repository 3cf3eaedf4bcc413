//! The thread that waits for what is rare: commands, and errors of vhost. It relays vhost's calls where the guest uses the pin.

use std::sync::Arc;

use rustix::event::PollFlags;

use super::tap::Tap;
use super::{Shared, control};
use crate::memory::GuestRam;
use crate::virtio::vhost::Signals;
use crate::virtio::{Activation, ActiveQueue, Interrupts, Stop, Wake};

pub(super) struct Supervisor {
    taps: Vec<Arc<Tap>>,
    shared: Arc<Shared>,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    pub(super) control: Option<ActiveQueue>,
    pub(super) signals: Signals,
}

impl Supervisor {
    pub(super) fn new(taps: &[Arc<Tap>], shared: &Arc<Shared>, activation: &Activation) -> Self {
        Self {
            taps: taps.to_vec(),
            shared: Arc::clone(shared),
            ram: Arc::clone(&activation.memory),
            interrupts: Arc::clone(&activation.interrupts),
            control: None,
            signals: Signals::default(),
        }
    }

    /// Whether there is anything to wait for.
    pub(super) fn is_needed(&self) -> bool {
        self.control.is_some() || self.signals.fds().next().is_some()
    }

    pub(super) fn serve(mut self, stop: &Stop) {
        loop {
            let kicks = self.control.iter().map(|queue| queue.kick.fd());
            let fds: Vec<_> = kicks.chain(self.signals.fds()).map(|fd| (fd, PollFlags::IN)).collect();
            match stop.wait(&fds) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            if self.signals.take() {
                self.interrupts.fail("vhost-net finds a ring or a packet in it malformed");
            }
            if let Some(queue) = self.control.as_mut().filter(|queue| queue.kick.take())
                && let Err(broken) = control::serve(queue, self.ram.memory(), &self.taps, &self.shared)
            {
                self.control = None;
                self.interrupts.fail(broken);
            }
        }
    }
}
