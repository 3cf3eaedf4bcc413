//! What a virtio device is to its transport.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::interrupts::Interrupts;
use super::scsi::Medium;
use super::{QueueInterrupt, Ring, Worker};
use crate::memory::GuestRam;
use crate::vm::vector::Signal;

/// Feature bits that are not one device's own (virtio 1.2, 6).
pub mod feature {
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says from where on it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not the interface from before virtio 1.0. Always offered, and refused without.
    pub const VERSION_1: u64 = 1 << 32;
    /// What the transport and [`Ring`](crate::virtio::Ring) do for every device.
    pub const OF_RINGS: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Which kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A network card.
    Net,
    /// A disk.
    Block,
    /// A console.
    Console,
    /// A source of entropy.
    Entropy,
    /// A SCSI host.
    Scsi,
    /// A socket to the host.
    Socket,
}

impl Class {
    /// The virtio device ID (virtio 1.2, 5).
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Scsi => 8,
            Self::Socket => 19,
        }
    }

    /// The PCI class code: base class, sub-class, programming interface.
    pub(super) fn pci_class(self) -> u32 {
        match self {
            Self::Net => 0x02_0000,
            Self::Block | Self::Scsi => 0x01_0000,
            Self::Console => 0x07_8000,
            Self::Entropy => 0x00_ff00,
            Self::Socket => 0x02_8000,
        }
    }
}

/// A queue that the driver has enabled.
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The ring, checked: all of it is in guest RAM.
    pub ring: Ring,
    /// Readable when the driver has rung. Raised once at the start: what is in the ring already needs no other ring.
    pub kick: Arc<Signal>,
    /// Tells the driver.
    pub interrupt: QueueInterrupt,
}

/// What a device has from DRIVER_OK until its reset.
pub struct Activation {
    /// Guest RAM. Let go of it at the reset.
    pub memory: Arc<GuestRam>,
    /// What was negotiated: offered and taken.
    pub features: u64,
    /// The queues that the driver has enabled, ascending; not all that there are.
    pub queues: Vec<ActiveQueue>,
    /// For what concerns the device as a whole.
    pub interrupts: Arc<Interrupts>,
}

impl Activation {
    /// Takes the queue of this number out, if the driver has enabled it.
    pub fn take_queue(&mut self, index: u16) -> Option<ActiveQueue> {
        let at = self.queues.iter().position(|queue| queue.index == index)?;
        Some(self.queues.swap_remove(at))
    }
}

/// The device cannot run as the driver has set it up, or the host cannot run it. The driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not enable a queue that the device cannot be without.
    #[error("The driver has not enabled queue {0}")]
    Queue(u16),
    /// A call on the host failed.
    #[error("{doing}: {source}")]
    Host {
        /// What was being done.
        doing: String,
        /// The errno.
        source: io::Error,
    },
}

impl ActivateError {
    /// For `map_err`.
    pub fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing: doing.into(), source }
    }
}

/// What came of changing a drive's medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumChange {
    /// It is changed.
    Done,
    /// The guest has locked the drive, and is asked to let go.
    Locked,
    /// The device has none that could be changed.
    NoDrive,
}

/// What a device hears of the host, whether a driver is there or not: on the machine's thread, without the transport's lock.
pub trait Hears: Send + Sync {
    /// Readable when there is something to hear.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// It was found readable. Where it still is afterwards, this is called again.
    fn heard(&self);
}

/// A virtio device behind any transport.
///
/// The transport calls it with a lock held, from any vCPU, one call at a time. It never calls its transport back: it
/// answers, or says something by the [`Interrupts`] it was activated with.
///
/// Order of calls: (`activate`, `reset`)*. `reset` comes after the workers that `activate` gave have ended.
pub trait VirtioDevice: Send {
    /// What it is.
    fn class(&self) -> Class;

    /// Its feature bits, with those of [`feature::OF_RINGS`] that it wants; VERSION_1 is added by the transport.
    fn features(&self) -> u64;

    /// The most entries of each queue: powers of two, up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the device-specific configuration at `offset`. `data` arrives as zeroes: leave what is behind the end.
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The driver writes to the device-specific configuration.
    fn write_config(&mut self, offset: u16, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready. The answer is what serves it; the transport ends it at the reset.
    ///
    /// # Errors
    /// Then nothing runs, and the driver is told that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError>;

    /// Back to what it was before the driver came.
    fn reset(&mut self);

    /// A line for the log and for the statistics: what serves it, and what it has counted. `vhost-net in use`.
    fn report(&self) -> Option<String> {
        None
    }

    /// Whether the kernel serves its queues (vhost), and raises their interrupts.
    fn in_kernel(&self) -> bool {
        false
    }

    /// What it has counted, by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Whether its cable is plugged in; none for what has no cable.
    fn link(&self) -> Option<bool> {
        None
    }

    /// Plugs its cable in or pulls it; false for what has none.
    fn set_link(&mut self, up: bool) -> bool {
        let _ = up;
        false
    }

    /// What it hears of the host.
    fn hears(&self) -> Option<Arc<dyn Hears>> {
        None
    }

    /// Puts a medium into its drive, or takes the one there out; by `force` also where the guest has locked the drive.
    fn change_medium(&mut self, medium: Option<Medium>, force: bool) -> MediumChange {
        let _ = (medium, force);
        MediumChange::NoDrive
    }

    /// The machine pauses, and its workers rest: whoever else serves it (the kernel) is to touch nothing of the guest's.
    ///
    /// # Errors
    /// The host does not let it. It goes on as before.
    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// After [`pause`](Self::pause), also one that failed.
    ///
    /// # Errors
    /// The host does not let it.
    fn go_on(&mut self) -> io::Result<()> {
        Ok(())
    }
}
