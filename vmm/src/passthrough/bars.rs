//! What lies behind the BARs: mapped into the guest where the function allows, trapped elsewhere.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vfio::{DmaSource, PciFunction, RegionIndex};

use super::Error;
use super::config::ROM_BAR;
use super::mapping::{Mapping, mappable};
use super::msix::MsixLayout;
use crate::pci::{BarKind, BarSpec, Window};
use crate::vm::{MappedSlot, Vm};

/// One BAR's mapped parts, and where the guest sees them now.
struct Bar {
    index: u8,
    writable: bool,
    parts: Vec<Mapping>,
    /// Where the host bridge has it.
    base: Option<u64>,
    slots: Vec<MappedSlot>,
    /// I/O addresses that other functions of the guest reach it by.
    dma: Vec<(u64, u64)>,
}

/// All BARs of one function.
pub(super) struct Bars {
    vm: Arc<Vm>,
    function: Arc<dyn PciFunction>,
    peer_to_peer: bool,
    // Unmapped in `drop`, before the function is let go.
    bars: Mutex<Vec<Bar>>,
    rom: OnceLock<Vec<u8>>,
}

impl Bars {
    /// Maps all that may be mapped into this process, not yet into the guest. The pages of the MSI-X table and of the
    /// pending bits stay out.
    pub(super) fn new(
        vm: &Arc<Vm>,
        function: &Arc<dyn PciFunction>,
        specs: &[BarSpec],
        msix: Option<&MsixLayout>,
        peer_to_peer: bool,
    ) -> Result<Self, Error> {
        let memory = specs.iter().filter(|spec| spec.kind != BarKind::Io && spec.index != ROM_BAR);
        let bars = memory.map(|spec| Bar::new(&**function, spec.index, msix)).collect::<Result<_, _>>()?;
        Ok(Self {
            vm: Arc::clone(vm),
            function: Arc::clone(function),
            peer_to_peer,
            bars: Mutex::new(bars),
            rom: OnceLock::new(),
        })
    }

    /// The host bridge has moved a window.
    pub(super) fn moved(&self, index: u8, base: Option<u64>) {
        let mut bars = self.lock();
        let Some(bar) = bars.iter_mut().find(|bar| bar.index == index) else { return };
        if bar.base == base && (base.is_none() || !bar.slots.is_empty()) {
            return;
        }
        self.hide(bar);
        bar.base = base;
        if let Some(base) = base {
            self.show(bar, base);
        }
    }

    /// Takes from the guest all that is not among `windows`, before the device stops decoding: VFIO lets nobody touch a
    /// mapping of memory that is not decoded. The host bridge hears of it only afterwards.
    pub(super) fn suspend(&self, windows: &[Window]) {
        for bar in self.lock().iter_mut().filter(|bar| !bar.is_within(windows)) {
            self.hide(bar);
        }
    }

    /// Gives back what the host bridge still has where `windows` say. It is not told of a window that went and came
    /// between two of its looks.
    pub(super) fn resume(&self, windows: &[Window]) {
        for bar in self.lock().iter_mut().filter(|bar| bar.is_within(windows) && bar.slots.is_empty()) {
            if let Some(base) = bar.base {
                self.show(bar, base);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Bar>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, bar: &mut Bar, base: u64) {
        let label = self.function.label();
        for part in &bar.parts {
            let area = part.area();
            let Some(guest) = base.checked_add(area.offset) else { continue };
            // SAFETY: the part stays mapped until `bar` is dropped, which `Bars::drop` does after `hide`.
            let mapped = unsafe { self.vm.map(guest, part.address(), area.size, !bar.writable) };
            match mapped {
                Ok(slot) => bar.slots.push(slot),
                // Reads and writes still arrive by exits.
                Err(error) => tracing::warn!("{label}: BAR {}: {error}; its accesses are slow", bar.index),
            }
            if self.peer_to_peer {
                let source = DmaSource { host_address: part.address(), file: None };
                // SAFETY: as above, and `hide` unmaps it from the address space.
                match unsafe { self.function.address_space().map(guest, area.size, source) } {
                    Ok(()) => bar.dma.push((guest, area.size)),
                    // Not every kernel maps device memory for devices (iommufd: EFAULT). Only peer-to-peer needs it.
                    Err(error) => tracing::debug!("{label}: BAR {} for peer-to-peer: {error}", bar.index),
                }
            }
        }
    }

    fn hide(&self, bar: &mut Bar) {
        let label = self.function.label();
        for (iova, size) in bar.dma.drain(..) {
            if let Err(error) = self.function.address_space().unmap(iova, size) {
                tracing::warn!("{label}: BAR {}: {error}", bar.index);
            }
        }
        for slot in bar.slots.drain(..) {
            if let Err(error) = self.vm.unmap(slot) {
                tracing::error!("{label}: BAR {}: {error}", bar.index);
            }
        }
    }

    /// A read that was not mapped.
    pub(super) fn read(&self, index: u8, offset: u64, data: &mut [u8]) -> Result<(), vfio::Error> {
        if index == ROM_BAR {
            self.read_rom(offset, data);
            return Ok(());
        }
        self.function.read(RegionIndex::Bar(index), offset, data)
    }

    /// A write that was not mapped.
    pub(super) fn write(&self, index: u8, offset: u64, data: &[u8]) -> Result<(), vfio::Error> {
        if index == ROM_BAR {
            return Ok(());
        }
        self.function.write(RegionIndex::Bar(index), offset, data)
    }

    /// The ROM is read once as a whole: the kernel maps and sizes it anew for each read.
    fn read_rom(&self, offset: u64, data: &mut [u8]) {
        let image = self.rom.get_or_init(|| self.load_rom());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = image.get(start..).unwrap_or(&[]);
        data.fill(0xff);
        for (byte, from) in data.iter_mut().zip(rest) {
            *byte = *from;
        }
    }

    fn load_rom(&self) -> Vec<u8> {
        let size = self.function.region(RegionIndex::Rom).map_or(0, |region| region.size);
        let mut image = vec![0xff; usize::try_from(size.min(16 << 20)).unwrap_or(0)];
        if let Err(error) = self.function.read(RegionIndex::Rom, 0, &mut image) {
            tracing::warn!("Reading the expansion ROM: {error}; the guest finds none");
            image.clear();
        }
        image
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.suspend(&[]);
    }
}

impl Bar {
    fn new(function: &dyn PciFunction, index: u8, msix: Option<&MsixLayout>) -> Result<Self, Error> {
        let region = RegionIndex::Bar(index);
        let Some(info) = function.region(region) else {
            return Err(Error::unusable(function.label(), format!("BAR {index} vanished")));
        };
        let holes: Vec<_> = msix
            .into_iter()
            .flat_map(|msix| [(msix.table, msix.table_size()), (msix.pba, msix.pba_size())])
            .filter(|((bar, _), _)| *bar == index)
            .map(|((_, offset), size)| (offset, size))
            .collect();
        let parts = mappable(&info.mmap, info.size, &holes)
            .into_iter()
            .filter_map(|area| {
                // All of it can still be reached by exits.
                let warn = |error: &Error| tracing::warn!("BAR {index}: {error}; its accesses are slow");
                Mapping::new(function, region, area, info.writable).inspect_err(warn).ok()
            })
            .collect();
        Ok(Self { index, writable: info.writable, parts, base: None, slots: Vec::new(), dma: Vec::new() })
    }

    fn is_within(&self, windows: &[Window]) -> bool {
        windows.iter().any(|window| window.bar == self.index && Some(window.base) == self.base)
    }
}
