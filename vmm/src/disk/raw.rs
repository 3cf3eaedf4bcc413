//! A disk as one plain file or block device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, seek};
use rustix::io::Errno;

use super::{DiskImage, Extent, Plain, chain};

/// Aligned, for files that were opened with `O_DIRECT`.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);

static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// A raw disk. A file that was opened with `O_DIRECT` takes aligned buffers only.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    size: AtomicU64,
}

impl RawImage {
    /// Takes the size from the file.
    pub fn new(file: File) -> io::Result<Self> {
        let size = AtomicU64::new(chain::raw_size(&file)?);
        Ok(Self { file, size })
    }

    fn in_bounds(&self, offset: u64, length: u64) -> io::Result<()> {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.size());
        if fits { Ok(()) } else { Err(Errno::INVAL.into()) }
    }
}

/// A file that could not be made durable for want of space has lost what was written: the kernel says so once, and trying
/// again would pass for success. No error of space, then, which are tried again.
pub(crate) fn lost(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            io::Error::other(format!("what was written is lost: {error}"))
        }
        _ => error,
    }
}

impl DiskImage for RawImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.read_at(bytes, offset) {
                Ok(0) => {
                    bytes.fill(0);
                    break;
                }
                Ok(count) => {
                    bytes = bytes.get_mut(count..).unwrap_or_default();
                    offset = offset.saturating_add(u64::try_from(count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.in_bounds(offset, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        self.file.write_all_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.in_bounds(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        for way in ways.into_iter().skip(usize::from(!unmap)) {
            match fallocate(&self.file, way | FallocateFlags::KEEP_SIZE, offset, length) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV) => {}
                result => return Ok(result?),
            }
        }
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES.0.len());
            self.file.write_all_at(ZEROES.0.get(..count).unwrap_or_default(), at)?;
            at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.in_bounds(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length) {
            // It is a hint.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV) => Ok(()),
            result => Ok(result?),
        }
    }

    fn flush(&self) -> io::Result<()> {
        fdatasync(&self.file).map_err(|errno| lost(errno.into()))
    }

    fn extent(&self, offset: u64) -> io::Result<(Extent, u64)> {
        let rest = self.size().saturating_sub(offset);
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((Extent::Zero, (data - offset).min(rest))),
            Ok(_) => {
                let hole = seek(&self.file, SeekFrom::Hole(offset))?;
                Ok((Extent::Data, hole.saturating_sub(offset).min(rest)))
            }
            Err(Errno::NXIO) => Ok((Extent::Zero, rest)),
            // A block device, or a filesystem that does not tell.
            Err(_) => Ok((Extent::Data, rest)),
        }
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn plain(&self) -> Option<Plain<'_>> {
        Some(Plain { file: self.file.as_fd(), alignment: 1 })
    }
}
