//! The entropy device (virtio 1.2, 5.4): fills what the driver hands in from the host's random number generator.

use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{
    ActivateError, Activation, ActiveQueue, Broken, Class, Interrupts, Memory, Stop, VirtioDevice, Wake,
    Worker, feature,
};
use crate::memory::GuestRam;

const QUEUE_SIZE: u16 = 64;
/// What is filled of one request at most; the driver is told how much it was.
const MOST_BYTES: usize = 4096;

/// The device. It holds nothing.
#[derive(Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn class(&self) -> Class {
        Class::Entropy
    }

    fn features(&self) -> u64 {
        feature::OF_RINGS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let queue = activation.take_queue(0).ok_or(ActivateError::Queue(0))?;
        let Activation { memory, interrupts, .. } = activation;
        let worker = Worker::spawn("virtio-rng", move |stop| serve(&stop, queue, &memory, &interrupts))
            .map_err(ActivateError::host("Starting the thread of a virtio-rng"))?;
        Ok(vec![worker])
    }

    fn reset(&mut self) {}
}

fn serve(stop: &Stop, mut queue: ActiveQueue, ram: &Arc<GuestRam>, interrupts: &Interrupts) {
    loop {
        match stop.wait(&[(queue.kick.fd(), PollFlags::IN)]) {
            Ok(Wake::Ready(_)) => {}
            Ok(Wake::Stop) => return,
            Err(error) => return interrupts.fail(error),
        }
        queue.kick.take();
        if let Err(broken) = drain(stop, &mut queue, ram.memory()) {
            return interrupts.fail(broken);
        }
    }
}

/// Serves what is in the ring. A driver that adds without end is served until the worker is to stop.
fn drain(stop: &Stop, queue: &mut ActiveQueue, memory: &Memory) -> Result<(), Broken> {
    loop {
        queue.ring.disable_kicks(memory)?;
        while let Some(chain) = queue.ring.pop(memory)? {
            let room = usize::try_from(chain.writable_length()).unwrap_or(usize::MAX).min(MOST_BYTES);
            let mut bytes = vec![0; room];
            // From a seeded generator up to 256 bytes never fail; beyond that a signal may cut it short.
            let filled = getrandom(&mut bytes[..], GetRandomFlags::empty()).unwrap_or(0);
            let written = chain.write(memory, 0, bytes.get(..filled).unwrap_or_default());
            queue.ring.complete(memory, chain.head, u32::try_from(written).unwrap_or(0))?;
            if stop.is_raised() {
                return Ok(());
            }
        }
        if queue.ring.needs_interrupt(memory)? {
            queue.interrupt.signal();
        }
        if !queue.ring.enable_kicks(memory)? {
            return Ok(());
        }
    }
}
