//! The file that keeps a flash chip's content: an image as the firmware's build makes it, and behind it a log of what has
//! changed since.
//!
//! ```text
//!   0                size of the chip
//!   +----------------+--------+--------+----
//!   | image          | record | record | ...      while the guest runs
//!   +----------------+--------+--------+----
//! ```
//!
//! A change is appended as a record and brought to the disk; only when records are there for good do their bytes go to
//! their places in the image, and only when those are there does the log end. So wherever a crash hits, image and the
//! log's whole records are the content after some change, and all later ones are missing: what a chip whose power fails
//! is, too, and what firmware copes with. A guest that ended leaves the plain image, which other programs read as well.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{BLOCK, Error};

/// Begins every record.
const MAGIC: [u8; 4] = *b"TWVR";
/// Magic, checksum, offset in the image, length; little-endian, 4 bytes each.
const HEADER: usize = 16;
/// A log that is longer is brought into the image.
const LONGEST_LOG: u64 = 1 << 20;

/// The file of one chip, locked while this lives.
#[derive(Debug)]
pub struct VariableStore {
    file: File,
    size: u64,
    /// Where the next record goes.
    end: u64,
    image: Vec<u8>,
    /// Of the image's blocks, those that the log says more of.
    stale: Vec<bool>,
}

impl VariableStore {
    /// Locks the file of a chip with `size` bytes, and brings what is left of a crash into its image.
    pub fn open(file: File, size: u64) -> Result<Self, Error> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse),
            Err(TryLockError::Error(error)) => {
                return Err(Error::io("Locking the firmware's variables")(error));
            }
        }
        let failed = || Error::io("Reading the firmware's variables");
        let length = usize::try_from(size).map_err(|error| failed()(io::Error::other(error)))?;
        let mut image = vec![0; length];
        file.read_exact_at(&mut image, 0).map_err(failed())?;
        let blocks = length.div_ceil(block());
        let mut store = Self { file, size, end: size, image, stale: vec![false; blocks] };
        let logged = store.file.metadata().map_err(failed())?.len().saturating_sub(size);
        if logged > 0 {
            let records = store.replay(logged).map_err(failed())?;
            if records > 0 {
                tracing::warn!(
                    "A guest ended badly: {records} changes of its firmware's variables are brought in"
                );
            }
            store.checkpoint().map_err(Error::io("Writing the firmware's variables"))?;
        }
        Ok(store)
    }

    /// The content.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Takes over the log's records up to the first that is not whole.
    fn replay(&mut self, logged: u64) -> io::Result<u32> {
        // A log is never longer than this; what follows is not ours.
        let most = LONGEST_LOG.saturating_add(2 * self.size);
        let mut log = vec![0; usize::try_from(logged.min(most)).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut log, self.size)?;
        let (mut rest, mut records) = (log.as_slice(), 0);
        while let Some((range, data, after)) = record(rest, self.image.len()) {
            if let Some(place) = self.image.get_mut(range.clone()) {
                place.copy_from_slice(data);
            }
            self.mark(range);
            rest = after;
            records += 1;
        }
        self.end = self.size.saturating_add(u64::try_from(log.len() - rest.len()).unwrap_or(0));
        Ok(records)
    }

    /// Appends a change of the content at `offset`. It is there after a crash of this program, and after
    /// [`sync`](Self::sync) after a crash of the host.
    pub fn append(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        let out = || io::Error::other("the change leaves the chip");
        let range = offset..offset.checked_add(data.len()).ok_or_else(out)?;
        let place = self.image.get_mut(range.clone()).ok_or_else(out)?;
        if data.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(HEADER + data.len());
        bytes.extend(MAGIC);
        bytes.extend([0; 4]);
        for number in [offset, data.len()] {
            bytes.extend(u32::try_from(number).map_err(io::Error::other)?.to_le_bytes());
        }
        bytes.extend(data);
        let sum = checksum(bytes.get(8..).unwrap_or_default()).to_le_bytes();
        bytes.iter_mut().skip(4).zip(sum).for_each(|(slot, byte)| *slot = byte);
        self.file.write_all_at(&bytes, self.end)?;
        self.end = self.end.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        place.copy_from_slice(data);
        self.mark(range);
        Ok(())
    }

    /// Waits until all changes are on the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.end.saturating_sub(self.size) > LONGEST_LOG {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Brings the log into the image, and ends it.
    pub fn checkpoint(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        for (index, _) in self.stale.iter().enumerate().filter(|(_, stale)| **stale) {
            let start = index.saturating_mul(block());
            let end = start.saturating_add(block()).min(self.image.len());
            let bytes = self.image.get(start..end).unwrap_or_default();
            self.file.write_all_at(bytes, u64::try_from(start).map_err(io::Error::other)?)?;
        }
        self.file.sync_data()?;
        self.file.set_len(self.size)?;
        self.file.sync_all()?;
        self.stale.fill(false);
        self.end = self.size;
        Ok(())
    }

    fn mark(&mut self, range: Range<usize>) {
        let blocks = range.start / block()..range.end.div_ceil(block());
        for stale in self.stale.get_mut(blocks).unwrap_or_default() {
            *stale = true;
        }
    }
}

