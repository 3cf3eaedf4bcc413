//! Guest RAM for devices: every region of it is mapped into the IOMMU, at I/O addresses equal to guest addresses.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vfio::{DmaSource, IoAddressSpace};

use super::Error;
use crate::memory::{GuestRam, MemoryListener, RamRegion};

/// Mapped at once. Small enough to tell how far it is, and a whole number of the largest pages.
const CHUNK: u64 = 1 << 30;
/// Pinning that takes longer is talked about.
const PATIENCE: Duration = Duration::from_secs(2);
/// CAP_IPC_LOCK: the limit of locked memory does not count.
const CAP_IPC_LOCK: u32 = 14;

/// Maps all guest RAM, now and as it changes, into each of `spaces` (each address space once). To be called before the
/// functions behind them can master the bus.
///
/// # Errors
/// [`Error::Iova`] where the IOMMU takes no addresses, [`vfio::Error::Memlock`] if this process may not lock as much,
/// both before anything is mapped; else what mapping itself said.
pub fn map_guest_ram(ram: &GuestRam, spaces: &[Arc<dyn IoAddressSpace>]) -> Result<Vec<DmaMap>, Error> {
    if spaces.is_empty() {
        return Ok(Vec::new());
    }
    for space in spaces {
        let valid = space.iova_ranges();
        ram.regions().try_for_each(|region| check_range(region.guest_address, region.size, &valid))?;
    }
    // Each address space pins and counts for itself.
    let copies = spaces.iter().filter(|space| space.pins()).count();
    if copies > 0 {
        allow_locking(ram.size().saturating_mul(u64::try_from(copies).unwrap_or(u64::MAX)))?;
        tracing::debug!("Pinning {} MiB of guest memory for {copies} I/O address spaces", ram.size() >> 20);
    }
    let mut maps = Vec::<DmaMap>::with_capacity(spaces.len());
    for space in spaces {
        let listener = Arc::new(DmaListener::new(Arc::clone(space)));
        if let Err(error) = ram.listen(Arc::clone(&listener) as _) {
            maps.into_iter().for_each(|map| map.end(ram));
            return Err(error.into());
        }
        maps.push(DmaMap { space: Arc::clone(space), listener });
    }
    Ok(maps)
}

/// Guest RAM as it is mapped into one I/O address space. It stays so when this is dropped: until [`end`](Self::end), or as
/// long as guest RAM is there.
pub struct DmaMap {
    space: Arc<dyn IoAddressSpace>,
    listener: Arc<DmaListener>,
}

impl DmaMap {
    /// Of which address space.
    pub fn space(&self) -> &Arc<dyn IoAddressSpace> {
        &self.space
    }

    /// How much guest RAM it pins, in bytes.
    pub fn pinned(&self) -> u64 {
        let mapped = self.listener.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if self.space.pins() { mapped.iter().map(|(_, size)| size).sum() } else { 0 }
    }

    /// Takes guest RAM out of the address space again.
    pub fn end(self, ram: &GuestRam) {
        let listener: Arc<dyn MemoryListener> = self.listener;
        if let Err(error) = ram.ignore(&listener) {
            tracing::warn!("Taking guest memory back from devices: {error}");
        }
    }
}

impl fmt::Debug for DmaMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaMap").finish_non_exhaustive()
    }
}

/// A listener of guest RAM that maps it for DMA.
struct DmaListener {
    space: Arc<dyn IoAddressSpace>,
    /// Start and length of what is mapped: taken back exactly so.
    mapped: Mutex<Vec<(u64, u64)>>,
}

impl DmaListener {
    fn new(space: Arc<dyn IoAddressSpace>) -> Self {
        Self { space, mapped: Mutex::default() }
    }

    fn unmap(&self, start: u64, size: u64) -> Result<(), String> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let end = start.saturating_add(size);
        let (gone, kept): (Vec<_>, Vec<_>) =
            mapped.iter().copied().partition(|(at, _)| (start..end).contains(at));
        *mapped = kept;
        // All of them, even where one fails.
        let results: Vec<_> = gone.into_iter().map(|(at, length)| self.space.unmap(at, length)).collect();
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.to_string())
    }
}

