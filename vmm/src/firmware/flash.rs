//! The flash chip that holds the firmware's variables: Intel's command set, a byte wide (JEDEC JEP137, command set 0001h;
//! Intel StrataFlash 28F128J3A), as OVMF's QemuFlashFvbServices drives it.
//!
//! ```text
//!              command                       0xFF
//!   array -------------> status, ids, query ------> array
//!                        program -- byte --> status
//!                        erase -- 0xD0 ----> status
//! ```
//!
//! In array mode the guest reads the content as memory, and only its writes exit. In any other mode its reads exit too.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::read_only::ReadOnly;
use super::{BLOCK, Error, VariableStore};
use crate::Action;
use crate::bus::BusDevice;
use crate::vm::Vm;

/// Commands.
const PROGRAM: u8 = 0x10;
const PROGRAM_ALTERNATE: u8 = 0x40;
const ERASE: u8 = 0x20;
const ERASE_CONFIRM: u8 = 0xd0;
const CLEAR_STATUS: u8 = 0x50;
const READ_STATUS: u8 = 0x70;
const READ_IDS: u8 = 0x90;
const QUERY: u8 = 0x98;
const READ_ARRAY: u8 = 0xff;

/// Status register.
const READY: u8 = 1 << 7;
const ERASE_FAILED: u8 = 1 << 5;
const PROGRAM_FAILED: u8 = 1 << 4;

const ERASED: u8 = 0xff;
/// Intel, 28F128J3A.
const IDS: [u8; 2] = [0x89, 0x18];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Array,
    Status,
    Ids,
    Query,
    /// The next write is what to program.
    Program,
    /// The next write confirms.
    Erase,
}

struct Chip {
    memory: ReadOnly,
    store: VariableStore,
    mode: Mode,
    status: u8,
    /// Changed, and not yet with the store.
    pending: Option<Range<usize>>,
}

/// The chip.
pub struct Flash {
    size: usize,
    chip: Mutex<Chip>,
}

impl Flash {
    /// A chip with what `store` holds, at a guest physical address.
    pub fn new(vm: &Arc<Vm>, store: VariableStore, guest_address: u64) -> Result<Self, Error> {
        let failed = |doing| {
            move |error: &dyn std::fmt::Display| Error::io(doing)(io::Error::other(error.to_string()))
        };
        let size = store.image().len();
        let region = MmapRegion::new(size).map_err(|error| failed("Making the flash memory")(&error))?;
        region
            .as_volatile_slice()
            .write_slice(store.image(), 0)
            .map_err(|error| failed("Filling the flash memory")(&error))?;
        let mut memory = ReadOnly::new(vm, region, guest_address);
        memory.show()?;
        let chip = Chip { memory, store, mode: Mode::Array, status: READY, pending: None };
        Ok(Self { size, chip: Mutex::new(chip) })
    }

    /// Back to power-on: the content stays.
    pub fn reset(&self) {
        let mut chip = self.lock();
        chip.status = READY;
        chip.enter(Mode::Array);
    }

    /// Brings everything to its place in the store. The chip still works afterwards.
    pub fn close(&self) {
        let mut chip = self.lock();
        chip.enter(Mode::Array);
        if let Err(error) = chip.store.checkpoint() {
            tracing::error!("Writing the firmware's variables: {error}; they are kept in the file's log");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An offset into the content.
    fn at(&self, offset: u64) -> Option<usize> {
        usize::try_from(offset).ok().filter(|at| *at < self.size)
    }
}

impl BusDevice for Flash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(at) = self.at(offset) else { return };
        let chip = self.lock();
        match chip.mode {
            // Between a switch by one processor and a read that another began before it, or where KVM refused the slot.
            Mode::Array => drop(chip.memory.bytes().read(data, at)),
            Mode::Ids => fill(data, at, |at| IDS.get(at & 0xff).copied().unwrap_or(0)),
            Mode::Query => fill(data, at, |at| query(at & 0xff, self.size)),
            Mode::Status | Mode::Program | Mode::Erase => data.fill(chip.status),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let (Some(at), Some(first)) = (self.at(offset), data.first()) else { return Action::None };
        let mut chip = self.lock();
        match chip.mode {
            Mode::Program => chip.program(at, data.get(..self.size - at).unwrap_or(data)),
            Mode::Erase => chip.erase(at, *first),
            Mode::Array | Mode::Status | Mode::Ids | Mode::Query => chip.command(*first),
        }
        Action::None
    }
}

fn fill(data: &mut [u8], at: usize, byte: impl Fn(usize) -> u8) {
    for (slot, at) in data.iter_mut().zip(at..) {
        *slot = byte(at);
    }
}

impl Chip {
    fn command(&mut self, command: u8) {
        match command {
            PROGRAM | PROGRAM_ALTERNATE => self.enter(Mode::Program),
            ERASE => self.enter(Mode::Erase),
            READ_STATUS => self.enter(Mode::Status),
            READ_IDS => self.enter(Mode::Ids),
            QUERY => self.enter(Mode::Query),
            CLEAR_STATUS => {
                // All of it, the ready bit as well: OVMF knows by that zero that this is a flash chip.
                self.status = 0;
                self.enter(Mode::Array);
            }
            READ_ARRAY => self.enter(Mode::Array),
            other => {
                tracing::debug!("The flash chip has no command {other:#x}");
                self.enter(Mode::Array);
            }
        }
    }

