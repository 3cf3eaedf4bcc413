//! fw_cfg: by name and number, what firmware is told of the machine (QEMU, docs/specs/fw_cfg.rst).
//!
//! A selector at port 0x510, a byte at a time from port 0x511, or any number by a descriptor in guest memory whose address
//! is written to port 0x514, big-endian. Firmware only reads; there is nothing that could be written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::bus::BusDevice;
use crate::memory::GuestRam;
use crate::{Action, acpi};

/// The file with what to boot from.
pub(super) const BOOT_ORDER: &str = "bootorder";

/// The first port.
pub(super) const PORT: u64 = 0x510;
/// Up to the end of the DMA address.
pub(super) const PORTS: u64 = 12;

/// Offsets of the registers.
const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

/// Keys with a meaning of their own.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
/// The keys of files count from here.
const FIRST_FILE: u16 = 0x20;
/// File names have this many bytes, with a NUL.
const NAME: usize = 56;

/// There are the ports, and DMA.
const FEATURES: u32 = 1 | 2;
/// What the DMA address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

/// Bits of a descriptor's control word; in its upper half is a key to select.
const ERROR: u32 = 1;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// The most that one descriptor may ask for: far more than any item, and little enough to be done at once.
const LONGEST: u32 = 4 << 20;

/// Makes the ACPI tables of the machine as firmware has set it up so far.
pub type Tables = Box<dyn Fn() -> Result<acpi::Loadable, acpi::Error> + Send + Sync>;

/// What an item is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Key(u16),
    File(&'static str),
}

enum Content {
    Fixed(Vec<u8>),
    Script,
    Rsdp,
    AcpiTables,
}

struct State {
    selected: u16,
    at: usize,
    dma_high: u32,
    /// As they were made when the script was selected last.
    tables: Option<acpi::Loadable>,
    items: BTreeMap<u16, Content>,
}

impl State {
    fn at_power_on(items: BTreeMap<u16, Content>) -> Self {
        Self { selected: SIGNATURE, at: 0, dma_high: 0, tables: None, items }
    }
}

/// The device.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    fixed: Vec<(Name, Vec<u8>)>,
    tables: Tables,
    /// The sizes of script, root pointer and tables, as the directory says them before they are made: tables are filled up to
    /// it.
    sizes: [usize; 3],
    state: Mutex<State>,
}

/// Whatever firmware does, tables differ by less from those that are made first.
const TABLES_ROOM: usize = 4096;

impl FwCfg {
    /// With these items, another boot order until the first reset where there is one, and the ACPI tables.
    pub(super) fn new(
        ram: Arc<GuestRam>,
        items: Vec<(Name, Vec<u8>)>,
        first_order: Option<Vec<u8>>,
        tables: Tables,
    ) -> Result<Self, Error> {
        let first = tables()?;
        let tables_size = first.tables.len().saturating_add(TABLES_ROOM).next_multiple_of(4096);
        let sizes = [first.script.len(), first.rsdp.len(), tables_size];
        let state = Mutex::new(State::at_power_on(arrange(&items, sizes, first_order)));
        Ok(Self { ram, fixed: items, tables, sizes, state })
    }

    /// Back to power-on. `order` is what the file [`BOOT_ORDER`] holds this time instead of what it always holds.
    pub fn reset(&self, order: Option<Vec<u8>>) {
        *self.lock() = State::at_power_on(arrange(&self.fixed, self.sizes, order));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, state: &mut State, key: u16) {
        (state.selected, state.at) = (key, 0);
        let made = match state.items.get(&key) {
            Some(Content::Script) => true,
            Some(Content::Rsdp | Content::AcpiTables) => state.tables.is_none(),
            _ => false,
        };
        if made {
            match (self.tables)() {
                Ok(mut tables) => {
                    let [_, _, size] = self.sizes;
                    tables.tables.resize(size, 0);
                    state.tables = Some(tables);
                }
                Err(error) => tracing::error!("ACPI tables for the firmware: {error}"),
            }
        }
    }

    /// What is left of the selected item. Behind its end there are zeroes for ever.
    fn left(state: &State) -> &[u8] {
        let tables = state.tables.as_ref();
        let bytes: &[u8] = match state.items.get(&state.selected) {
            Some(Content::Fixed(bytes)) => bytes,
            Some(Content::Script) => tables.map_or(&[], |tables| &tables.script),
            Some(Content::Rsdp) => tables.map_or(&[], |tables| &tables.rsdp),
            Some(Content::AcpiTables) => tables.map_or(&[], |tables| &tables.tables),
            None => &[],
        };
        bytes.get(state.at..).unwrap_or_default()
    }

