//! The thread that waits for what is rare: commands, errors of vhost, a tap that vanishes. It relays vhost's calls where the
//! guest uses the pin.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use std::os::fd::AsFd;

use super::link_watch::LinkWatch;
use super::tap::Tap;
use super::{Shared, control};
use crate::memory::GuestRam;
use crate::virtio::{Activation, ActiveQueue, Interrupts, QueueInterrupt, Stop, Wake};
use crate::vm::Signal;

pub(super) struct Supervisor {
    label: String,
    taps: Vec<Arc<Tap>>,
    shared: Arc<Shared>,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    pub(super) control: Option<ActiveQueue>,
    watch: Option<Arc<LinkWatch>>,
    errors: Vec<Arc<Signal>>,
    relays: Vec<(Arc<Signal>, QueueInterrupt)>,
}

impl Supervisor {
    pub(super) fn new(
        label: &str,
        taps: &[Arc<Tap>],
        shared: &Arc<Shared>,
        watch: Option<&Arc<LinkWatch>>,
        activation: &Activation,
    ) -> Self {
        Self {
            label: label.to_owned(),
            taps: taps.to_vec(),
            shared: Arc::clone(shared),
            ram: Arc::clone(&activation.memory),
            interrupts: Arc::clone(&activation.interrupts),
            control: None,
            watch: watch.cloned(),
            errors: Vec::new(),
            relays: Vec::new(),
        }
    }

    /// What vhost is to signal for a ring: that something is used, and that the ring is broken.
    pub(super) fn watch_ring(&mut self, queue: &ActiveQueue) -> io::Result<(Arc<Signal>, Arc<Signal>)> {
        let error = Arc::new(Signal::new()?);
        self.errors.push(Arc::clone(&error));
        let call = match queue.interrupt.direct() {
            Some(signal) => signal,
            None => {
                let signal = Arc::new(Signal::new()?);
                self.relays.push((Arc::clone(&signal), queue.interrupt.clone()));
                signal
            }
        };
        Ok((call, error))
    }

    pub(super) fn serve(mut self, stop: &Stop) {
        let mut tap_is_there = true;
        loop {
            let watch = self.watch.as_ref().filter(|_| tap_is_there);
            let mut fds: Vec<_> = watch.map(|watch| (watch.as_fd(), PollFlags::IN)).into_iter().collect();
            fds.extend(self.control.iter().map(|queue| (queue.kick.fd(), PollFlags::IN)));
            fds.extend(self.errors.iter().map(|signal| (signal.fd(), PollFlags::IN)));
            fds.extend(self.relays.iter().map(|(signal, _)| (signal.fd(), PollFlags::IN)));
            let watch = watch.map(Arc::clone);
            let ready = match stop.wait(&fds) {
                Ok(Wake::Ready(ready)) => ready,
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            };
            if let (Some(watch), Some(true)) = (watch, ready.first()) {
                watch.drain();
                tap_is_there = self.taps.iter().all(|tap| tap.is_there());
                if !tap_is_there {
                    self.tap_is_gone();
                }
            }
            if self.errors.iter().any(|signal| signal.take()) {
                self.errors.clear();
                self.interrupts.fail("vhost-net finds a ring or a packet in it malformed");
            }
            for (signal, interrupt) in &self.relays {
                if signal.take() {
                    interrupt.signal();
                }
            }
            if let Some(queue) = self.control.as_mut().filter(|queue| queue.kick.take())
                && let Err(broken) = control::serve(queue, self.ram.memory(), &self.taps, &self.shared)
            {
                self.control = None;
                self.interrupts.fail(broken);
            }
        }
    }

    fn tap_is_gone(&self) {
        tracing::error!(
            "{}: its link on the host was removed while the guest runs; the guest sees its cable pulled. Start the guest again to have the link made anew",
            self.label
        );
        self.shared.set_link(false);
    }
}
