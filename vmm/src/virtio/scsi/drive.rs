//! The CD drive: what each command does (SPC-4, SBC-3, MMC-6).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CDB, Medium, answers};

/// Bytes of a block, on each CD and DVD with data.
pub(super) const BLOCK: u64 = 2048;
/// What a request may read at most, in blocks: 16 MiB.
const MOST_BLOCKS: u32 = 8192;

/// Sense key, additional sense code and its qualifier (SPC-4, 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense(pub(super) u8, pub(super) u8, pub(super) u8);

impl Sense {
    pub(super) const NOTHING: Self = Self(0x00, 0x00, 0x00);
    pub(super) const EMPTY: Self = Self(0x02, 0x3a, 0x01);
    pub(super) const NO_MEDIUM: Self = Self(0x02, 0x3a, 0x02);
    pub(super) const UNREADABLE: Self = Self(0x03, 0x11, 0x00);
    pub(super) const UNKNOWN_COMMAND: Self = Self(0x05, 0x20, 0x00);
    pub(super) const OUT_OF_RANGE: Self = Self(0x05, 0x21, 0x00);
    pub(super) const INVALID_FIELD: Self = Self(0x05, 0x24, 0x00);
    pub(super) const NO_SUCH_UNIT: Self = Self(0x05, 0x25, 0x00);
    pub(super) const LOCKED: Self = Self(0x05, 0x53, 0x02);
    pub(super) const MEDIUM_CHANGED: Self = Self(0x06, 0x28, 0x00);
    pub(super) const WRITE_PROTECTED: Self = Self(0x07, 0x27, 0x00);

    /// Fixed format (SPC-4, 4.5.3).
    pub(super) fn bytes(self) -> [u8; 18] {
        let Self(key, code, qualifier) = self;
        [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0]
    }
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Done, without data.
    Done,
    /// These data.
    Data(Vec<u8>),
    /// Bytes of the medium.
    Read {
        /// The first one.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// It cannot be done.
    Refused(Sense),
}

/// The drive and what lies in it.
pub(super) struct Drive {
    serial: String,
    tray: Mutex<Tray>,
}

#[derive(Default)]
struct Tray {
    medium: Option<Arc<Medium>>,
    open: bool,
    /// The guest does not let it be opened.
    locked: bool,
    /// The medium came or went, and nobody has asked for events since.
    changed: bool,
    /// It is another one, and the guest has not been told.
    attention: bool,
    /// Somebody outside has pressed the button of a drive that is locked.
    pressed: bool,
}

impl Tray {
    /// What can be read.
    fn medium(&self) -> Option<&Arc<Medium>> {
        self.medium.as_ref().filter(|_| !self.open)
    }
}

/// The guest has locked the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Locked;

/// A command descriptor block, with zeroes behind it.
#[derive(Clone, Copy)]
pub(super) struct Cdb<'a>(pub(super) &'a [u8; CDB]);

impl Cdb<'_> {
    pub(super) fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// `count` bytes, the most significant first; at most 8.
    pub(super) fn number(self, at: usize, count: usize) -> u64 {
        (at..at.saturating_add(count)).fold(0, |sum, at| sum << 8 | u64::from(self.byte(at)))
    }

    /// An allocation length: never more than anything that is answered has.
    fn room(self, at: usize, count: usize) -> usize {
        usize::try_from(self.number(at, count)).unwrap_or(usize::MAX)
    }
}

impl Drive {
    pub(super) fn new(medium: Medium, serial: &str) -> Self {
        let serial = serial.chars().filter(char::is_ascii_graphic).take(20).collect();
        let tray = Tray { medium: Some(Arc::new(medium)), ..Tray::default() };
        Self { serial, tray: Mutex::new(tray) }
    }

