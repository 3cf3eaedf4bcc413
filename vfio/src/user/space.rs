//! What of the guest's memory a server may reach.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connection::Connection;
use super::wire::{Command, Payload};
use crate::function::{DmaSource, Error, IoAddressSpace};

const PAGE: u64 = 4096;
/// For reading and for writing.
const READ_WRITE: u32 = 3;

/// The memory that one server was given: it maps the files, so that it must hold to what it is told.
pub(super) struct UserSpace {
    connection: Arc<Connection>,
    /// Length by start.
    maps: Mutex<BTreeMap<u64, u64>>,
}

impl UserSpace {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, maps: Mutex::default() }
    }

    fn failed(&self, doing: String, errno: i32) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        Error::Io { function: self.connection.label().to_owned(), doing, source }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `size` bytes at `iova` touch one of `maps`; `None` when they are no pages, or wrap.
fn overlaps(maps: &BTreeMap<u64, u64>, iova: u64, size: u64) -> Option<bool> {
    if size == 0 || !iova.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
        return None;
    }
    let last = iova.checked_add(size - 1)?;
    let below = maps.range(..=last).next_back();
    Some(below.is_some_and(|(start, length)| start.saturating_add(*length) > iova))
}

impl IoAddressSpace for UserSpace {
    /// All: a server has no IOMMU whose holes would matter.
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        std::iter::once(0..=u64::MAX).collect()
    }

    /// A server maps the file as anybody does.
    fn pins(&self) -> bool {
        false
    }

    unsafe fn map(&self, iova: u64, size: u64, source: DmaSource<'_>) -> Result<(), Error> {
        let doing = || format!("mapping {size:#x} bytes at I/O address {iova:#x}");
        let Some((file, offset)): Option<(BorrowedFd<'_>, u64)> = source.file else {
            return Err(self.connection.invalid(format!(
                "{}: the memory has no file that its server could map (use memory that is shared)",
                doing()
            )));
        };
        let mut maps = self.lock();
        match overlaps(&maps, iova, size) {
            Some(false) => {}
            Some(true) => return Err(self.failed(doing(), libc::EEXIST)),
            None => return Err(self.failed(doing(), libc::EINVAL)),
        }
        let payload = Payload::new().u32(32).u32(READ_WRITE).u64(offset).u64(iova).u64(size);
        self.connection.call(Command::DmaMap, payload, &[file], doing)?;
        maps.insert(iova, size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        let doing = || format!("unmapping {size:#x} bytes at I/O address {iova:#x}");
        let mut maps = self.lock();
        if maps.get(&iova) != Some(&size) {
            return Err(self.failed(doing(), libc::ENOENT));
        }
        let payload = Payload::new().u32(24).u32(0).u64(iova).u64(size);
        self.connection.call(Command::DmaUnmap, payload, &[], doing)?;
        maps.remove(&iova);
        Ok(())
    }
}
