//! Guest RAM: one memfd (or hugetlbfs memfd), mapped once here, shown to KVM, IOMMUs and servers by listeners.

mod kvm_slots;
mod policy;
#[cfg(any(test, feature = "testing"))]
mod walled;

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollection,
};

pub use kvm_slots::KvmSlots;
#[cfg(any(test, feature = "testing"))]
pub use walled::walled;

use crate::layout;
use crate::spec::{MemoryPolicy, MemorySpec};
use crate::threads::{self, Kind};

/// Guest RAM cannot be had as asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is no multiple of the page size, or zero.
    #[error("Guest memory of {size} bytes is not a whole number of {page}-byte pages")]
    Size {
        /// What was asked for, in bytes.
        size: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// The host does not have it.
    #[error("Making {size} bytes of guest memory ({doing}): {source}")]
    Host {
        /// What was asked for, in bytes.
        size: u64,
        /// The step that failed.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// A listener refused a region.
    #[error("{0}")]
    Listener(String),
}

/// A contiguous part of guest RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion<'a> {
    /// First guest physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where it is mapped in this process, readable and writable, for as long as the `GuestRam` lives.
    pub host_address: *mut u8,
    /// The file that holds it.
    pub file: &'a File,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
}

/// Someone who must know of guest RAM before the guest or a device uses it: KVM's slots, an IOMMU's maps, vhost's tables.
pub trait MemoryListener: Send + Sync {
    /// A region is there; the host memory stays mapped until `removed` has returned or the listener is dropped.
    fn added(&self, region: RamRegion<'_>) -> Result<(), String>;

    /// A region goes away.
    fn removed(&self, region: RamRegion<'_>) -> Result<(), String>;
}

/// All of a guest's RAM.
///
/// Invariant: what listeners were told and what is mapped never diverge; both change only here.
pub struct GuestRam {
    // Before `memory`: listeners let go of it before it is unmapped.
    listeners: Mutex<Vec<Arc<dyn MemoryListener>>>,
    memory: GuestMemoryMmap<()>,
    size: u64,
}

impl GuestRam {
    /// Makes it: below [`layout::LOW_RAM_END`], and from 4 GiB what does not fit there.
    pub fn new(spec: &MemorySpec) -> Result<Self, Error> {
        Self::with_policy(spec, &MemoryPolicy::default())
    }

    /// The same, at a place of the host's that is not left to it.
    pub fn with_policy(spec: &MemorySpec, policy: &MemoryPolicy) -> Result<Self, Error> {
        let page = spec.hugepages.unwrap_or(4096);
        if spec.size == 0 || page == 0 || !spec.size.is_multiple_of(page) {
            return Err(Error::Size { size: spec.size, page });
        }
        let failed = |doing| move |source| Error::Host { size: spec.size, doing, source };
        let file = Arc::new(backing_file(spec).map_err(failed("memfd_create"))?);
        file.set_len(spec.size).map_err(failed("sizing the memory file"))?;
        let low = spec.size.min(layout::LOW_RAM_END);
        // Huge pages are promised to us when they are mapped, or refused: without the promise, the first touch of one
        // that is not there is a SIGBUS. Ordinary pages are no one's to promise.
        let reserve = if spec.hugepages.is_some() { 0 } else { libc::MAP_NORESERVE };
        let region = |offset, guest_address, size| region(&file, offset, guest_address, size, reserve);
        let mut regions = vec![region(0, 0, low).map_err(failed("mmap"))?];
        if spec.size > low {
            let high = region(low, layout::HIGH_RAM_START, spec.size - low).map_err(failed("mmap"))?;
            regions.push(high);
        }
        let memory = GuestRegionCollection::from_regions(regions)
            .map_err(|error| failed("laying out regions")(io::Error::other(error.to_string())))?;
        let ram = Self { memory, listeners: Mutex::default(), size: spec.size };
        if *policy != MemoryPolicy::default() {
            for region in ram.regions() {
                policy::apply(policy, &region).map_err(|(doing, source)| failed(doing)(source))?;
            }
        }
        if spec.prefault {
            ram.prefault().map_err(failed("touching all of it"))?;
        }
        Ok(ram)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// For reading and writing by guest physical address.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// The regions, ascending.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion<'_>> {
        self.memory.iter().filter_map(|region| {
            let offset = region.file_offset()?;
            Some(RamRegion {
                guest_address: region.start_addr().0,
                size: region.len(),
                host_address: region.as_ptr(),
                file: offset.file(),
                file_offset: offset.start(),
            })
        })
    }

    /// Tells `listener` of all regions now, and of each change from now on. Where it refuses one, it has been told that
    /// the ones before are gone again.
    pub fn listen(&self, listener: Arc<dyn MemoryListener>) -> Result<(), Error> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for (told, region) in self.regions().enumerate() {
            if let Err(why) = listener.added(region) {
                for region in self.regions().take(told) {
                    if let Err(error) = listener.removed(region) {
                        tracing::warn!("Taking back a memory region after a failure: {error}");
                    }
                }
                return Err(Error::Listener(why));
            }
        }
        listeners.push(listener);
        Ok(())
    }

    /// Tells `listener` that all regions are gone, and of nothing from now on. One that does not listen is told nothing.
    pub fn ignore(&self, listener: &Arc<dyn MemoryListener>) -> Result<(), Error> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = listeners.iter().position(|known| Arc::ptr_eq(known, listener)) else { return Ok(()) };
        listeners.remove(at);
        // All of them, even where one fails.
        let results: Vec<_> = self.regions().map(|region| listener.removed(region)).collect();
        results.into_iter().collect::<Result<(), _>>().map_err(Error::Listener)
    }