impl MemoryListener for DmaListener {
    fn added(&self, region: RamRegion<'_>) -> Result<(), String> {
        let valid = self.space.iova_ranges();
        check_range(region.guest_address, region.size, &valid).map_err(|error| error.to_string())?;
        let mut progress = Progress::new();
        let mut done = 0;
        while done < region.size {
            // Chunks end where guest addresses are multiples of it, so that large pages stay whole.
            let at = region.guest_address + done;
            let size = (CHUNK - at % CHUNK).min(region.size - done);
            let Ok(distance) = usize::try_from(done) else { break };
            let source = DmaSource {
                host_address: region.host_address.wrapping_add(distance),
                file: Some((region.file.as_fd(), region.file_offset + done)),
            };
            // SAFETY: `GuestRam` keeps the region mapped until `removed` has returned, or until its listeners, and with
            // them this, are dropped; both unmap it.
            if let Err(error) = unsafe { self.space.map(at, size, source) } {
                self.unmap(region.guest_address, done).unwrap_or_else(|error| tracing::warn!("{error}"));
                return Err(error.to_string());
            }
            self.mapped.lock().unwrap_or_else(PoisonError::into_inner).push((at, size));
            done += size;
            progress.tell(done, region.size);
        }
        Ok(())
    }

    fn removed(&self, region: RamRegion<'_>) -> Result<(), String> {
        self.unmap(region.guest_address, region.size)
    }
}

impl Drop for DmaListener {
    fn drop(&mut self) {
        if let Err(error) = self.unmap(0, u64::MAX) {
            tracing::debug!("Taking guest memory back from a device: {error}");
        }
    }
}

struct Progress {
    told: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { told: Instant::now() }
    }

    fn tell(&mut self, done: u64, all: u64) {
        if self.told.elapsed() >= PATIENCE {
            self.told = Instant::now();
            tracing::info!("Pinning guest memory for devices: {} of {} MiB", done >> 20, all >> 20);
        }
    }
}

/// All of `size` bytes at `start` must lie in one of `valid`.
fn check_range(start: u64, size: u64, valid: &[RangeInclusive<u64>]) -> Result<(), Error> {
    let end = start.saturating_add(size).saturating_sub(1);
    if valid.iter().any(|range| range.contains(&start) && range.contains(&end)) {
        return Ok(());
    }
    let valid: Vec<_> =
        valid.iter().map(|range| format!("{:#x}-{:#x}", range.start(), range.end())).collect();
    let valid = if valid.is_empty() { "nothing".into() } else { valid.join(", ") };
    Err(Error::Iova { start, end, valid })
}

/// Sees to it that `more` bytes may be locked beside what is locked already: raises RLIMIT_MEMLOCK where that is allowed.
fn allow_locking(more: u64) -> Result<(), Error> {
    let status = crate::own::status();
    if may_lock_all(&status) {
        return Ok(());
    }
    let needed = already_locked(&status).saturating_add(more);
    let limit = getrlimit(Resource::Memlock);
    // `None` is unlimited.
    let Some(current) = limit.current.filter(|current| *current < needed) else { return Ok(()) };
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum.map(|maximum| maximum.max(needed)) };
    match setrlimit(Resource::Memlock, raised) {
        Ok(()) => {
            tracing::debug!("Raised the locked-memory limit from {current} to {needed} bytes");
            Ok(())
        }
        Err(_) => Err(vfio::Error::Memlock {
            function: "Guest memory".into(),
            needed,
            limit: limit.maximum.unwrap_or(current),
        }
        .into()),
    }
}

fn may_lock_all(status: &str) -> bool {
    let effective = field(status, "CapEff:").and_then(|value| u64::from_str_radix(value, 16).ok());
    effective.is_some_and(|effective| effective >> CAP_IPC_LOCK & 1 == 1)
}

/// Bytes this process has locked (`VmLck`) and pinned (`VmPin`): type1 counts against the one, iommufd against the other.
fn already_locked(status: &str) -> u64 {
    let kib = |name| field(status, name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    kib("VmLck:").max(kib("VmPin:")).saturating_mul(1024)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nVmLck:\t    64 kB\nVmPin:\t     8 kB\nCapEff:\t0000000000004000\n";

    #[test]
    fn what_is_locked_is_counted_once() {
        assert_eq!(already_locked(STATUS), 64 << 10);
        assert_eq!(already_locked(""), 0);
    }

    #[test]
    fn the_capability_to_lock_is_one_bit() {
        assert!(may_lock_all(STATUS));
        assert!(!may_lock_all(&STATUS.replace("4000", "b000")));
        assert!(!may_lock_all("CapEff:\tgarbage"));
    }

    #[test]
    fn a_region_must_lie_in_one_range() {
        let valid = [0..=0xfff, 0x2000..=0x2fff];
        assert!(check_range(0x2000, 0x1000, &valid).is_ok());
        for (start, size) in [(0x800, 0x1000), (0x800, 0x2000), (u64::MAX, 2)] {
            assert!(check_range(start, size, &valid).is_err());
        }
        assert!(check_range(0, 1, &[]).unwrap_err().to_string().contains("maps only nothing"));
    }
}
