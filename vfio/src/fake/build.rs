//! What a fake is made of: bytes of config space, BARs, interrupts.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Fake, FakeSpace, State, lock, place};
use crate::function::{IrqInfo, IrqKind, MmapArea, Region, RegionIndex};

const PAGE: u64 = 4096;

impl Fake {
    /// 8086:10ca with nothing but its config space of 4096 bytes, INTx, ERR and REQ.
    #[expect(
        clippy::new_without_default,
        reason = "a default function would say nothing to who reads the test"
    )]
    pub fn new() -> Self {
        let memory = memfd_create("fake", MemfdFlags::CLOEXEC).expect("a memory file can be made");
        ftruncate(&memory, 16 << 40).expect("a memory file can be sparse");
        let mut config = vec![0; 4096];
        config[..4].copy_from_slice(&[0x86, 0x80, 0xca, 0x10]);
        config[8..12].copy_from_slice(&[1, 0, 0, 2]);
        let one = IrqInfo { count: 1, ..Default::default() };
        let pin = IrqInfo { maskable: true, automasked: true, ..one };
        let region = Region { size: 4096, readable: true, writable: true, mmap: Vec::new() };
        let log = Arc::default();
        Self {
            label: "fake".to_owned(),
            regions: [(RegionIndex::Config, region)].into(),
            irqs: [(IrqKind::Intx, pin), (IrqKind::Err, one), (IrqKind::Req, one)].into(),
            can_reset: true,
            memory,
            space: Arc::new(FakeSpace::new(Arc::clone(&log))),
            log,
            state: Arc::new(Mutex::new(State { config, ..Default::default() })),
            resampler: Mutex::new(None),
        }
    }

    /// A network card: BAR 0 of 16 KiB, BAR 3 with an MSI-X table of 10 vectors at its start and pending bits at 0x2000,
    /// both 64-bit; power management, MSI, MSI-X and PCI Express; AER, ARI and SR-IOV.
    pub fn nic() -> Self {
        Self::new()
            .bar(0, 0x4000, 4)
            .bar(3, 0x4000, 4)
            .list(&[0x40, 0x50, 0x70, 0xa0])
            .put(0x40, &[0x01, 0x50, 0x23, 0xc8, 0x00, 0x20])
            .put(0x50, &[0x05, 0x70, 0x84, 0x01])
            .put(0x70, &[0x11, 0xa0, 9, 0, 3, 0, 0, 0, 3, 0x20, 0, 0])
            .put(0xa0, &[0x10, 0, 0x02, 0, 0xc2, 0x8c, 0, 0x10, 0x10, 0x28])
            .extended(&[(0x100, 0x01), (0x150, 0x0e), (0x160, 0x10)])
            .vectors(IrqKind::Msi, 4, false)
            .vectors(IrqKind::Msix, 10, false)
    }

    /// What it is called.
    pub fn named(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// A BAR of `size` bytes, at most 1 TiB, with the low bits of its register (1: I/O, 4: 64-bit, 8: prefetchable). It
    /// takes no memory before it is written.
    pub fn bar(mut self, index: u8, size: u64, flags: u8) -> Self {
        let whole = MmapArea { offset: 0, size };
        let mmap = if size >= PAGE && flags & 1 == 0 { vec![whole] } else { Vec::new() };
        self.regions.insert(RegionIndex::Bar(index), Region { size, readable: true, writable: true, mmap });
        self.put(0x10 + 4 * usize::from(index), &[flags])
    }

    /// Its expansion ROM.
    pub fn rom(mut self, image: &[u8]) -> Self {
        let region = Region { size: image.len() as u64, readable: true, writable: false, mmap: Vec::new() };
        self.regions.insert(RegionIndex::Rom, region);
        rustix::io::pwrite(&self.memory, image, place(RegionIndex::Rom))
            .expect("the memory file can be written");
        self
    }

    /// Only these parts of a BAR can be mapped: offset and length.
    pub fn sparse(mut self, index: u8, areas: &[(u64, u64)]) -> Self {
        let region = self.regions.get_mut(&RegionIndex::Bar(index)).expect("the BAR is there");
        region.mmap = areas.iter().map(|&(offset, size)| MmapArea { offset, size }).collect();
        self
    }

    /// Bytes of config space.
    pub fn put(self, at: usize, bytes: &[u8]) -> Self {
        lock(&self.state).config[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The standard capabilities' offsets, each linked to the next, and the status bit that says there are some.
    pub fn list(self, starts: &[u8]) -> Self {
        let this = self.put(0x06, &[0x10]).put(0x34, &starts[..1]);
        starts.windows(2).fold(this, |this, pair| this.put(usize::from(pair[0]) + 1, &pair[1..]))
    }

    /// The extended capabilities, offset and id, each linked to the next.
    pub fn extended(self, list: &[(u16, u16)]) -> Self {
        let nexts = list.iter().skip(1).map(|(at, _)| *at).chain([0]);
        list.iter().zip(nexts).fold(self, |this, ((at, id), next)| {
            let header = u32::from(*id) | 1 << 16 | u32::from(next) << 20;
            this.put(usize::from(*at), &header.to_le_bytes()).put(usize::from(*at) + 4, &[0xab; 4])
        })
    }

    /// So many vectors of a kind; none where `count` is 0.
    pub fn vectors(mut self, kind: IrqKind, count: u32, noresize: bool) -> Self {
        let info = self.irqs.entry(kind).or_default();
        (info.count, info.noresize) = (count, noresize);
        self
    }

    /// It cannot be reset alone.
    pub fn without_reset(mut self) -> Self {
        self.can_reset = false;
        self
    }

    /// Its address space takes these I/O addresses only.
    pub fn iova(self, ranges: &[RangeInclusive<u64>]) -> Self {
        self.space.allow(ranges);
        self
    }
}