    /// Changes the mode. On the way back to array mode what was changed goes to the disk: drivers read what they wrote last.
    fn enter(&mut self, mode: Mode) {
        let shown = match (self.mode, mode) {
            (Mode::Array, Mode::Array) => Ok(()),
            (_, Mode::Array) => {
                self.hand_over();
                if let Err(error) = self.store.sync() {
                    self.failed(&error);
                }
                self.memory.show()
            }
            (Mode::Array, _) => self.memory.hide(),
            _ => Ok(()),
        };
        self.mode = mode;
        if let Err(error) = shown {
            tracing::error!("The flash chip of the firmware's variables: {error}");
        }
    }

    /// A real chip can only clear bits; that the byte is what was written, whatever was there, is what OVMF sees on QEMU.
    fn program(&mut self, at: usize, data: &[u8]) {
        let end = at.saturating_add(data.len());
        if self.memory.bytes().write_slice(data, at).is_err() {
            self.status |= READY | PROGRAM_FAILED;
        } else {
            self.status |= READY;
            self.changed(at..end);
        }
        self.enter(Mode::Status);
    }

    fn erase(&mut self, at: usize, confirmation: u8) {
        let block = usize::try_from(BLOCK).unwrap_or(1);
        let start = at - at % block;
        if confirmation != ERASE_CONFIRM {
            self.status |= READY | ERASE_FAILED | PROGRAM_FAILED;
        } else if self.memory.bytes().write_slice(&vec![ERASED; block], start).is_err() {
            self.status |= READY | ERASE_FAILED;
        } else {
            self.status |= READY;
            self.changed(start..start.saturating_add(block));
            self.hand_over();
        }
        self.enter(Mode::Status);
    }

    /// What is programmed byte by byte goes to the store in one piece; what does not continue it begins another, so that
    /// the store has the changes in their order.
    fn changed(&mut self, range: Range<usize>) {
        match &mut self.pending {
            Some(pending) if (pending.start..=pending.end).contains(&range.start) => {
                pending.end = pending.end.max(range.end);
            }
            Some(_) => {
                self.hand_over();
                // What could not be handed over is everything by now.
                self.pending.get_or_insert(range);
            }
            None => self.pending = Some(range),
        }
    }

    fn hand_over(&mut self) {
        let Some(range) = self.pending.take() else { return };
        let mut bytes = vec![0; range.len()];
        let read = self.memory.bytes().read_slice(&mut bytes, range.start).map_err(io::Error::other);
        let same = self.store.image().get(range.clone()) == Some(bytes.as_slice());
        if !same && let Err(error) = read.and_then(|()| self.store.append(range.start, &bytes)) {
            self.failed(&error);
        }
    }

    /// Nothing is lost as long as the guest runs: next time all of the content is handed over.
    fn failed(&mut self, error: &io::Error) {
        tracing::error!(
            "The firmware's variables cannot be written: {error}; it is tried again at the next change"
        );
        self.status |= PROGRAM_FAILED;
        self.pending = Some(0..self.store.image().len());
    }
}

/// The answer to a query (JEP137; CFI 2.0): one region of 4 KiB blocks, no write buffer.
fn query(at: usize, size: usize) -> u8 {
    let blocks = u16::try_from((size >> 12).saturating_sub(1)).unwrap_or(u16::MAX).to_le_bytes();
    match at {
        0x10 => b'Q',
        0x11 => b'R',
        0x12 => b'Y',
        // Command set 0001h, and an extended table at 0x31 that is empty.
        0x13 => 0x01,
        0x15 => 0x31,
        // 4.5 V to 5.5 V; 2^7 us a byte, 2^10 ms a block, and 2^4 times that at most.
        0x1b => 0x45,
        0x1c => 0x55,
        0x1f => 0x07,
        0x21 => 0x0a,
        0x23 | 0x25 => 0x04,
        0x27 => u8::try_from(size.next_power_of_two().trailing_zeros()).unwrap_or(0),
        0x2c => 1,
        0x2d => blocks[0],
        0x2e => blocks[1],
        // Blocks of 0x10 * 256 bytes.
        0x2f => 0x10,
        _ => 0,
    }
}