    /// The next bytes.
    fn take(state: &mut State, data: &mut [u8]) {
        data.fill(0);
        data.iter_mut().zip(Self::left(state)).for_each(|(slot, byte)| *slot = *byte);
        state.at = state.at.saturating_add(data.len());
    }

    /// Does what the descriptor at a guest physical address says, and writes the result into its first word: 0, or
    /// [`ERROR`].
    fn dma(&self, state: &mut State, address: u64) {
        let mut bytes = [0; 16];
        let memory = self.ram.memory();
        if let Err(error) = memory.read_slice(&mut bytes, GuestAddress(address)) {
            return tracing::debug!("fw_cfg: no descriptor at {address:#x}: {error}");
        }
        let [control, length, high, low] = [0, 4, 8, 12]
            .map(|at| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_be_bytes(*b)));
        let target = u64::from(high) << 32 | u64::from(low);
        let done = self.transfer(state, control, length, target);
        let result = if done.is_some() { 0 } else { ERROR };
        if let Err(error) = memory.write_slice(&result.to_be_bytes(), GuestAddress(address)) {
            tracing::debug!("fw_cfg: no answer to {address:#x}: {error}");
        }
    }

    fn transfer(&self, state: &mut State, control: u32, length: u32, target: u64) -> Option<()> {
        if control & SELECT != 0 {
            self.select(state, u16::try_from(control >> 16).ok()?);
        }
        let length = usize::try_from(Some(length).filter(|length| *length <= LONGEST)?).ok()?;
        if control & READ != 0 {
            let mut data = vec![0; length];
            Self::take(state, &mut data);
            return self.ram.memory().write_slice(&data, GuestAddress(target)).ok();
        }
        if control & SKIP != 0 {
            state.at = state.at.saturating_add(length);
            return Some(());
        }
        // No item may be written.
        (control & WRITE == 0 || length == 0).then_some(())
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            DATA => Self::take(&mut self.lock(), data),
            DMA_HIGH.. => {
                let signature = DMA_SIGNATURE.iter().skip(usize::try_from(offset - DMA_HIGH).unwrap_or(8));
                data.iter_mut().zip(signature).for_each(|(slot, byte)| *slot = *byte);
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.lock();
        match (offset, data) {
            (SELECTOR, [low, high]) => self.select(&mut state, u16::from_le_bytes([*low, *high])),
            (DMA_HIGH, &[a, b, c, d]) => state.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut state.dma_high);
                self.dma(&mut state, u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d])));
            }
            _ => {}
        }
        Action::None
    }
}

/// All items by their keys. `order` takes the place of the boot order that is always there.
fn arrange(fixed: &[(Name, Vec<u8>)], sizes: [usize; 3], order: Option<Vec<u8>>) -> BTreeMap<u16, Content> {
    let [script, rsdp, tables] = sizes;
    let mut files: Vec<(&'static str, Content, usize)> = vec![
        (acpi::LOADER_FILE, Content::Script, script),
        (acpi::RSDP_FILE, Content::Rsdp, rsdp),
        (acpi::TABLES_FILE, Content::AcpiTables, tables),
    ];
    let mut all = BTreeMap::new();
    all.insert(SIGNATURE, Content::Fixed(b"QEMU".to_vec()));
    all.insert(ID, Content::Fixed(FEATURES.to_le_bytes().to_vec()));
    for (name, bytes) in fixed {
        match name {
            Name::Key(key) => drop(all.insert(*key, Content::Fixed(bytes.clone()))),
            Name::File(BOOT_ORDER) if order.is_some() => {}
            Name::File(name) => files.push((name, Content::Fixed(bytes.clone()), bytes.len())),
        }
    }
    if let Some(order) = order {
        let size = order.len();
        files.push((BOOT_ORDER, Content::Fixed(order), size));
    }
    files.sort_unstable_by_key(|(name, ..)| *name);
    let mut directory = u32::try_from(files.len()).unwrap_or(0).to_be_bytes().to_vec();
    for ((name, content, size), key) in files.into_iter().zip(FIRST_FILE..) {
        directory.extend(entry(name, key, size));
        all.insert(key, content);
    }
    all.insert(DIRECTORY, Content::Fixed(directory));
    all
}

/// A file in the directory: size, key, two unused bytes, name.
fn entry(name: &str, key: u16, size: usize) -> Vec<u8> {
    let mut entry = u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    entry.extend(key.to_be_bytes());
    entry.extend([0; 2]);
    entry.extend(name.bytes().chain(std::iter::repeat(0)).take(NAME));
    entry
}

#[cfg(test)]
mod tests;
