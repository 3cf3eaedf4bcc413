//! MSI-X: the table and the pending bits as the guest sees them (PCIe 6.0, 7.7.2; 6.1.4).
//!
//! The guest's table never reaches the hardware: VFIO owns the real one. Each vector has its own eventfd and GSI, and
//! each is enabled in VFIO by itself, so that masking one never touches its neighbours.

use std::collections::BTreeMap;
use std::sync::Arc;

use vfio::{IrqKind, PciFunction, RegionIndex};

use crate::pci::msix::{ENTRY_SIZE, MsixTable};
use crate::vm::vector::Vector;
use crate::vm::{self, MsiMessage, Vm};

/// Where table and pending bits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixLayout {
    /// Offset of the capability.
    pub(super) capability: u16,
    /// Number of vectors, 1 to 2048.
    pub(super) count: u16,
    /// BAR of the table, and offset in it.
    pub(super) table: (u8, u64),
    /// BAR of the pending bits, and offset in it.
    pub(super) pba: (u8, u64),
}

impl MsixLayout {
    /// Length of the table in bytes.
    pub(super) fn table_size(&self) -> u64 {
        u64::from(self.count) * ENTRY_SIZE
    }

    /// Length of the pending bits in bytes: whole quadwords.
    pub(super) fn pba_size(&self) -> u64 {
        u64::from(self.count).div_ceil(64) * 8
    }
}

struct Armed {
    vector: Vector,
    /// VFIO has its eventfd.
    armed: bool,
}

/// The MSI-X side of one function.
pub(super) struct Msix {
    vm: Arc<Vm>,
    function: Arc<dyn PciFunction>,
    layout: MsixLayout,
    table: MsixTable,
    /// Made at a vector's first use, kept when MSI-X is disabled: GSIs are cheap to keep and dear to change.
    vectors: BTreeMap<u16, Armed>,
    enabled: bool,
    function_masked: bool,
    /// Vectors that VFIO has allocated: all below this.
    allocated: u16,
    noresize: bool,
}

impl Msix {
    pub(super) fn new(vm: &Arc<Vm>, function: &Arc<dyn PciFunction>, layout: MsixLayout) -> Self {
        Self {
            vm: Arc::clone(vm),
            function: Arc::clone(function),
            layout,
            table: MsixTable::new(layout.count),
            vectors: BTreeMap::new(),
            enabled: false,
            function_masked: false,
            allocated: 0,
            noresize: function.irq_info(IrqKind::Msix).noresize,
        }
    }

    pub(super) fn layout(&self) -> &MsixLayout {
        &self.layout
    }

    /// Turns MSI-X on in the function, with what is unmasked now.
    pub(super) fn enable(&mut self, function_masked: bool) {
        self.enabled = true;
        self.function_masked = function_masked;
        self.allocated = 0;
        self.update_all();
        if self.allocated == 0 {
            // Nothing is unmasked yet. The function must know all the same that MSI-X is on: it then no longer uses
            // its pin, and collects pending bits.
            match self.function.set_irqs(IrqKind::Msix, 0, &[None]) {
                Ok(()) => self.allocated = 1,
                Err(error) => tracing::error!("Enabling MSI-X: {error}"),
            }
        }
    }

    /// The function mask bit was written while MSI-X is on.
    pub(super) fn mask_function(&mut self, masked: bool) {
        if self.function_masked != masked {
            self.function_masked = masked;
            self.update_all();
        }
    }

    /// Turns MSI-X off in the function. The table keeps what it says.
    pub(super) fn disable(&mut self) {
        if !self.enabled {
            return;
        }
        self.enabled = false;
        self.allocated = 0;
        if let Err(error) = self.function.disable_irqs(IrqKind::Msix) {
            tracing::debug!("Disabling MSI-X: {error}");
        }
        for armed in self.vectors.values_mut() {
            armed.armed = false;
            if let Err(error) = armed.vector.hold() {
                tracing::warn!("{}: {error}", self.function.label());
            }
            armed.vector.forget();
        }
    }

    /// The table as after power-on: all masked. MSI-X must be off.
    pub(super) fn reset(&mut self) {
        self.table.reset();
        self.function_masked = false;
    }

