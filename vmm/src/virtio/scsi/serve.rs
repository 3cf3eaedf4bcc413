//! The thread of the SCSI host.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::PollFlags;

use super::super::{ActiveQueue, Broken, Chain, Interrupts, Stop, Wake};
use super::{Shared, Sizes, request};
use crate::memory::GuestRam;

/// What serves the queues. Of events there are none, and their queue is left alone.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) sizes: Sizes,
    pub(super) memory: Arc<GuestRam>,
    pub(super) interrupts: Arc<Interrupts>,
}

impl Server {
    pub(super) fn run(self, stop: &Stop, mut control: Option<ActiveQueue>, mut requests: ActiveQueue) {
        loop {
            let kicks = [Some(&requests), control.as_ref()];
            let kicks: Vec<_> =
                kicks.into_iter().flatten().map(|queue| (queue.kick.fd(), PollFlags::IN)).collect();
            match stop.wait(&kicks) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            let mut served = drain(stop, &mut requests, &self.memory, |chain| self.request(chain));
            if let (Ok(()), Some(control)) = (&served, &mut control) {
                let answer = |chain: &Chain| request::control(chain, self.memory.memory());
                served = drain(stop, control, &self.memory, answer);
            }
            if let Err(broken) = served {
                return self.interrupts.fail(broken);
            }
        }
    }

    fn request(&self, chain: &Chain) -> Result<u32, Broken> {
        let Shared { drive, served, failed } = &*self.shared;
        let (written, error) = request::serve(drive, self.sizes, chain, self.memory.memory())?;
        served.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = error {
            failed.fetch_add(1, Ordering::Relaxed);
            let medium = drive.medium();
            let path = medium.as_ref().map_or("its medium", |medium| &medium.path);
            tracing::warn!("{}: reading {path} failed: {error}", self.interrupts.label());
        }
        Ok(written)
    }
}

/// Serves what is in one ring.
fn drain(
    stop: &Stop,
    queue: &mut ActiveQueue,
    ram: &GuestRam,
    mut serve: impl FnMut(&Chain) -> Result<u32, Broken>,
) -> Result<(), Broken> {
    queue.kick.take();
    let memory = ram.memory();
    loop {
        queue.ring.disable_kicks(memory)?;
        while let Some(chain) = queue.ring.pop(memory)? {
            let written = serve(&chain)?;
            queue.ring.complete(memory, chain.head, written)?;
            if queue.ring.needs_interrupt(memory)? {
                queue.interrupt.signal();
            }
            if stop.is_raised() {
                return Ok(());
            }
        }
        if !queue.ring.enable_kicks(memory)? {
            return Ok(());
        }
    }
}
