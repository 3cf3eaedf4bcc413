//! Walking a split virtqueue (virtio 1.2, 2.7): every index, address and length is checked before it is used.
//!
//! `virtio-queue` reads the rings; what it gives is a chain that *ends* where something is wrong. Here that is an error.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Guest RAM as rings see it.
pub type Memory = GuestMemoryMmap<()>;

/// The most buffers of a chain, as in QEMU: a driver may use indirect tables that are longer than its queue.
const MOST_BUFFERS: usize = 1024;

/// The driver has broken the rules of a ring. The device asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Addresses or size of the ring itself.
    #[error("Queue {queue} is not in guest memory, not aligned or of no valid size")]
    Layout {
        /// The queue's number.
        queue: u16,
    },
    /// An index moved by more than there are entries.
    #[error("The available index of queue {queue} jumps over more entries than there are")]
    Index {
        /// The queue's number.
        queue: u16,
    },
    /// A chain that loops, leads out of its table, or nests tables.
    #[error("The descriptor chain at {head} of queue {queue} has no end")]
    Chain {
        /// The queue's number.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer that is not guest RAM.
    #[error("A buffer of the descriptor chain at {head} of queue {queue} is not in guest memory")]
    Buffer {
        /// The queue's number.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer for reading after one for writing (2.7.4.2).
    #[error("The descriptor chain at {head} of queue {queue} has a readable buffer after a writable one")]
    Order {
        /// The queue's number.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// What a device asks of its requests, not of rings in general.
    #[error("The request at {head} of queue {queue} is malformed: {what}")]
    Request {
        /// The queue's number.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
        /// What is wrong.
        what: &'static str,
    },
}

/// A part of guest RAM: contiguous in this process too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First guest address.
    pub address: GuestAddress,
    /// Length in bytes; at least 1.
    pub length: u32,
}

impl Buffer {
    /// Its memory.
    pub fn slice<'a>(&self, memory: &'a Memory) -> Option<VolatileSlice<'a, ()>> {
        memory.get_slice(self.address, usize::try_from(self.length).ok()?).ok()
    }
}

/// One request: what the device may read, and what it may write. All of it is in guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names it in [`Ring::complete`].
    pub head: u16,
    /// The queue's number.
    pub queue: u16,
    buffers: Vec<Buffer>,
    readable: usize,
}

impl Chain {
    /// What the device may read, in order.
    pub fn readable(&self) -> &[Buffer] {
        self.buffers.get(..self.readable).unwrap_or_default()
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Buffer] {
        self.buffers.get(self.readable..).unwrap_or_default()
    }

