//! vhost-net: the kernel walks a pair of rings (linux/vhost.h). Each pair has a descriptor of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use ::vhost::vhost_kern::VhostKernBackend;
use ::vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::tap::Tap;
use crate::memory::{GuestRam, MemoryListener, RamRegion};
use crate::virtio::{ActiveQueue, Memory};
use crate::vm::Signal;

/// `struct vhost_vring_file`.
#[repr(C)]
struct RingFile {
    index: u32,
    fd: i32,
}

ioctl_iow_nr!(VHOST_NET_SET_BACKEND, 0xaf, 0x30, RingFile);

pub(in crate::virtio) fn failed(error: ::vhost::Error) -> io::Error {
    match error {
        ::vhost::Error::IoctlError(source) => source,
        error => io::Error::other(error.to_string()),
    }
}

/// Descriptor and memory together, as the crate wants them for a call.
pub(in crate::virtio) struct Calls {
    fd: Arc<File>,
    memory: Arc<Memory>,
}

impl Calls {
    /// For calls that are not about guest memory.
    pub(in crate::virtio) fn new(fd: &Arc<File>) -> Self {
        Self { fd: Arc::clone(fd), memory: Arc::default() }
    }

    /// For those that are.
    pub(in crate::virtio) fn of(fd: &Arc<File>, ram: &GuestRam) -> Self {
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
pub(in crate::virtio) struct Tables(Mutex<TableState>);

#[derive(Default)]
struct TableState {
    listening: bool,
    regions: Vec<VhostUserMemoryRegionInfo>,
    /// Who has the table now.
    live: Vec<Arc<File>>,
}

impl Tables {
    /// Hears of guest RAM from now on.
    pub(in crate::virtio) fn follow(self: &Arc<Self>, ram: &GuestRam) -> io::Result<()> {
        let known = std::mem::replace(&mut self.lock().listening, true);
        if known { Ok(()) } else { ram.listen(Arc::clone(self) as _).map_err(io::Error::other) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TableState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the table to one more.
    pub(in crate::virtio) fn give(&self, fd: &Arc<File>) -> io::Result<()> {
        let mut state = self.lock();
        set_table(fd, &state.regions)?;
        state.live.push(Arc::clone(fd));
        Ok(())
    }

    /// It needs no table any more.
    pub(in crate::virtio) fn take(&self, fd: &Arc<File>) {
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

/// One pair of queues in the kernel.
pub(super) struct VhostNet {
    fd: Arc<File>,
    features: u64,
    owned: bool,
    running: Option<Calls>,
}

impl VhostNet {
    /// `fd` is of /dev/vhost-net.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(File::from(fd));
        let calls = Calls::new(&fd);
        let features = calls.get_features().map_err(failed)?;
        Ok(Self { fd, features, owned: false, running: None })
    }

    /// What it can.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Before its rings: features and memory.
    pub(super) fn begin(&mut self, tables: &Tables, features: u64, ram: &GuestRam) -> io::Result<()> {
        let calls = Calls::of(&self.fd, ram);
        if !self.owned {
            calls.set_owner().map_err(failed)?;
            self.owned = true;
        }
        calls.set_features(features & self.features).map_err(failed)?;
        self.running = Some(calls);
        tables.give(&self.fd)
    }

    /// Ring 0 receives, ring 1 sends. The driver's kicks go to the kernel, and the kernel's calls to the guest.
    pub(super) fn ring(
        &self,
        ring: usize,
        queue: &ActiveQueue,
        call: &Signal,
        error: &Signal,
    ) -> io::Result<()> {
        let Some(calls) = &self.running else { return Ok(()) };
        set_ring(calls, ring, queue, call, error)
    }

    /// Both rings begin with the tap as their other end, or end.
    pub(super) fn connect(&self, tap: Option<&Tap>) -> io::Result<()> {
        for index in 0..2 {
            let file = RingFile { index, fd: tap.map_or(-1, |tap| tap.as_fd().as_raw_fd()) };
            // SAFETY: the descriptor is vhost-net's, and the kernel reads one `vhost_vring_file`.
            if unsafe { ioctl_with_ref(&*self.fd, VHOST_NET_SET_BACKEND(), &file) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// When this returns the kernel touches neither ring until [`go_on`](Self::go_on); it remembers where it was in both.
    pub(super) fn pause(&self) -> io::Result<()> {
        if self.running.is_some() { self.connect(None) } else { Ok(()) }
    }

    /// After a pause.
    pub(super) fn go_on(&self, tap: &Tap) -> io::Result<()> {
        if self.running.is_some() { self.connect(Some(tap)) } else { Ok(()) }
    }

    /// When this returns the kernel touches neither ring any more.
    pub(super) fn end(&mut self, tables: &Tables) {
        if self.running.take().is_some() {
            if let Err(error) = self.connect(None) {
                tracing::warn!("Stopping vhost-net: {error}");
            }
            tables.take(&self.fd);
        }
    }
}

/// Tells the kernel of one ring: where it is, and what signals it.
pub(in crate::virtio) fn set_ring(
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
