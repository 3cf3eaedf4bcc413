//! The thread that waits for what is rare: commands, errors of vhost, a tap that vanishes. It relays vhost's calls where the
//! guest uses the pin.

use std::sync::Arc;

use rustix::event::PollFlags;
use std::os::fd::AsFd;

use super::link_watch::LinkWatch;
use super::tap::Tap;
use super::{Shared, control};
use crate::memory::GuestRam;
use crate::virtio::vhost::Signals;
use crate::virtio::{Activation, ActiveQueue, Interrupts, Stop, Wake};

pub(super) struct Supervisor {
    label: String,
    taps: Vec<Arc<Tap>>,
    shared: Arc<Shared>,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    pub(super) control: Option<ActiveQueue>,
    watch: Option<Arc<LinkWatch>>,
    pub(super) signals: Signals,
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
            signals: Signals::default(),
        }
    }

    pub(super) fn serve(mut self, stop: &Stop) {
        let mut tap_is_there = true;
        loop {
            let watch = self.watch.as_ref().filter(|_| tap_is_there);
            let mut fds: Vec<_> = watch.map(|watch| (watch.as_fd(), PollFlags::IN)).into_iter().collect();
            fds.extend(self.control.iter().map(|queue| (queue.kick.fd(), PollFlags::IN)));
            fds.extend(self.signals.fds().map(|fd| (fd, PollFlags::IN)));
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

    fn tap_is_gone(&self) {
        tracing::error!(
            "{}: its link on the host was removed while the guest runs; the guest sees its cable pulled. Start the guest again to have the link made anew",
            self.label
        );
        self.shared.set_link(false);
    }
}
