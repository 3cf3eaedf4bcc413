//! A raw disk past the host's page cache, on a host that takes single sectors.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::qcow2::Qcow2Image;
use super::{DiskImage, Extent, Plain, RawImage};

/// Of addresses, offsets and lengths.
const SECTOR: usize = 512;
/// Copied at once where a buffer is not aligned.
const BOUNCE: usize = 128 << 10;

/// A raw disk that was opened with `O_DIRECT`. Buffers are copied where they are not at an address that the host's disk takes.
pub(super) struct DirectImage {
    raw: RawImage,
    /// For what is not of whole sectors, which guests never ask for.
    aligning: Qcow2Image,
}

impl DirectImage {
    /// Both are of one file, which [`takes_sectors`].
    pub(super) fn new(raw: RawImage, aligning: Qcow2Image) -> Self {
        Self { raw, aligning }
    }
}

/// Whether the host reads single sectors of `file`, which has `O_DIRECT`. Where it does not, a write of one is a read of more,
/// and two of those at once lose one: whoever aligns must know of all of them.
///
/// Tried, as no call tells for all filesystems and all kernels.
pub(super) fn takes_sectors(file: &File) -> bool {
    let mut bytes = [0; 3 * SECTOR];
    // At an address that is a multiple of 512, and of nothing more.
    let skipped = bytes.as_ptr().align_offset(2 * SECTOR);
    let at = if skipped <= SECTOR { skipped.saturating_add(SECTOR) } else { skipped.saturating_sub(SECTOR) };
    let Some(sector) = bytes.get_mut(at..at.saturating_add(SECTOR)) else { return false };
    file.read_at(sector, 512).is_ok()
}

fn is_whole(bytes: &[u8], offset: u64) -> bool {
    bytes.len().is_multiple_of(SECTOR) && offset.is_multiple_of(512)
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(SECTOR) == 0
}

/// Calls `each` with pieces of an aligned buffer, and how much was done before.
fn bounced(length: usize, mut each: impl FnMut(&mut [u8], usize) -> io::Result<()>) -> io::Result<()> {
    let room = length.min(BOUNCE);
    let mut bytes = vec![0; room.saturating_add(SECTOR)];
    let skipped = bytes.as_ptr().align_offset(SECTOR);
    let mut done = 0_usize;
    while done < length {
        let count = room.min(length - done);
        let piece = bytes.get_mut(skipped..skipped.saturating_add(count));
        each(piece.ok_or(io::ErrorKind::OutOfMemory)?, done)?;
        done = done.saturating_add(count);
    }
    Ok(())
}

fn behind(offset: u64, done: usize) -> u64 {
    offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX))
}

impl DiskImage for DirectImage {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if !is_whole(bytes, offset) {
            return self.aligning.read_at(bytes, offset);
        }
        if is_aligned(bytes) {
            return self.raw.read_at(bytes, offset);
        }
        bounced(bytes.len(), |piece, done| {
            self.raw.read_at(piece, behind(offset, done))?;
            let target = bytes.get_mut(done..done.saturating_add(piece.len()));
            target.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(piece);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !is_whole(bytes, offset) {
            return self.aligning.write_at(bytes, offset);
        }
        if is_aligned(bytes) {
            return self.raw.write_at(bytes, offset);
        }
        bounced(bytes.len(), |piece, done| {
            let source = bytes.get(done..done.saturating_add(piece.len()));
            piece.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
            self.raw.write_at(piece, behind(offset, done))
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if !offset.is_multiple_of(512) || !length.is_multiple_of(512) {
            return self.aligning.write_zeroes(offset, length, unmap);
        }
        self.raw.write_zeroes(offset, length, unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.raw.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.raw.flush()
    }

    fn extent(&self, offset: u64) -> io::Result<(Extent, u64)> {
        self.raw.extent(offset)
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        self.aligning.resize(size)?;
        self.raw.resize(size)
    }

    fn plain(&self) -> Option<Plain<'_>> {
        self.raw.plain().map(|plain| Plain { alignment: SECTOR, ..plain })
    }
}