    /// Bytes that the device may read.
    pub fn readable_length(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes that the device may write.
    pub fn writable_length(&self) -> u64 {
        total(self.writable())
    }

    /// Copies what is readable from `offset` on; the answer is how much there was.
    pub fn read(&self, memory: &Memory, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for part in parts(self.readable(), offset) {
            let left = data.get_mut(done..).unwrap_or_default();
            let length = left.len().min(usize::try_from(part.length).unwrap_or(usize::MAX));
            let Some(target) = left.get_mut(..length).filter(|target| !target.is_empty()) else { break };
            if memory.read_slice(target, part.address).is_err() {
                break;
            }
            done += length;
        }
        done
    }

    /// Copies to what is writable from `offset` on; the answer is how much room there was.
    pub fn write(&self, memory: &Memory, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for part in parts(self.writable(), offset) {
            let left = data.get(done..).unwrap_or_default();
            let length = left.len().min(usize::try_from(part.length).unwrap_or(usize::MAX));
            let Some(source) = left.get(..length).filter(|source| !source.is_empty()) else { break };
            if memory.write_slice(source, part.address).is_err() {
                break;
            }
            done += length;
        }
        done
    }

    /// What the device may read from `offset` on.
    pub fn readable_from(&self, offset: u64) -> impl Iterator<Item = Buffer> {
        parts(self.readable(), offset)
    }

    /// What the device may write from `offset` on.
    pub fn writable_from(&self, offset: u64) -> impl Iterator<Item = Buffer> {
        parts(self.writable(), offset)
    }

    /// For a device that finds the request malformed.
    pub fn malformed(&self, what: &'static str) -> Broken {
        Broken::Request { queue: self.queue, head: self.head, what }
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

/// The buffers from `offset` bytes on.
fn parts(buffers: &[Buffer], offset: u64) -> impl Iterator<Item = Buffer> {
    let mut skip = offset;
    buffers.iter().filter_map(move |buffer| {
        let skipped = u32::try_from(skip).unwrap_or(u32::MAX).min(buffer.length);
        skip -= u64::from(skipped);
        let address = buffer.address.checked_add(skipped.into())?;
        let length = buffer.length - skipped;
        (length > 0).then_some(Buffer { address, length })
    })
}

/// Where a ring is: what vhost is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RingLayout {
    /// Entries: a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring (driver area).
    pub available: u64,
    /// Guest address of the used ring (device area).
    pub used: u64,
}

/// One virtqueue in use.
pub struct Ring {
    index: u16,
    layout: RingLayout,
    queue: Queue,
    /// Something was, since the driver was last told.
    completed: bool,
}

impl Ring {
    /// The queue of number `index`, from its first entry on.
    ///
    /// # Errors
    /// [`Broken::Layout`] for one that is not wholly in guest RAM.
    pub fn new(index: u16, layout: RingLayout, event_idx: bool, memory: &Memory) -> Result<Self, Broken> {
        let refused = Broken::Layout { queue: index };
        let mut queue = Queue::new(layout.size).map_err(|_| refused)?;
        queue
            .try_set_size(layout.size)
            .and_then(|()| queue.try_set_desc_table_address(GuestAddress(layout.descriptors)))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(layout.available)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(layout.used)))
            .map_err(|_| refused)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // Checked here too, as the crate's own check adds lengths to addresses that a driver chose.
        let size = u64::from(layout.size);
        let areas =
            [(layout.descriptors, 16 * size), (layout.available, 6 + 2 * size), (layout.used, 6 + 8 * size)];
        let inside = |(address, length): (u64, u64)| {
            usize::try_from(length)
                .is_ok_and(|length| memory.get_slice(GuestAddress(address), length).is_ok())
        };
        // An available ring at address 0 is not known to the crate as one.
        let valid = areas.into_iter().all(inside) && layout.available != 0 && queue.is_valid(memory);
        valid.then_some(Self { index, layout, queue, completed: false }).ok_or(refused)
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it is.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// The driver has broken a rule: nothing more is to be taken from this ring.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, Broken> {
        let queue = self.index;
        let mut available = self.queue.iter(memory).map_err(|_| Broken::Index { queue })?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        let head = descriptors.head_index();
        let mut chain = Chain { head, queue, buffers: Vec::with_capacity(4), readable: 0 };
        // No descriptor at all is an end that is missing, too.
        let mut goes_on = true;
        for descriptor in descriptors {
            goes_on = descriptor.has_next();
            let buffer = Buffer { address: descriptor.addr(), length: descriptor.len() };
            let writable = chain.buffers.len() > chain.readable;
            if writable && !descriptor.is_write_only() {
                return Err(Broken::Order { queue, head });
            }
            if chain.buffers.len() >= MOST_BUFFERS {
                return Err(Broken::Chain { queue, head });
            }
            if buffer.length == 0 {
                continue;
            }
            buffer.slice(memory).ok_or(Broken::Buffer { queue, head })?;
            chain.buffers.push(buffer);
            if !descriptor.is_write_only() {
                chain.readable += 1;
            }
        }
        if goes_on { Err(Broken::Chain { queue, head }) } else { Ok(Some(chain)) }
    }

    /// Gives the request that was popped last back to the ring: it comes again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands a request back, with `written` bytes written to it.
    pub fn complete(&mut self, memory: &Memory, head: u16, written: u32) -> Result<(), Broken> {
        self.completed = true;
        self.queue.add_used(memory, head, written).map_err(|_| Broken::Index { queue: self.index })
    }

    /// Whether the driver wants to be told of what was completed since the last time this was asked. Where nothing was, it does
    /// not: one that takes an interrupt for an answer would look too early.
    pub fn needs_interrupt(&mut self, memory: &Memory) -> Result<bool, Broken> {
        if !std::mem::take(&mut self.completed) {
            return Ok(false);
        }
        self.queue.needs_notification(memory).map_err(|_| Broken::Index { queue: self.index })
    }

    /// The driver need not ring.
    pub fn disable_kicks(&mut self, memory: &Memory) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|_| Broken::Index { queue: self.index })
    }

    /// The driver is to ring from now on; true if something came in the meantime, which then is to be taken first.
    pub fn enable_kicks(&mut self, memory: &Memory) -> Result<bool, Broken> {
        self.queue.enable_notification(memory).map_err(|_| Broken::Index { queue: self.index })
    }
}

#[cfg(test)]
mod tests;
