//! The block device (virtio 1.2, 5.2): a disk image on the host.
//!
//! Each queue has a thread of its own, with an io_uring where the disk is one raw file and the host has it. What the driver was told is written is in the host's hands; what it was told is
//! flushed is durable. Without VIRTIO_BLK_F_FLUSH every write is.
//!
//! A host without space is no error of the guest's: the request is held, and tried again until there is space.

mod flight;
mod request;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::{ActivateError, Activation, Class, VirtioDevice, Worker, feature};
use crate::disk::DiskImage;

/// The unit of addresses and lengths, whatever the block size (5.2.3).
pub(super) const SECTOR: u64 = 512;
/// Length of what GET_ID answers (5.2.6).
pub(super) const ID_LENGTH: usize = 20;
/// The most ranges of one DISCARD or WRITE_ZEROES.
pub(super) const MOST_RANGES: u32 = 32;
/// The most sectors of one such range: 1 GiB.
pub(super) const MOST_RANGE_SECTORS: u32 = 1 << 21;

const QUEUE_SIZE: u16 = 256;
const MOST_QUEUES: u16 = 16;
/// What is left of a queue for the buffers of one request, without its header and its status.
const SEG_MAX: u32 = 126;
/// Of one buffer; a request is at most [`request::MOST_BYTES`].
const SIZE_MAX: u32 = 256 << 10;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// What a disk is to its guest.
pub struct BlockSpec {
    /// The disk.
    pub image: Box<dyn DiskImage>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// What the guest finds as its serial number; at most 20 bytes count.
    pub serial: String,
    /// Where it is on the host, for messages.
    pub path: String,
    /// Queues, each with a thread: 1 to 16.
    pub queues: u16,
}

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    queues: u16,
}

/// What all threads share.
pub(super) struct Disk {
    pub(super) image: Box<dyn DiskImage>,
    pub(super) read_only: bool,
    pub(super) serial: [u8; ID_LENGTH],
    pub(super) path: String,
    /// How it is served, since a driver was there.
    pub(super) how: OnceLock<String>,
    /// The host could not make something durable: nothing later may be called durable any more.
    pub(super) lost: AtomicBool,
    /// Threads that wait for space on the host.
    pub(super) waiting: AtomicU64,
    pub(super) served: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Block {
    /// A disk of whole sectors: what is left of the image behind the last one is not seen.
    pub fn new(spec: BlockSpec) -> Self {
        let mut serial = [0; ID_LENGTH];
        for (to, from) in serial.iter_mut().zip(spec.serial.bytes()) {
            *to = from;
        }
        let disk = Disk {
            image: spec.image,
            read_only: spec.read_only,
            serial,
            path: spec.path,
            how: OnceLock::new(),
            lost: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        Self { disk: Arc::new(disk), queues: spec.queues.clamp(1, MOST_QUEUES) }
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in config.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &self.disk.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // Physical blocks of 8 sectors, and so is the least that ought to be written.
        put(24, &[3]);
        put(26, &8_u16.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        for at in [36, 48] {
            put(at, &MOST_RANGE_SECTORS.to_le_bytes());
        }
        for at in [40, 52] {
            put(at, &MOST_RANGES.to_le_bytes());
        }
        put(44, &8_u32.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl Disk {
    pub(super) fn sectors(&self) -> u64 {
        self.image.size() / SECTOR
    }
}

impl VirtioDevice for Block {
    fn class(&self) -> Class {
        Class::Block
    }

    fn features(&self) -> u64 {
        let mut features = feature::OF_RINGS | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        if self.queues > 1 {
            features |= F_MQ;
        }
        features | if self.disk.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let config = self.config();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let Activation { memory, features, queues, interrupts } = activation;
        if queues.is_empty() {
            return Err(ActivateError::Queue(0));
        }
        let write_through = features & F_FLUSH == 0;
        let mut workers = Vec::with_capacity(queues.len());
        for queue in queues {
            let server = serve::Server {
                disk: Arc::clone(&self.disk),
                memory: Arc::clone(&memory),
                interrupts: Arc::clone(&interrupts),
                write_through,
                features,
            };
            let name = format!("virtio-blk-{}", queue.index);
            let worker = Worker::spawn(&name, move |stop| server.run(&stop, queue));
            workers.push(worker.map_err(ActivateError::host("Starting the thread of a virtio-blk"))?);
        }
        Ok(workers)
    }

    fn reset(&mut self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Disk { served, failed, waiting, .. } = &*self.disk;
        vec![("requests", count(served)), ("failed", count(failed)), ("waiting-for-space", count(waiting))]
    }

    fn report(&self) -> Option<String> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waits = if count(&self.disk.waiting) > 0 { ", waits for space on the host" } else { "" };
        let (served, failed) = (count(&self.disk.served), count(&self.disk.failed));
        let how = self.disk.how.get().map(String::as_str).unwrap_or("no driver yet");
        Some(format!("{how}; {served} requests served, {failed} of them failed{waits}"))
    }
}
