//! A function for tests: config space in a buffer, BARs in a memory file, interrupts that a test fires, DMA that a test
//! does, and everything it was asked for written down.
//!
//! It keeps the same contract as the kernel's functions, with their less obvious habits: INTx masks itself when it
//! fires, INTx, MSI and MSI-X exclude one another, and no DMA is done before the function may master the bus.
//!
//! It is there for tests alone and panics where a test is wrong.

mod build;
mod interrupts;
mod served;
mod space;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use crate::function::{Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex};
use crate::resample::Resampler;
use interrupts::Interrupts;
pub use served::Served;
pub use space::FakeSpace;

/// Command register: the function may master the bus (PCIe 6.0, 7.5.1.1.3).
const COMMAND_MASTER: u8 = 1 << 2;

/// What a fake was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Vectors from the first, each with an eventfd or without.
    SetIrqs(IrqKind, u32, Vec<bool>),
    /// All vectors of a kind ended.
    DisableIrqs(IrqKind),
    /// INTx' unmask tied to an eventfd, or untied.
    IntxUnmask(bool),
    /// INTx masked or unmasked by hand.
    MaskIntx(bool),
    /// A reset.
    Reset,
    /// Config space written: offset and bytes.
    Config(u64, Vec<u8>),
    /// I/O address and bytes mapped for DMA.
    DmaMap(u64, u64),
    /// I/O address and bytes taken back.
    DmaUnmap(u64, u64),
}

/// The calls of a function and of its address space, in one order.
type Log = Arc<Mutex<Vec<Call>>>;

/// What changes while it runs.
#[derive(Default)]
struct State {
    config: Vec<u8>,
    interrupts: Interrupts,
    gone: bool,
    lost: bool,
    reset_fails: bool,
}

/// A function that a test plays the device of.
pub struct Fake {
    label: String,
    regions: BTreeMap<RegionIndex, Region>,
    irqs: BTreeMap<IrqKind, IrqInfo>,
    can_reset: bool,
    memory: OwnedFd,
    space: Arc<FakeSpace>,
    log: Log,
    state: Arc<Mutex<State>>,
    // Ended before what it unmasks is dropped.
    resampler: Mutex<Option<Resampler>>,
}

/// A region's place in the memory file: each has 1 TiB.
fn place(index: RegionIndex) -> u64 {
    u64::from(index.number()) << 40
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a test does: the device's side, and a look at what was asked.
impl Fake {
    /// The calls so far; they are forgotten.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.log))
    }

    /// The calls so far that set interrupts; all are forgotten.
    pub fn irq_calls(&self) -> Vec<Call> {
        let calls = self.calls();
        calls.into_iter().filter(|call| matches!(call, Call::SetIrqs(..) | Call::DisableIrqs(_))).collect()
    }

    /// The device signals a vector, or asserts its pin until [`lower_pin`](Self::lower_pin). True if an eventfd heard it.
    pub fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        lock(&self.state).interrupts.fire(kind, vector)
    }

    /// The device lets its pin go.
    pub fn lower_pin(&self) {
        lock(&self.state).interrupts.set_line(false);
    }

    /// The device reads memory by DMA.
    ///
    /// # Errors
    /// What [`FakeSpace::read`] says, and [`Error::Invalid`] for a function that may not master the bus.
    pub fn dma_read(&self, iova: u64, data: &mut [u8]) -> Result<(), Error> {
        self.check_master()?;
        self.space.read(iova, data)
    }

    /// The device writes memory by DMA.
    ///
    /// # Errors
    /// As [`dma_read`](Self::dma_read).
    pub fn dma_write(&self, iova: u64, data: &[u8]) -> Result<(), Error> {
        self.check_master()?;
        self.space.write(iova, data)
    }

    /// From now on it is gone: unplugged, or its VF removed.
    pub fn vanish(&self) {
        lock(&self.state).gone = true;
    }

    /// From now on it is still there for VFIO but not on the bus: config space reads all ones.
    pub fn lose_link(&self) {
        lock(&self.state).lost = true;
    }

    /// From now on its resets fail.
    pub fn fail_resets(&self) {
        lock(&self.state).reset_fails = true;
    }

    /// From now on the host has so many vectors of MSI-X and no more.
    pub fn limit_msix(&self, most: u32) {
        lock(&self.state).interrupts.limit_msix(most);
    }

    /// A byte of BAR memory, as the device sees it.
    pub fn memory_byte(&self, bar: u8, offset: u64) -> u8 {
        let mut byte = [0];
        rustix::io::pread(&self.memory, &mut byte, place(RegionIndex::Bar(bar)) + offset)
            .expect("the memory file can be read");
        byte[0]
    }

    /// Its address space, for a look at the maps.
    pub fn space(&self) -> &Arc<FakeSpace> {
        &self.space
    }

    fn check_master(&self) -> Result<(), Error> {
        let command = lock(&self.state).config.get(4).copied().unwrap_or(0);
        if command & COMMAND_MASTER == 0 {
            return Err(self.invalid("DMA without the right to master the bus"));
        }
        Ok(())
    }

    fn note(&self, call: Call) {
        lock(&self.log).push(call);
    }

    fn alive(&self, doing: &str) -> Result<MutexGuard<'_, State>, Error> {
        let state = lock(&self.state);
        if state.gone {
            return Err(Error::Gone { function: self.label.clone(), doing: doing.to_owned() });
        }
        Ok(state)
    }

    fn invalid(&self, what: impl Into<String>) -> Error {
        Error::Invalid { function: self.label.clone(), what: what.into() }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error {
        let (function, doing) = (self.label.clone(), doing.to_owned());
        move |source| Error::Io { function, doing, source }
    }

    /// Refuses what is not in the region.
    fn check_bounds(&self, index: RegionIndex, offset: u64, length: usize) -> Result<(), Error> {
        if self.regions.get(&index).is_some_and(|region| region.holds(offset, length)) {
            return Ok(());
        }
        Err(self.invalid(format!("{length} bytes at {offset:#x} are not in its {index:?} region")))
    }
}

