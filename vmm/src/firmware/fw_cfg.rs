//! fw_cfg: by name and number, what firmware is told of the machine (QEMU, docs/specs/fw_cfg.rst).
//!
//! A selector at port 0x510, a byte at a time from port 0x511, or any number by a descriptor in guest memory whose address
//! is written to port 0x514, big-endian. Firmware only reads; there is nothing that could be written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use super::Error;
use super::items::BOOT_ORDER;
use crate::bus::BusDevice;
use crate::memory::GuestRam;
use crate::{Action, acpi};

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
    /// Until the first reset, and afterwards.
    Order(Vec<u8>, Vec<u8>),
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
    /// The guest has been reset.
    again: bool,
}

const POWER_ON: State = State { selected: SIGNATURE, at: 0, dma_high: 0, tables: None, again: false };

/// The device.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    items: BTreeMap<u16, Content>,
    tables: Tables,
    /// The size of the ACPI tables, as the directory says it before they are made: they are filled up to it.
    tables_size: usize,
    state: Mutex<State>,
}

/// Whatever firmware does, tables differ by less from those that are made first.
const TABLES_ROOM: usize = 4096;

impl FwCfg {
    /// With these items, another boot order until the first reset where there is one, and the ACPI tables.
    pub(super) fn new(
        ram: Arc<GuestRam>,
        items: Vec<(Name, Vec<u8>)>,
        mut first_order: Option<Vec<u8>>,
        tables: Tables,
    ) -> Result<Self, Error> {
        let first = tables()?;
        let tables_size = first.tables.len().saturating_add(TABLES_ROOM).next_multiple_of(4096);
        let mut files: Vec<(&'static str, Content, usize)> = vec![
            (acpi::LOADER_FILE, Content::Script, first.script.len()),
            (acpi::RSDP_FILE, Content::Rsdp, first.rsdp.len()),
            (acpi::TABLES_FILE, Content::AcpiTables, tables_size),
        ];
        let mut all = BTreeMap::new();
        all.insert(SIGNATURE, Content::Fixed(b"QEMU".to_vec()));
        all.insert(ID, Content::Fixed(FEATURES.to_le_bytes().to_vec()));
        for (name, bytes) in items {
            match name {
                Name::Key(key) => drop(all.insert(key, Content::Fixed(bytes))),
                Name::File(BOOT_ORDER) => {
                    let (first, then) = of_one_size(first_order.take(), bytes);
                    let size = then.len();
                    files.push((BOOT_ORDER, Content::Order(first, then), size));
                }
                Name::File(name) => files.push((name, Content::Fixed(bytes.clone()), bytes.len())),
            }
        }
        files.sort_unstable_by_key(|(name, ..)| *name);
        let mut directory = u32::try_from(files.len()).unwrap_or(0).to_be_bytes().to_vec();
        for ((name, content, size), key) in files.into_iter().zip(FIRST_FILE..) {
            directory.extend(entry(name, key, size));
            all.insert(key, content);
        }
        all.insert(DIRECTORY, Content::Fixed(directory));
        Ok(Self { ram, items: all, tables, tables_size, state: Mutex::new(POWER_ON) })
    }

    /// Back to power-on.
    pub fn reset(&self) {
        *self.lock() = State { again: true, ..POWER_ON };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, state: &mut State, key: u16) {
        (state.selected, state.at) = (key, 0);
        let made = match self.items.get(&key) {
            Some(Content::Script) => true,
            Some(Content::Rsdp | Content::AcpiTables) => state.tables.is_none(),
            _ => false,
        };
        if made {
            match (self.tables)() {
                Ok(mut tables) => {
                    tables.tables.resize(self.tables_size, 0);
                    state.tables = Some(tables);
                }
                Err(error) => tracing::error!("ACPI tables for the firmware: {error}"),
            }
        }
    }

    /// What is left of the selected item. Behind its end there are zeroes for ever.
    fn left<'s>(&'s self, state: &'s State) -> &'s [u8] {
        let tables = state.tables.as_ref();
        let bytes: &[u8] = match self.items.get(&state.selected) {
            Some(Content::Fixed(bytes)) => bytes,
            Some(Content::Order(first, then)) => {
                if state.again {
                    then
                } else {
                    first
                }
            }
            Some(Content::Script) => tables.map_or(&[], |tables| &tables.script),
            Some(Content::Rsdp) => tables.map_or(&[], |tables| &tables.rsdp),
            Some(Content::AcpiTables) => tables.map_or(&[], |tables| &tables.tables),
            None => &[],
        };
        bytes.get(state.at..).unwrap_or_default()
    }

    /// The next bytes.
    fn take(&self, state: &mut State, data: &mut [u8]) {
        data.fill(0);
        data.iter_mut().zip(self.left(state)).for_each(|(slot, byte)| *slot = *byte);
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
            self.take(state, &mut data);
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
            DATA => self.take(&mut self.lock(), data),
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

/// Both orders, as the directory has one size for them. Each ends with a NUL, and more of them change nothing.
fn of_one_size(first: Option<Vec<u8>>, mut then: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut first = first.unwrap_or_else(|| then.clone());
    let size = first.len().max(then.len());
    first.resize(size, 0);
    then.resize(size, 0);
    (first, then)
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
