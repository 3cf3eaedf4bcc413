//! A function for tests: config space in a buffer, BARs in a memfd, interrupts that a test fires, everything written down.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vfio::{DmaSource, Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex};

use crate::vm::Vm;

/// The test's machine, or `None` where there is no KVM, with the reason printed.
pub(super) fn vm() -> Option<Arc<Vm>> {
    match Vm::new().and_then(|vm| vm.create_interrupt_controllers().map(|()| vm)) {
        Ok(vm) => Some(Arc::new(vm)),
        Err(error) => {
            let required = std::env::var("REQUIRE").is_ok_and(|suites| suites.split(',').any(|s| s == "kvm"));
            assert!(!required, "KVM is required: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What the function was asked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Vectors from the first, each with an eventfd or without.
    SetIrqs(IrqKind, u32, Vec<bool>),
    DisableIrqs(IrqKind),
    IntxUnmask(bool),
    Reset,
    Config(u64, Vec<u8>),
    DmaMap(u64, u64),
    DmaUnmap(u64, u64),
}

#[derive(Default)]
struct State {
    config: Vec<u8>,
    calls: Vec<Call>,
    triggers: BTreeMap<(IrqKind, u32), OwnedFd>,
    resample: Option<OwnedFd>,
    gone: bool,
    reset_fails: bool,
    most_msix: Option<u32>,
}

pub(super) struct Fake {
    pub(super) regions: BTreeMap<RegionIndex, Region>,
    pub(super) irqs: BTreeMap<IrqKind, IrqInfo>,
    pub(super) can_reset: bool,
    pub(super) iova: Vec<RangeInclusive<u64>>,
    memory: OwnedFd,
    state: Arc<Mutex<State>>,
}

/// A BAR's place in the memfd.
fn place(index: RegionIndex) -> u64 {
    u64::from(index.number()) << 40
}

impl Fake {
    /// 8086:10ca with nothing but its config space of 4096 bytes, INTx, ERR and REQ.
    pub(super) fn new() -> Self {
        // SAFETY: the name is a NUL-terminated constant.
        let fd = unsafe { libc::memfd_create(c"fake".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: memfd_create has just given us this descriptor.
        let memory = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&memory, 16 << 40).unwrap();
        let mut config = vec![0; 4096];
        config[..4].copy_from_slice(&[0x86, 0x80, 0xca, 0x10]);
        config[8..12].copy_from_slice(&[1, 0, 0, 2]);
        let one = IrqInfo { count: 1, ..Default::default() };
        let irqs = [(IrqKind::Intx, one), (IrqKind::Err, one), (IrqKind::Req, one)].into();
        let region = Region { size: 4096, readable: true, writable: true, mmap: Vec::new() };
        Self {
            regions: [(RegionIndex::Config, region)].into(),
            irqs,
            can_reset: true,
            iova: vec![0..=u64::MAX],
            memory,
            state: Arc::new(Mutex::new(State { config, ..Default::default() })),
        }
    }

    /// A network card: BAR 0 of 16 KiB, BAR 3 with an MSI-X table of 10 vectors at its start and pending bits at 0x2000,
    /// both 64-bit; power management, MSI, MSI-X and PCI Express; AER, ARI and SR-IOV.
    pub(super) fn nic() -> Self {
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

    pub(super) fn bar(mut self, index: u8, size: u64, flags: u8) -> Self {
        let mmap =
            if size >= 4096 && flags & 1 == 0 { vec![MmapArea { offset: 0, size }] } else { Vec::new() };
        let region = Region { size, readable: true, writable: true, mmap };
        self.regions.insert(RegionIndex::Bar(index), region);
        self.put(0x10 + 4 * usize::from(index), &[flags])
    }

    pub(super) fn put(self, at: usize, bytes: &[u8]) -> Self {
        self.state.lock().unwrap().config[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The status bit, the first pointer, and each one's pointer to the next.
    pub(super) fn list(self, starts: &[u8]) -> Self {
        let this = self.put(0x06, &[0x10]).put(0x34, &starts[..1]);
        starts.windows(2).fold(this, |this, pair| this.put(usize::from(pair[0]) + 1, &pair[1..]))
    }

    pub(super) fn extended(self, list: &[(u16, u16)]) -> Self {
        let nexts = list.iter().skip(1).map(|(at, _)| *at).chain([0]);
        list.iter().zip(nexts).fold(self, |this, ((at, id), next)| {
            let header = u32::from(*id) | 1 << 16 | u32::from(next) << 20;
            this.put(usize::from(*at), &header.to_le_bytes()).put(usize::from(*at) + 4, &[0xab; 4])
        })
    }

    pub(super) fn vectors(mut self, kind: IrqKind, count: u32, noresize: bool) -> Self {
        self.irqs.insert(kind, IrqInfo { count, noresize, ..Default::default() });
        self
    }

    /// The calls so far; they are forgotten.
    pub(super) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// The calls that set interrupts; all are forgotten.
    pub(super) fn irq_calls(&self) -> Vec<Call> {
        let calls = self.calls();
        calls.into_iter().filter(|call| matches!(call, Call::SetIrqs(..) | Call::DisableIrqs(_))).collect()
    }

    /// The device signals a vector. False if VFIO has no eventfd for it.
    pub(super) fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        let state = self.state.lock().unwrap();
        let trigger = state.triggers.get(&(kind, vector));
        trigger.is_some_and(|fd| rustix::io::write(fd, &1_u64.to_ne_bytes()).is_ok())
    }

    pub(super) fn vanish(&self) {
        self.state.lock().unwrap().gone = true;
    }

    pub(super) fn fail_resets(&self) {
        self.state.lock().unwrap().reset_fails = true;
    }

    /// The host has so many vectors and no more.
    pub(super) fn limit_msix(&self, most: u32) {
        self.state.lock().unwrap().most_msix = Some(most);
    }

    /// A byte of BAR memory, as the device sees it.
    pub(super) fn memory_byte(&self, bar: u8, offset: u64) -> u8 {
        let mut byte = [0];
        rustix::io::pread(&self.memory, &mut byte, place(RegionIndex::Bar(bar)) + offset).unwrap();
        byte[0]
    }

    fn note(&self, call: Call) {
        self.state.lock().unwrap().calls.push(call);
    }

    fn alive(&self, doing: &str) -> Result<(), Error> {
        if self.state.lock().unwrap().gone {
            return Err(Error::Gone { function: "fake".into(), doing: doing.into() });
        }
        Ok(())
    }

    fn io(source: io::Error) -> Error {
        Error::Io { function: "fake".into(), doing: "testing".into(), source }
    }
}

impl PciFunction for Fake {
    fn label(&self) -> &str {
        "fake"
    }

    fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.regions.get(&index)
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        data.fill(0xff);
        self.alive("reading")?;
        let invalid = || Error::Invalid { function: "fake".into(), what: format!("read at {offset:#x}") };
        let region = self.regions.get(&index).ok_or_else(invalid)?;
        if offset + data.len() as u64 > region.size {
            return Err(invalid());
        }
        if index == RegionIndex::Config {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.state.lock().unwrap().config[at..at + data.len()]);
            return Ok(());
        }
        rustix::io::pread(&self.memory, data, place(index) + offset)
            .map(|_| ())
            .map_err(|e| Self::io(e.into()))
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.alive("writing")?;
        let invalid = || Error::Invalid { function: "fake".into(), what: format!("write at {offset:#x}") };
        let region = self.regions.get(&index).ok_or_else(invalid)?;
        if offset + data.len() as u64 > region.size {
            return Err(invalid());
        }
        if index == RegionIndex::Config {
            self.note(Call::Config(offset, data.to_vec()));
            let at = usize::try_from(offset).unwrap();
            self.state.lock().unwrap().config[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        rustix::io::pwrite(&self.memory, data, place(index) + offset)
            .map(|_| ())
            .map_err(|e| Self::io(e.into()))
    }

    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error> {
        Ok((self.memory.as_fd(), place(index) + area.offset))
    }

    fn irq_info(&self, kind: IrqKind) -> IrqInfo {
        self.irqs.get(&kind).copied().unwrap_or_default()
    }

    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
        let flags = triggers.iter().map(Option::is_some).collect();
        self.note(Call::SetIrqs(kind, first, flags));
        let mut state = self.state.lock().unwrap();
        let end = first + u32::try_from(triggers.len()).unwrap();
        if end > self.irq_info(kind).count
            || kind == IrqKind::Msix && state.most_msix.is_some_and(|n| end > n)
        {
            return Err(Self::io(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        for (vector, trigger) in (first..).zip(triggers) {
            match trigger {
                Some(fd) => state.triggers.insert((kind, vector), fd.try_clone_to_owned().unwrap()),
                None => state.triggers.remove(&(kind, vector)),
            };
        }
        Ok(())
    }

    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error> {
        self.note(Call::DisableIrqs(kind));
        self.state.lock().unwrap().triggers.retain(|(of, _), _| *of != kind);
        Ok(())
    }

    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.note(Call::IntxUnmask(resample.is_some()));
        self.state.lock().unwrap().resample = resample.map(|fd| fd.try_clone_to_owned().unwrap());
        Ok(())
    }

    fn mask_intx(&self, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> Result<(), Error> {
        self.note(Call::Reset);
        if self.state.lock().unwrap().reset_fails {
            return Err(Self::io(io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(())
    }

    fn address_space(&self) -> Arc<dyn IoAddressSpace> {
        Arc::new(Space { iova: self.iova.clone(), state: Arc::clone(&self.state) })
    }
}

struct Space {
    iova: Vec<RangeInclusive<u64>>,
    state: Arc<Mutex<State>>,
}

impl IoAddressSpace for Space {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.iova.clone()
    }

    unsafe fn map(&self, iova: u64, size: u64, _: DmaSource<'_>) -> Result<(), Error> {
        self.state.lock().unwrap().calls.push(Call::DmaMap(iova, size));
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        self.state.lock().unwrap().calls.push(Call::DmaUnmap(iova, size));
        Ok(())
    }
}
