//! Disk images: what a guest's disk is on the host, and what `throughway image` works on.
//!
//! [`Chain::open`] opens a file and the backing files below it under the rules of [`Rules`], locks them against others,
//! and [`Chain::image`] makes a [`DiskImage`] of them. The privileged side opens; whoever has the files needs no paths.
//!
//! Invariants: what a file is is said, never guessed of its content ([`Format`]); nothing of an image's metadata opens a
//! file that the rules do not allow; a hostile image is an error, not a panic; [`DiskImage::flush`] returns once what was
//! written is durable.

mod chain;
mod check;
mod direct;
mod error;
mod header;
mod lock;
mod new;
mod qcow2;
pub(crate) mod raw;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

pub use chain::{Chain, Layer, MOST_LAYERS, Rules};
pub use check::{Findings, check};
pub use error::Error;
pub use header::Qcow2Header;
pub use lock::Access;
pub use new::{NewImage, Preallocate};
pub use raw::RawImage;

/// The largest disk: more is a mistake, or an attack on whoever allocates tables for it.
pub const LARGEST: u64 = 1 << 50;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a part of a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that someone wrote.
    Data,
    /// Reads as zeroes without having been stored.
    Zero,
}

/// A disk: `size` bytes that can be read and, unless it was opened read-only, written. All of it may be called by several
/// threads at once.
pub trait DiskImage: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `bytes` from `offset`. What lies behind the end reads as zeroes.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`; an error where that is behind the end.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes `length` bytes from `offset` zero; with `unmap` the storage may be given back.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
    /// Gives storage back where that is possible. What is read there afterwards is zeroes or as it was.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes durable what was written, as `fdatasync` does.
    fn flush(&self) -> io::Result<()>;
    /// What is at `offset`, and for how many bytes at least.
    fn extent(&self, offset: u64) -> io::Result<(Extent, u64)>;
    /// Another size in bytes. What is new is zeroes, what is cut off is lost.
    fn resize(&mut self, size: u64) -> io::Result<()>;
    /// The file that has the disk's bytes as they are, for who reads and writes there without this trait.
    fn plain(&self) -> Option<Plain<'_>> {
        None
    }
}

/// A file that has a disk's bytes at their own offsets.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Addresses and lengths of buffers are multiples of this, in bytes: 1, or 512 past the page cache.
    pub alignment: usize,
}
