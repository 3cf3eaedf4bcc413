//! The control queue (5.1.6.5): how many pairs of queues are in use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::tap::Tap;
use crate::virtio::{ActiveQueue, Broken, Memory};

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERR: u8 = 1;

/// The first `count` queues of the tap receive, the others do not. A tap with one queue has nothing to choose.
pub(super) fn use_pairs(taps: &[Arc<Tap>], count: usize) -> io::Result<()> {
    if taps.len() < 2 {
        return Ok(());
    }
    for (tap, index) in taps.iter().zip(0..) {
        match tap.attach(index < count) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Does what the driver asks for.
pub(super) fn serve(
    queue: &mut ActiveQueue,
    memory: &Memory,
    taps: &[Arc<Tap>],
    shared: &Shared,
) -> Result<(), Broken> {
    // A driver that adds without end gets its turn again by the next kick.
    for _ in 0..=queue.ring.layout().size {
        let Some(chain) = queue.ring.pop(memory)? else { break };
        let mut command = [0; 4];
        let length = chain.read(memory, 0, &mut command);
        let [class, verb, low, high] = command;
        let pairs = u16::from_le_bytes([low, high]);
        let valid = length == 4 && [class, verb] == SET_PAIRS && (1..=taps.len()).contains(&pairs.into());
        let done = valid && use_pairs(taps, pairs.into()).is_ok();
        if done {
            shared.pairs.store(pairs, Ordering::Release);
        }
        let written = chain.write(memory, 0, &[if done { OK } else { ERR }]);
        queue.ring.complete(memory, chain.head, u32::try_from(written).unwrap_or(0))?;
    }
    if queue.ring.needs_interrupt(memory)? {
        queue.interrupt.signal();
    }
    Ok(())
}