fn block() -> usize {
    usize::try_from(BLOCK).unwrap_or(usize::MAX)
}

/// The record at the start of a log: where it goes, its bytes, and what follows. `None` where there is none that is whole.
fn record(log: &[u8], size: usize) -> Option<(Range<usize>, &[u8], &[u8])> {
    let (header, rest) = log.split_at_checked(HEADER)?;
    let word = |at: usize| header.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let (sum, offset, length) = (word(4)?, usize::try_from(word(8)?).ok()?, usize::try_from(word(12)?).ok()?);
    let (data, after) = rest.split_at_checked(length)?;
    let end = offset.checked_add(length).filter(|end| *end <= size && length > 0)?;
    let summed = log.get(8..HEADER.checked_add(length)?)?;
    (header.starts_with(&MAGIC) && checksum(summed) == sum).then_some((offset..end, data, after))
}

/// CRC-32C (RFC 3720, 12.1).
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 3 * 4096;
    const LENGTH: u64 = 3 * BLOCK;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_checksum_is_the_one_that_is_known() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_clean_end_leaves_the_plain_image() {
        let file = file(&[0xff; SIZE]);
        let mut store = VariableStore::open(file.try_clone().unwrap(), LENGTH).unwrap();
        store.append(4000, &[1; 200]).unwrap();
        store.append(4100, &[2; 4]).unwrap();
        store.sync().unwrap();
        assert_eq!(content(&file)[..SIZE], [0xff; SIZE], "the image waits");
        store.checkpoint().unwrap();
        let mut expected = vec![0xff; SIZE];
        expected[4000..4200].fill(1);
        expected[4100..4104].fill(2);
        assert_eq!(content(&file), expected);
        assert_eq!(store.image(), expected);
    }

    #[test]
    fn two_guests_cannot_have_one_file() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(LENGTH).unwrap();
        let open = || {
            VariableStore::open(File::options().read(true).write(true).open(named.path()).unwrap(), LENGTH)
        };
        let first = open().unwrap();
        assert!(matches!(open(), Err(Error::InUse)));
        drop(first);
        assert!(open().is_ok());
    }

    #[test]
    fn a_long_log_is_brought_in() {
        let file = file(&[0; SIZE]);
        let mut store = VariableStore::open(file.try_clone().unwrap(), LENGTH).unwrap();
        for turn in 0..300_u32 {
            store.append(0, &[turn.to_le_bytes()[0]; 4096]).unwrap();
            store.sync().unwrap();
            assert!(file.metadata().unwrap().len() < LENGTH + LONGEST_LOG + 2 * 4096);
        }
    }

    proptest! {
        /// Cut anywhere, and with the last bytes garbled, the content is what it was after some of the changes.
        #[test]
        fn a_crash_leaves_a_state_that_was(
            changes in prop::collection::vec((0..SIZE, prop::collection::vec(any::<u8>(), 1..64)), 0..8),
            cut in 0..1000_u64,
            garble: Option<u8>,
        ) {
            let file = file(&[0xff; SIZE]);
            let mut store = VariableStore::open(file.try_clone().unwrap(), LENGTH).unwrap();
            let mut states = vec![store.image().to_vec()];
            for (offset, data) in &changes {
                let fits = offset + data.len() <= SIZE;
                prop_assert_eq!(store.append(*offset, data).is_ok(), fits);
                states.push(store.image().to_vec());
            }
            drop(store);
            let log = file.metadata().unwrap().len() - LENGTH;
            let kept = log * cut / 1000;
            file.set_len(LENGTH + kept).unwrap();
            if let (Some(garbage), Some(last)) = (garble, kept.checked_sub(1)) {
                file.write_all_at(&[garbage], LENGTH + last).unwrap();
            }
            file.unlock().unwrap();
            let store = VariableStore::open(file.try_clone().unwrap(), LENGTH).unwrap();
            prop_assert!(states.contains(&store.image().to_vec()));
            prop_assert_eq!(content(&file), store.image());
        }

        #[test]
        fn no_log_can_panic(log: Vec<u8>, magic: bool) {
            let start: &[u8] = if magic { &MAGIC } else { &[] };
            let file = file(&[&[0; SIZE], start, &log].concat());
            let store = VariableStore::open(file.try_clone().unwrap(), LENGTH).unwrap();
            prop_assert_eq!(content(&file), store.image());
        }
    }
}
