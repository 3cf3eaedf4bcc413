//! A pair of queues served by a thread of ours, where the host has no vhost-net.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::PollFlags;

use super::tap::Tap;
use super::{HEADER, Shared};
use crate::memory::GuestRam;
use crate::virtio::{ActiveQueue, Broken, Chain, Interrupts, Memory, Stop, Wake};

/// The largest packet with segments left to the receiver, and its header.
const LARGEST: usize = HEADER + 14 + 4 + 65536;
/// Packets that are moved before the other direction has its turn.
const TURN: u16 = 256;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

pub(super) struct Pair {
    pub(super) tap: Arc<Tap>,
    pub(super) receive: ActiveQueue,
    pub(super) transmit: ActiveQueue,
    pub(super) ram: Arc<GuestRam>,
    pub(super) mergeable: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupts: Arc<Interrupts>,
}

/// What came of a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is nothing more.
    Idle,
    /// There may be more.
    More,
    /// A packet waits for the driver's buffers.
    Starved,
}

impl Pair {
    pub(super) fn serve(mut self, stop: &Stop) {
        let mut packet = vec![0; LARGEST];
        // The length of a packet that found no buffer yet.
        let mut waiting = None;
        let mut tap_is_there = true;
        loop {
            let tap = if waiting.is_some() || !tap_is_there { None } else { Some(self.tap.as_fd()) };
            let mut fds =
                vec![(self.transmit.kick.fd(), PollFlags::IN), (self.receive.kick.fd(), PollFlags::IN)];
            fds.extend(tap.map(|tap| (tap, PollFlags::IN)));
            match stop.wait(&fds) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            self.transmit.kick.take();
            self.receive.kick.take();
            loop {
                let turn = self.send().and_then(|sent| {
                    let received = self.receive(&mut packet, &mut waiting, &mut tap_is_there)?;
                    Ok((sent, received))
                });
                match turn {
                    Ok((Turn::More, _) | (_, Turn::More)) if !stop.is_raised() => {}
                    Ok(_) => break,
                    Err(broken) => return self.interrupts.fail(broken),
                }
            }
        }
    }

    /// Sends what the driver has put in.
    fn send(&mut self) -> Result<Turn, Broken> {
        let memory = self.ram.memory();
        let queue = &mut self.transmit;
        queue.ring.disable_kicks(memory)?;
        let mut turn = Turn::More;
        for _ in 0..TURN {
            let Some(chain) = queue.ring.pop(memory)? else {
                turn = if queue.ring.enable_kicks(memory)? { Turn::More } else { Turn::Idle };
                break;
            };
            let counter =
                if send_one(&self.tap, memory, &chain) { &self.shared.sent } else { &self.shared.dropped };
            counter.fetch_add(1, Ordering::Relaxed);
            queue.ring.complete(memory, chain.head, 0)?;
        }
        if queue.ring.needs_interrupt(memory)? {
            queue.interrupt.signal();
        }
        Ok(turn)
    }

    /// Hands packets to the driver, the one that waits first.
    fn receive(
        &mut self,
        packet: &mut [u8],
        waiting: &mut Option<usize>,
        tap_is_there: &mut bool,
    ) -> Result<Turn, Broken> {
        let mut turn = Turn::More;
        for _ in 0..TURN {
            let length = match waiting.take() {
                Some(length) => length,
                None => match self.tap.read(packet) {
                    Ok(length) => length,
                    Err(error) => {
                        *tap_is_there &= error.kind() == std::io::ErrorKind::WouldBlock;
                        turn = Turn::Idle;
                        break;
                    }
                },
            };
            let Some(filled) = packet.get_mut(..length).filter(|_| length >= HEADER) else { continue };
            if !self.deliver(filled)? {
                // Only now is the driver asked to ring: buffers that it adds on its own account are found.
                let came = self.receive.ring.enable_kicks(self.ram.memory())?;
                *waiting = Some(length);
                if !came {
                    turn = Turn::Starved;
                    break;
                }
            }
        }
        let memory = self.ram.memory();
        if self.receive.ring.needs_interrupt(memory)? {
            self.receive.interrupt.signal();
        }
        Ok(turn)
    }

    /// False where the driver has too few buffers for it now.
    fn deliver(&mut self, packet: &mut [u8]) -> Result<bool, Broken> {
        let memory = self.ram.memory();
        let mut chains: Vec<Chain> = Vec::with_capacity(1);
        let (mut room, needed) = (0, u64::try_from(packet.len()).unwrap_or(u64::MAX));
        while room < needed {
            let next =
                if chains.is_empty() || self.mergeable { self.receive.ring.pop(memory)? } else { None };
            let Some(chain) = next else {
                let alone = !self.mergeable && !chains.is_empty();
                chains.iter().for_each(|_| self.receive.ring.unpop());
                if alone {
                    // It never fits: the driver's buffers are smaller than its network's packets.
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(alone);
            };
            room = room.saturating_add(chain.writable_length());
            chains.push(chain);
        }
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        if let Some(field) = packet.get_mut(NUM_BUFFERS) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest = &*packet;
        for chain in chains {
            let written = chain.write(memory, 0, rest);
            rest = rest.get(written..).unwrap_or_default();
            self.receive.ring.complete(memory, chain.head, u32::try_from(written).unwrap_or(0))?;
        }
        self.shared.received.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }
}

/// False where the packet is none, or the host does not take it.
fn send_one(tap: &Tap, memory: &Memory, chain: &Chain) -> bool {
    let most = u64::try_from(LARGEST).unwrap_or(u64::MAX);
    let least = u64::try_from(HEADER).unwrap_or(u64::MAX);
    if !(least..=most).contains(&chain.readable_length()) {
        return false;
    }
    let guards: Vec<_> =
        chain.readable().iter().filter_map(|buffer| Some(buffer.slice(memory)?.ptr_guard())).collect();
    let parts: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
        .collect();
    // SAFETY: the parts are guest RAM, which `memory` keeps mapped, and the guards are alive.
    unsafe { tap.write_parts(&parts) }.is_ok()
}