    fn tray(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be read now.
    pub(super) fn medium(&self) -> Option<Arc<Medium>> {
        self.tray().medium().map(Arc::clone)
    }

    /// The medium's blocks; what is behind the image's end in the last one is zeroes.
    pub(super) fn blocks(&self) -> u64 {
        self.medium().map_or(0, |medium| medium.image.size().div_ceil(BLOCK))
    }

    pub(super) fn is_open(&self) -> bool {
        self.tray().open
    }

    pub(super) fn unlock(&self) {
        self.tray().locked = false;
    }

    /// Somebody outside puts another medium in and closes the tray, or takes the one that is there and leaves it open. A guest
    /// that has locked the drive is asked to let go, unless it is forced.
    pub(super) fn change(&self, medium: Option<Medium>, force: bool) -> Result<(), Locked> {
        let mut tray = self.tray();
        if tray.locked && !tray.open && !force {
            tray.pressed = true;
            return Err(Locked);
        }
        *tray = Tray {
            open: medium.is_none(),
            changed: true,
            attention: medium.is_some(),
            medium: medium.map(Arc::new),
            ..Tray::default()
        };
        Ok(())
    }

    /// Bytes of the medium.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        // It may have gone since the command was looked at.
        let medium = self.medium().ok_or(io::ErrorKind::NotFound)?;
        let inside = usize::try_from(medium.image.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let inside = inside.min(bytes.len());
        let (stored, behind) = bytes.split_at_mut_checked(inside).unwrap_or_default();
        behind.fill(0);
        medium.image.read_at(stored, offset)
    }

    /// Does the command for the unit of this number. What is read is for the caller to fetch.
    pub(super) fn execute(&self, unit: u16, cdb: Cdb<'_>) -> Reply {
        let result = match cdb.byte(0) {
            0x12 => self.inquiry(unit, cdb),
            0xa0 => Ok(cut(answers::units(), cdb.room(6, 4))),
            _ if unit != 0 => Err(Sense::NO_SUCH_UNIT),
            // Not said to these (SPC-4, 5.14; MMC-6, 4.1.6).
            command if !matches!(command, 0x03 | 0x46 | 0x4a) && self.take_attention() => {
                Err(Sense::MEDIUM_CHANGED)
            }
            0x03 => Ok(cut(Sense::NOTHING.bytes().to_vec(), cdb.room(4, 1))),
            0x1a => answers::mode(cdb.byte(2), self.is_locked(), false).map(|data| cut(data, cdb.room(4, 1))),
            0x5a => answers::mode(cdb.byte(2), self.is_locked(), true).map(|data| cut(data, cdb.room(7, 2))),
            0x1b => self.start_stop(cdb.byte(4)),
            0x1e => {
                self.tray().locked = cdb.byte(4) & 1 != 0;
                Ok(Reply::Done)
            }
            0x46 => {
                let data = answers::features(cdb.byte(1) & 3, cdb.number(2, 2), self.profile());
                Ok(cut(data, cdb.room(7, 2)))
            }
            0x4a => self.events(cdb),
            0xbd => Ok(cut(answers::mechanism(self.is_open()), cdb.room(8, 2))),
            command if of_medium(command) && self.medium().is_none() => {
                Err(if self.is_open() { Sense::NO_MEDIUM } else { Sense::EMPTY })
            }
            // FORMAT UNIT, and all that writes.
            0x04 | 0x0a | 0x2a | 0x2e | 0x41 | 0x8a | 0x93 | 0xaa => Err(Sense::WRITE_PROTECTED),
            0x00 | 0x2b | 0x2f => Ok(Reply::Done),
            0x25 => Ok(Reply::Data(answers::capacity(self.blocks()))),
            0x9e if cdb.byte(1) & 0x1f == 0x10 => {
                Ok(cut(answers::long_capacity(self.blocks()), cdb.room(10, 4)))
            }
            0x08 => self.transfer(
                cdb.number(1, 3) & 0x1f_ffff,
                if cdb.byte(4) == 0 { 256 } else { cdb.number(4, 1) },
            ),
            0x28 => self.transfer(cdb.number(2, 4), cdb.number(7, 2)),
            0xa8 => self.transfer(cdb.number(2, 4), cdb.number(6, 4)),
            0x88 => self.transfer(cdb.number(2, 8), cdb.number(10, 4)),
            0x43 => {
                // Older drivers say the format in the control byte.
                let format = if cdb.byte(2) & 0xf != 0 { cdb.byte(2) & 0xf } else { cdb.byte(9) >> 6 };
                let minutes = cdb.byte(1) & 2 != 0;
                answers::contents(format, minutes, cdb.byte(6), self.blocks())
                    .map(|data| cut(data, cdb.room(7, 2)))
            }
            0x51 if cdb.byte(1) & 7 == 0 => Ok(cut(answers::disc(), cdb.room(7, 2))),
            _ => Err(Sense::UNKNOWN_COMMAND),
        };
        result.unwrap_or_else(Reply::Refused)
    }

    fn is_locked(&self) -> bool {
        self.tray().locked
    }

    fn take_attention(&self) -> bool {
        std::mem::take(&mut self.tray().attention)
    }

    /// What lies in the drive (MMC-6, 5.3.1): a CD-ROM, or what is larger than one, or nothing.
    fn profile(&self) -> u16 {
        /// 80 minutes of 75 blocks a second.
        const LARGEST_CD: u64 = 80 * 60 * 75;
        match self.blocks() {
            0 => 0,
            1..=LARGEST_CD => 0x08,
            _ => 0x10,
        }
    }

    fn inquiry(&self, unit: u16, cdb: Cdb<'_>) -> Result<Reply, Sense> {
        let data = if cdb.byte(1) & 1 != 0 {
            answers::vital(cdb.byte(2), &self.serial).ok_or(Sense::INVALID_FIELD)?
        } else if cdb.byte(2) != 0 {
            return Err(Sense::INVALID_FIELD);
        } else {
            answers::inquiry(unit == 0)
        };
        Ok(cut(data, cdb.room(3, 2)))
    }

    /// START STOP UNIT: with LoEj the tray moves.
    fn start_stop(&self, how: u8) -> Result<Reply, Sense> {
        // A power condition is none of ours.
        if how >> 4 == 0 && how & 2 != 0 {
            let mut tray = self.tray();
            let opens = how & 1 == 0;
            if opens && tray.locked {
                return Err(Sense::LOCKED);
            }
            tray.changed |= tray.open != opens;
            tray.open = opens;
        }
        Ok(Reply::Done)
    }

    /// GET EVENT STATUS NOTIFICATION: polled, and of the medium only.
    fn events(&self, cdb: Cdb<'_>) -> Result<Reply, Sense> {
        const MEDIUM: u8 = 1 << 4;
        if cdb.byte(1) & 1 == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        if cdb.byte(4) & MEDIUM == 0 {
            // No event of these classes, and which ones there are.
            return Ok(cut(vec![0, 2, 0x80, MEDIUM], cdb.room(7, 2)));
        }
        let mut tray = self.tray();
        let (changed, pressed) = (std::mem::take(&mut tray.changed), std::mem::take(&mut tray.pressed));
        let event = match (changed, tray.medium()) {
            _ if pressed => 1,
            (true, Some(_)) => 2,
            (true, None) => 3,
            (false, _) => 0,
        };
        let status = u8::from(tray.open) | u8::from(tray.medium().is_some()) << 1;
        Ok(cut(vec![0, 6, 4, MEDIUM, event, status, 0, 0], cdb.room(7, 2)))
    }

    fn transfer(&self, first: u64, count: u64) -> Result<Reply, Sense> {
        if first.checked_add(count).is_none_or(|end| end > self.blocks()) {
            return Err(Sense::OUT_OF_RANGE);
        }
        if count > MOST_BLOCKS.into() {
            return Err(Sense::INVALID_FIELD);
        }
        // In bounds of the medium, which is far from the end of the numbers.
        Ok(Reply::Read { offset: first.saturating_mul(BLOCK), length: count.saturating_mul(BLOCK) })
    }
}

/// Whether a command needs a medium.
fn of_medium(command: u8) -> bool {
    matches!(command, 0x00 | 0x08 | 0x25 | 0x28 | 0x2b | 0x2f | 0x43 | 0x51 | 0x88 | 0x9e | 0xa8)
}

fn cut(mut data: Vec<u8>, room: usize) -> Reply {
    data.truncate(room);
    Reply::Data(data)
}