    /// A guest's read of the table, `offset` from its start.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.table.read(offset, data);
    }

    /// A guest's write to the table, `offset` from its start. Takes effect as a whole: a quadword that changes data and
    /// mask is one change.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        for vector in self.table.write(offset, data) {
            if self.enabled {
                self.update(vector);
            }
        }
    }

    /// A guest's read of the pending bits, `offset` from their start.
    ///
    /// For a vector that VFIO has, the bit is whether it was signalled while masked. One that was never unmasked is
    /// masked in the hardware as well, whose own bit is then the answer.
    pub(super) fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let (bar, start) = self.layout.pba;
        data.fill(0);
        if self.enabled
            && let Err(error) = self.function.read(RegionIndex::Bar(bar), start.saturating_add(offset), data)
        {
            tracing::debug!("Reading pending bits: {error}");
            data.fill(0);
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            for bit in 0..8_u8 {
                let Ok(vector) = u16::try_from(at.saturating_mul(8).saturating_add(bit.into())) else {
                    break;
                };
                let mask = 1 << bit;
                if vector >= self.layout.count {
                    *byte &= !mask;
                } else if let Some(known) = self.vectors.get(&vector).filter(|known| known.armed) {
                    *byte = if known.vector.is_pending() { *byte | mask } else { *byte & !mask };
                }
            }
        }
    }

    fn update_all(&mut self) {
        for vector in 0..self.layout.count {
            self.update(vector);
        }
    }

    /// Brings one vector to what its entry and the function mask say.
    fn update(&mut self, vector: u16) {
        let Some((message, masked)) = self.table.entry(vector) else { return };
        let masked = self.function_masked || masked;
        let result = if masked { self.hold(vector) } else { self.deliver(vector, message) };
        if let Err(error) = result {
            tracing::warn!("{}: MSI-X vector {vector}: {error}", self.function.label());
        }
    }

    fn hold(&mut self, vector: u16) -> Result<(), vm::Error> {
        self.vectors.get_mut(&vector).map_or(Ok(()), |known| known.vector.hold())
    }

    fn deliver(&mut self, vector: u16, message: MsiMessage) -> Result<(), vm::Error> {
        use std::collections::btree_map::Entry;
        let known = match self.vectors.entry(vector) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Armed { vector: Vector::new(&self.vm)?, armed: false }),
        };
        known.vector.deliver(message)?;
        if !known.armed {
            known.armed = true;
            self.arm(vector);
        }
        Ok(())
    }

    /// Gives VFIO the eventfd of one vector.
    fn arm(&mut self, vector: u16) {
        let needed = vector.saturating_add(1);
        let result = if self.noresize && needed > self.allocated {
            self.allocate(needed)
        } else {
            self.allocated = self.allocated.max(needed);
            let trigger = self.vectors.get(&vector).map(|known| known.vector.trigger());
            self.function.set_irqs(IrqKind::Msix, vector.into(), &[trigger])
        };
        if let Err(error) = result {
            tracing::error!("MSI-X vector {vector}: {error}");
            if let Some(known) = self.vectors.get_mut(&vector) {
                known.armed = false;
            }
        }
    }

    /// Allocates at least `needed` vectors where VFIO cannot add to those there are (VFIO_IRQ_INFO_NORESIZE): all are
    /// ended and begun anew. Doubling keeps that rare, as drivers unmask their vectors one after the other.
    fn allocate(&mut self, needed: u16) -> Result<(), vfio::Error> {
        let again = self.allocated > 0;
        if again {
            self.function.disable_irqs(IrqKind::Msix)?;
        }
        let roomy = needed.checked_next_power_of_two().unwrap_or(needed).min(self.layout.count);
        let enable = |count: u16| {
            let triggers: Vec<_> = (0..count)
                .map(|v| self.vectors.get(&v).filter(|known| known.armed).map(|known| known.vector.trigger()))
                .collect();
            self.function.set_irqs(IrqKind::Msix, 0, &triggers).map(|()| count)
        };
        let before = std::mem::take(&mut self.allocated);
        // The host may be short of vectors: then what is needed, and at the worst what there was.
        let result = enable(roomy).or_else(|_| enable(needed));
        self.allocated = match &result {
            Ok(count) => *count,
            Err(_) => enable(before).unwrap_or(0),
        };
        if again {
            // What the device signalled in between is lost. One interrupt too many is harmless, one too few is not.
            self.vectors.values().filter(|known| known.armed).for_each(|known| known.vector.raise());
        }
        result.map(|_| ())
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.disable();
    }
}
