//! A SCSI host (virtio 1.2, 5.6) with one CD drive at target 0: where installers that look for `/dev/sr0` or `/dev/cd0` find
//! their medium.
//!
//! One thread serves all queues. The medium is read only; a guest can eject it and load it again, and it can be changed from
//! outside.

mod answers;
mod drive;
mod request;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::drive::{Drive, Locked};
use super::{ActivateError, Activation, Class, MediumChange, VirtioDevice, Worker, feature};
use crate::disk::DiskImage;

/// Commands are looked at so far, whatever `cdb_size` the driver chooses.
pub(super) const CDB: usize = 32;
/// Until the driver writes others (5.6.4).
const SENSE_SIZE: u32 = 96;
const CDB_SIZE: u32 = 32;

/// Control, events, requests.
const QUEUES: usize = 3;
const QUEUE_SIZE: u16 = 128;
const SEG_MAX: u32 = 126;
/// Of one request, in units of 512 bytes.
const MAX_SECTORS: u32 = 0x8000;
const EVENT_SIZE: u32 = 16;
const PER_UNIT: u32 = 64;

/// Offsets of what a driver may write.
const AT_SENSE_SIZE: u16 = 20;
const AT_CDB_SIZE: u16 = 24;

/// What lies in a drive.
pub struct Medium {
    /// Its content.
    pub image: Box<dyn DiskImage>,
    /// Where that is, for people.
    pub path: String,
}

/// The device: a SCSI host and its one drive.
pub struct CdDrive {
    shared: Arc<Shared>,
    sizes: Sizes,
}

/// How long the parts of a request are (5.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) sense: u32,
    pub(super) cdb: u32,
}

/// What the thread and the device share.
struct Shared {
    drive: Drive,
    served: AtomicU64,
    failed: AtomicU64,
}

impl CdDrive {
    /// A drive with `medium` in it. Of `serial` at most 20 bytes count.
    pub fn new(medium: Medium, serial: &str) -> Self {
        let drive = Drive::new(medium, serial);
        let shared = Shared { drive, served: AtomicU64::new(0), failed: AtomicU64::new(0) };
        Self { shared: Arc::new(shared), sizes: Sizes { sense: SENSE_SIZE, cdb: CDB_SIZE } }
    }

    /// `struct virtio_scsi_config` (5.6.4).
    fn config(&self) -> [u8; 36] {
        let mut config = [0; 36];
        let words = [1, SEG_MAX, MAX_SECTORS, PER_UNIT, EVENT_SIZE, self.sizes.sense, self.sizes.cdb];
        // Behind them: no channel but 0, no target but 0, no unit but 0.
        for (to, from) in config.iter_mut().zip(words.into_iter().flat_map(u32::to_le_bytes)) {
            *to = from;
        }
        config
    }
}

impl VirtioDevice for CdDrive {
    fn class(&self) -> Class {
        Class::Scsi
    }

    fn features(&self) -> u64 {
        feature::OF_RINGS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let config = self.config();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        let Some(value) = data.first_chunk().copied().map(u32::from_le_bytes) else { return };
        match offset {
            AT_SENSE_SIZE => self.sizes.sense = value,
            AT_CDB_SIZE => self.sizes.cdb = value,
            _ => {}
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let (control, requests) = (activation.take_queue(0), activation.take_queue(2));
        let server = serve::Server {
            shared: Arc::clone(&self.shared),
            sizes: self.sizes,
            memory: activation.memory,
            interrupts: activation.interrupts,
        };
        let requests = requests.ok_or(ActivateError::Queue(2))?;
        let worker = Worker::spawn("virtio-scsi", move |stop| server.run(&stop, control, requests))
            .map_err(ActivateError::host("Starting the thread of a virtio-scsi"))?;
        Ok(vec![worker])
    }

    fn reset(&mut self) {
        self.sizes = Sizes { sense: SENSE_SIZE, cdb: CDB_SIZE };
        // The tray stays as it is: an installer ejects its medium so that the next start is from the disk.
        self.shared.drive.unlock();
    }

    fn report(&self) -> Option<String> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let inside = self.shared.drive.medium();
        let inside = inside.map_or_else(|| "ejected".to_owned(), |medium| medium.path.clone());
        let (served, failed) = (count(&self.shared.served), count(&self.shared.failed));
        Some(format!("{served} requests served, {failed} of them failed; in it: {inside}"))
    }

    fn change_medium(&mut self, medium: Option<Medium>, force: bool) -> MediumChange {
        match self.shared.drive.change(medium, force) {
            Ok(()) => MediumChange::Done,
            Err(Locked) => MediumChange::Locked,
        }
    }
}