    /// Touches all pages, with one thread a processor: faulting in is bound by clearing pages.
    fn prefault(&self) -> io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(1));
        for region in self.regions() {
            let chunk = (region.size / threads).next_multiple_of(1 << 30).max(1 << 21);
            let jobs: Vec<_> = (0..region.size.div_ceil(chunk))
                .map(|i| (region.host_address.addr() as u64 + i * chunk, chunk.min(region.size - i * chunk)))
                .collect();
            std::thread::scope(|scope| {
                let handles: Vec<_> = jobs
                    .iter()
                    .map(|job| {
                        scope.spawn(|| {
                            threads::begins(Kind::Prefault);
                            populate(job.0, job.1)
                        })
                    })
                    .collect();
                handles.into_iter().try_for_each(|handle| {
                    handle.join().unwrap_or_else(|_| Err(io::Error::other("a prefault thread failed")))
                })
            })?;
        }
        Ok(())
    }
}

/// MADV_POPULATE_WRITE: an error, not a SIGBUS, where the host has too little.
fn populate(address: u64, size: u64) -> io::Result<()> {
    let length = usize::try_from(size).map_err(io::Error::other)?;
    let pointer = std::ptr::with_exposed_provenance_mut(usize::try_from(address).map_err(io::Error::other)?);
    // SAFETY: the range is a part of a mapping of guest RAM; populating it changes no content.
    match unsafe { libc::madvise(pointer, length, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn backing_file(spec: &MemorySpec) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC;
    if let Some(page) = spec.hugepages {
        flags |= libc::MFD_HUGETLB | page.trailing_zeros() << libc::MFD_HUGE_SHIFT;
    }
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create has just given us this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn region(
    file: &Arc<File>,
    offset: u64,
    guest_address: u64,
    size: u64,
    flags: libc::c_int,
) -> io::Result<GuestRegionMmap<()>> {
    let length = usize::try_from(size).map_err(io::Error::other)?;
    let mapped = MmapRegion::build(
        Some(FileOffset::from_arc(Arc::clone(file), offset)),
        length,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | flags,
    )
    .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapped, GuestAddress(guest_address))
        .ok_or_else(|| io::Error::other("The region leaves the address space"))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn spec(size: u64) -> MemorySpec {
        MemorySpec { size, hugepages: None, prefault: false }
    }

    #[derive(Default)]
    struct Listener {
        told: Mutex<Vec<(u64, u64, bool)>>,
        refuse_at: Option<u64>,
    }

    impl MemoryListener for Listener {
        fn added(&self, region: RamRegion<'_>) -> Result<(), String> {
            if self.refuse_at == Some(region.guest_address) {
                return Err("No".into());
            }
            self.told.lock().unwrap().push((region.guest_address, region.size, true));
            Ok(())
        }

        fn removed(&self, region: RamRegion<'_>) -> Result<(), String> {
            self.told.lock().unwrap().push((region.guest_address, region.size, false));
            Ok(())
        }
    }

    #[test]
    fn ram_goes_on_above_four_gib() {
        let ram = GuestRam::new(&spec(3 << 30)).unwrap();
        let regions: Vec<_> = ram.regions().map(|r| (r.guest_address, r.size, r.file_offset)).collect();
        assert_eq!(regions, [(0, 2 << 30, 0), (4 << 30, 1 << 30, 2 << 30)]);
        ram.memory().write_obj(7_u32, GuestAddress((5 << 30) - 4)).unwrap();
        assert!(ram.memory().write_obj(7_u32, GuestAddress(2 << 30)).is_err());
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [0, 4097] {
            assert!(matches!(GuestRam::new(&spec(size)), Err(Error::Size { .. })));
        }
    }

    #[test]
    fn huge_pages_that_are_not_there_are_refused_at_once() {
        // A TiB of them no host has set aside.
        let spec = MemorySpec { hugepages: Some(2 << 20), ..spec(1 << 40) };
        assert!(matches!(GuestRam::new(&spec), Err(Error::Host { .. })));
    }

    #[test]
    fn a_listener_that_refuses_ends_where_it_began() {
        let ram = GuestRam::new(&spec(3 << 30)).unwrap();
        let listener = Arc::new(Listener { refuse_at: Some(4 << 30), ..Default::default() });
        assert!(ram.listen(listener.clone()).is_err());
        assert_eq!(*listener.told.lock().unwrap(), [(0, 2 << 30, true), (0, 2 << 30, false)]);
    }

    #[test]
    fn a_listener_that_is_ignored_has_been_told_that_all_is_gone() {
        let ram = GuestRam::new(&spec(8 << 20)).unwrap();
        let (one, other) = (Arc::new(Listener::default()), Arc::new(Listener::default()));
        let listener: Arc<dyn MemoryListener> = Arc::clone(&one) as _;
        ram.listen(Arc::clone(&listener)).unwrap();
        ram.listen(Arc::clone(&other) as _).unwrap();
        for _ in 0..2 {
            ram.ignore(&listener).unwrap();
            assert_eq!(*one.told.lock().unwrap(), [(0, 8 << 20, true), (0, 8 << 20, false)]);
        }
        assert_eq!(*other.told.lock().unwrap(), [(0, 8 << 20, true)]);
    }

    #[test]
    fn prefault_touches_every_page() {
        let ram = GuestRam::new(&MemorySpec { prefault: true, ..spec(8 << 20) }).unwrap();
        use std::os::unix::fs::MetadataExt;
        let file = ram.regions().next().unwrap().file;
        assert_eq!(file.metadata().unwrap().blocks() * 512, 8 << 20);
    }
}
