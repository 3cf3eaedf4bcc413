//! What the devices that the kernel serves share (linux/vhost.h): guest memory and rings told to it, and what it signals.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use ::vhost::vhost_kern::VhostKernBackend;
use ::vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::{ActiveQueue, Memory, QueueInterrupt};
use crate::memory::{GuestRam, MemoryListener, RamRegion};
use crate::vm::Signal;

pub(super) fn failed(error: ::vhost::Error) -> io::Error {
    match error {
        ::vhost::Error::IoctlError(source) => source,
        error => io::Error::other(error.to_string()),
    }
}

/// Descriptor and memory together, as the crate wants them for a call.
pub(super) struct Calls {
    fd: Arc<File>,
    memory: Arc<Memory>,
}

impl Calls {
    /// For calls that are not about guest memory.
    pub(super) fn new(fd: &Arc<File>) -> Self {
        Self { fd: Arc::clone(fd), memory: Arc::default() }
    }

    /// For those that are.
    pub(super) fn of(fd: &Arc<File>, ram: &GuestRam) -> Self {
        Self { fd: Arc::clone(fd), memory: Arc::new(ram.memory().clone()) }
    }
}

impl AsRawFd for Calls {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for Calls {
    type AS = Arc<Memory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

/// The memory tables of one card's vhosts: a listener of guest RAM, so that they never differ from it.
#[derive(Default)]
pub(super) struct Tables(Mutex<TableState>);

#[derive(Default)]
struct TableState {
    listening: bool,
    regions: Vec<VhostUserMemoryRegionInfo>,
    /// Who has the table now.
    live: Vec<Arc<File>>,
}

impl Tables {
    /// Hears of guest RAM from now on.
    pub(super) fn follow(self: &Arc<Self>, ram: &GuestRam) -> io::Result<()> {
        let known = std::mem::replace(&mut self.lock().listening, true);
        if known { Ok(()) } else { ram.listen(Arc::clone(self) as _).map_err(io::Error::other) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TableState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the table to one more.
    pub(super) fn give(&self, fd: &Arc<File>) -> io::Result<()> {
        let mut state = self.lock();
        set_table(fd, &state.regions)?;
        state.live.push(Arc::clone(fd));
        Ok(())
    }

    /// It needs no table any more.
    pub(super) fn take(&self, fd: &Arc<File>) {
        self.lock().live.retain(|live| !Arc::ptr_eq(live, fd));
    }
}

fn set_table(fd: &Arc<File>, regions: &[VhostUserMemoryRegionInfo]) -> io::Result<()> {
    // The table is told by addresses of this process; guest memory itself is not asked for.
    let calls = Calls::new(fd);
    calls.set_mem_table(regions).map(|_| ()).map_err(failed)
}

impl MemoryListener for Tables {
    fn added(&self, region: RamRegion<'_>) -> Result<(), String> {
        let mut state = self.lock();
        state.regions.push(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest_address,
            memory_size: region.size,
            userspace_addr: region.host_address.addr() as u64,
            mmap_offset: region.file_offset,
            mmap_handle: region.file.as_raw_fd(),
        });
        let result = state.live.iter().try_for_each(|fd| set_table(fd, &state.regions));
        result.map_err(|error| format!("Telling vhost of guest memory: {error}"))
    }

    fn removed(&self, region: RamRegion<'_>) -> Result<(), String> {
        let mut state = self.lock();
        state.regions.retain(|known| known.guest_phys_addr != region.guest_address);
        let result = state.live.iter().try_for_each(|fd| set_table(fd, &state.regions));
        result.map_err(|error| format!("Taking guest memory from vhost: {error}"))
    }
}

/// Tells the kernel of one ring: where it is, and what signals it.
pub(super) fn set_ring(
    calls: &Calls,
    ring: usize,
    queue: &ActiveQueue,
    call: &Signal,
    error: &Signal,
) -> io::Result<()> {
    let layout = queue.ring.layout();
    let config = VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: 0,
        desc_table_addr: layout.descriptors,
        used_ring_addr: layout.used,
        avail_ring_addr: layout.available,
        log_addr: None,
    };
    calls
        .set_vring_num(ring, layout.size)
        .and_then(|()| calls.set_vring_base(ring, 0))
        .and_then(|()| calls.set_vring_addr(ring, &config))
        .and_then(|()| calls.set_vring_call(ring, call.eventfd()))
        .and_then(|()| calls.set_vring_err(ring, error.eventfd()))
        .and_then(|()| calls.set_vring_kick(ring, queue.kick.eventfd()))
        .map_err(failed)
}

/// What the kernel signals of rings and a thread of ours must look after: errors, and calls where the guest uses the pin.
#[derive(Default)]
pub(super) struct Signals {
    errors: Vec<Arc<Signal>>,
    relays: Vec<(Arc<Signal>, QueueInterrupt)>,
}

impl Signals {
    /// What vhost is to signal for a ring: that something is used, and that the ring is broken.
    pub(super) fn of_ring(&mut self, queue: &ActiveQueue) -> io::Result<(Arc<Signal>, Arc<Signal>)> {
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

    /// To be waited for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.errors.iter().chain(self.relays.iter().map(|(signal, _)| signal)).map(|signal| signal.fd())
    }

    /// Relays calls. True, once, when the kernel has found a ring or a buffer in it malformed.
    pub(super) fn take(&mut self) -> bool {
        for (signal, interrupt) in &self.relays {
            if signal.take() {
                interrupt.signal();
            }
        }
        let broken = self.errors.iter().any(|signal| signal.take());
        if broken {
            self.errors.clear();
        }
        broken
    }
}
