//! A vfio-user server with a fake behind it, in a thread: that of the crate `vfio_user`, which is not ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::*;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion, SparseArea};

use crate::fake::Fake;
use crate::function::{DmaSource, Error, IoAddressSpace, IrqKind, PciFunction, RegionIndex};

/// A server that runs. It ends with its client, or when told.
pub struct Served {
    hang_up: Arc<AtomicBool>,
}

impl Served {
    /// Starts one that listens at `path`, for one client.
    pub fn start(fake: Arc<Fake>, path: &Path) -> Self {
        let regions = (0..9).map(|index| region(&fake, index)).collect();
        let irqs = KINDS.into_iter().map(|kind| irq(&fake, kind)).collect();
        let server = Server::new(path, fake.can_reset(), irqs, regions).expect("the server can listen");
        let hang_up = Arc::new(AtomicBool::new(false));
        let mut device = Device { fake, maps: BTreeMap::new(), hang_up: Arc::clone(&hang_up) };
        std::thread::spawn(move || server.run(&mut device));
        Self { hang_up }
    }

    /// The server ends in the middle of its next request.
    pub fn hang_up(&self) {
        self.hang_up.store(true, Ordering::Relaxed);
    }
}

/// By their numbers.
const KINDS: [IrqKind; 5] = [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix, IrqKind::Err, IrqKind::Req];

fn region(fake: &Fake, index: u32) -> ServerRegion {
    let name = match index {
        bar @ 0..6 => RegionIndex::Bar(u8::try_from(bar).unwrap()),
        6 => RegionIndex::Rom,
        7 => RegionIndex::Config,
        _ => RegionIndex::Vga,
    };
    let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap();
    let mut region_info = vfio_region_info { argsz, index, ..Default::default() };
    let (mut sparse_areas, mut mmap_fd) = (Vec::new(), None);
    if let Some(region) = fake.region(name) {
        region_info.size = region.size;
        region_info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if let Some(first) = region.mmap.first() {
            region_info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
            let (fd, offset) = fake.mmap_source(name, *first).unwrap();
            (mmap_fd, region_info.offset) = (Some(fd.as_raw_fd()), offset - first.offset);
            let area = |area: &crate::MmapArea| SparseArea {
                area: vfio_region_sparse_mmap_area { offset: area.offset, size: area.size },
            };
            sparse_areas = region.mmap.iter().map(area).collect();
        }
    }
    ServerRegion { region_info, sparse_areas, mmap_fd }
}

fn irq(fake: &Fake, kind: IrqKind) -> vfio_user::IrqInfo {
    let info = fake.irq_info(kind);
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = VFIO_IRQ_INFO_EVENTFD
        | flag(info.maskable, VFIO_IRQ_INFO_MASKABLE)
        | flag(info.automasked, VFIO_IRQ_INFO_AUTOMASKED)
        | flag(info.noresize, VFIO_IRQ_INFO_NORESIZE);
    vfio_user::IrqInfo { index: kind.number(), flags, count: info.count }
}

/// The device's side of a server: the fake does what messages say.
struct Device {
    fake: Arc<Fake>,
    maps: BTreeMap<u64, Mapped>,
    hang_up: Arc<AtomicBool>,
}

impl Device {
    /// What a request goes to.
    fn fake(&self) -> &Fake {
        if self.hang_up.load(Ordering::Relaxed) {
            // The thread ends and the socket with it, without the noise of a panic.
            std::panic::resume_unwind(Box::new("hanging up"));
        }
        &self.fake
    }

    fn index(region: u32) -> RegionIndex {
        match region {
            6 => RegionIndex::Rom,
            7 => RegionIndex::Config,
            8 => RegionIndex::Vga,
            bar => RegionIndex::Bar(u8::try_from(bar).unwrap()),
        }
    }
}

fn io_error(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.fake().read(Self::index(region), offset, data).map_err(io_error)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fake().write(Self::index(region), offset, data).map_err(io_error)
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let mapped = Mapped::new(&file.unwrap(), offset, usize::try_from(size).unwrap())?;
        let source = DmaSource { host_address: mapped.address, file: None };
        // SAFETY: it is unmapped in `dma_unmap`, or with the last of the device.
        unsafe { self.fake().space().map(address, size, source) }.map_err(io_error)?;
        self.maps.insert(address, mapped);
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.fake().space().unmap(address, size).map_err(io_error)?;
        self.maps.remove(&address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.fake().reset().map_err(io_error)
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        let kind = KINDS[usize::try_from(index).unwrap()];
        let fake = self.fake();
        const SET: u32 = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        const END: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        const MASK: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
        const UNMASK: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
        let done = match (flags, kind, count) {
            (SET, ..) if fds.is_empty() => {
                fake.set_irqs(kind, start, &vec![None; usize::try_from(count).unwrap()])
            }
            (SET, ..) => {
                assert_eq!(usize::try_from(count).unwrap(), fds.len(), "as many as the message says");
                let fds: Vec<Option<BorrowedFd<'_>>> = fds.iter().map(|fd| Some(fd.as_fd())).collect();
                fake.set_irqs(kind, start, &fds)
            }
            (END, _, 0) => fake.disable_irqs(kind),
            (MASK, IrqKind::Intx, 1) => fake.mask_intx(true),
            (UNMASK, IrqKind::Intx, 1) => fake.mask_intx(false),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        done.map_err(io_error)
    }
}

/// A client's memory in the server.
struct Mapped {
    address: *mut u8,
    length: usize,
}

// SAFETY: the address is only handed on.
unsafe impl Send for Mapped {}

impl Mapped {
    fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, offset) }?;
        Ok(Self { address: address.cast(), length })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the fake has been told to let it go, or is not used any more.
        unsafe { munmap(self.address.cast(), self.length) }.unwrap();
    }
}