/// The bytes of config space from `offset` on; the caller has checked the bounds.
fn config(bytes: &mut [u8], offset: u64) -> &mut [u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    bytes.get_mut(start..).unwrap_or_default()
}

impl PciFunction for Fake {
    fn label(&self) -> &str {
        &self.label
    }

    fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.regions.get(&index).filter(|region| region.size > 0)
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        data.fill(0xff);
        let mut state = self.alive("reading a region")?;
        self.check_bounds(index, offset, data.len())?;
        if state.lost {
            return Ok(());
        }
        if index == RegionIndex::Config {
            for (to, from) in data.iter_mut().zip(config(&mut state.config, offset)) {
                *to = *from;
            }
            return Ok(());
        }
        let done = rustix::io::pread(&self.memory, data, place(index) + offset);
        done.map(|_| ()).map_err(|error| self.failed("reading a region")(error.into()))
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut state = self.alive("writing a region")?;
        self.check_bounds(index, offset, data.len())?;
        if index == RegionIndex::Config {
            self.note(Call::Config(offset, data.to_vec()));
            for (to, from) in config(&mut state.config, offset).iter_mut().zip(data) {
                *to = *from;
            }
            return Ok(());
        }
        let done = rustix::io::pwrite(&self.memory, data, place(index) + offset);
        done.map(|_| ()).map_err(|error| self.failed("writing a region")(error.into()))
    }

    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error> {
        if !self.regions.get(&index).is_some_and(|region| region.can_map(area)) {
            return Err(self.invalid(format!("{area:x?} of its {index:?} region cannot be mapped")));
        }
        Ok((self.memory.as_fd(), place(index) + area.offset))
    }

    fn irq_info(&self, kind: IrqKind) -> IrqInfo {
        self.irqs.get(&kind).copied().unwrap_or_default()
    }

    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
        let flags = triggers.iter().map(Option::is_some).collect();
        self.note(Call::SetIrqs(kind, first, flags));
        let mut state = self.alive("setting interrupts")?;
        let done = state.interrupts.set(kind, first, triggers, self.irq_info(kind).count);
        done.map_err(self.failed("setting interrupts"))
    }

    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error> {
        self.note(Call::DisableIrqs(kind));
        self.alive("disabling interrupts")?.interrupts.disable(kind);
        Ok(())
    }

    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.note(Call::IntxUnmask(resample.is_some()));
        drop(self.alive("tying INTx' unmask to an eventfd")?);
        let start = |fd: BorrowedFd<'_>| {
            let state = Arc::clone(&self.state);
            Resampler::start(fd.try_clone_to_owned()?, move || lock(&state).interrupts.mask(false))
        };
        let new = resample.map(start).transpose().map_err(self.failed("tying INTx' unmask"))?;
        // The old one is ended outside of the lock.
        let old = std::mem::replace(&mut *lock(&self.resampler), new);
        drop(old);
        Ok(())
    }

    fn mask_intx(&self, masked: bool) -> Result<(), Error> {
        self.note(Call::MaskIntx(masked));
        self.alive("masking INTx")?.interrupts.mask(masked);
        Ok(())
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> Result<(), Error> {
        self.note(Call::Reset);
        let mut state = self.alive("resetting it")?;
        if state.reset_fails || !self.can_reset {
            return Err(self.failed("resetting it")(io::Error::from_raw_os_error(libc::EIO)));
        }
        state.interrupts.set_line(false);
        for (index, region) in self.regions.iter().filter(|(index, _)| matches!(index, RegionIndex::Bar(_))) {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&self.memory, mode, place(*index), region.size)
                .map_err(|error| self.failed("clearing its BARs")(error.into()))?;
        }
        Ok(())
    }

    fn address_space(&self) -> Arc<dyn IoAddressSpace> {
        Arc::clone(&self.space) as _
    }
}
