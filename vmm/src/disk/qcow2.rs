//! qcow2 through the library `imago`, and any disk with backing files.
//!
//! The library reads what a stranger wrote. It is given opened files only and a gate that opens none, its memory is
//! bounded by what [`super::Qcow2Header`] lets pass, and a panic of its own ends at [`guarded`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::{Access, DiskImage, Error, Extent, Format, Layer};

type Inner = FormatAccess<Storage>;

/// A disk of several layers, or of one in qcow2.
pub(super) struct Qcow2Image {
    inner: RwLock<Inner>,
    size: AtomicU64,
    writable: bool,
    /// The library fell over: what it has in memory is not to be trusted any more.
    broken: AtomicBool,
}

/// Opens the layers, the uppermost first.
pub(super) fn open(layers: Vec<Layer>, access: Access, direct: bool) -> Result<Qcow2Image, Error> {
    let mut below: Option<Inner> = None;
    for (index, layer) in layers.into_iter().enumerate().rev() {
        let writable = index == 0 && access == Access::Write;
        let Layer { file, format, path } = layer;
        let opened = guarded(|| open_layer(file, format, writable, direct, below.take()));
        below = Some(opened.map_err(Error::io("Reading the metadata of", &path))?);
    }
    let inner = below.ok_or_else(|| Error::refused(Path::new("-"), "has no files"))?;
    Ok(Qcow2Image::new(inner, access == Access::Write))
}

fn open_layer(
    file: std::fs::File,
    format: Format,
    writable: bool,
    direct: bool,
    below: Option<Inner>,
) -> io::Result<Inner> {
    let storage = storage(file, writable, direct)?;
    let gate = DenyImplicitOpenGate::default();
    match format {
        Format::Raw => Ok(FormatAccess::new(Raw::builder(storage).write(writable).open(gate)?)),
        Format::Qcow2 => {
            let builder = Qcow2::<Storage>::builder(storage).write(writable).backing(below).data_file(None);
            Ok(FormatAccess::new(builder.open(gate)?))
        }
    }
}

/// A file for the library.
pub(super) fn storage(file: std::fs::File, writable: bool, direct: bool) -> io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().write(writable).direct(direct))
}

/// Calls the library. A panic there is an error here.
pub(super) fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its metadata make no sense: look at it with qemu-img check",
        ))
    })
}

impl Qcow2Image {
    pub(super) fn new(inner: Inner, writable: bool) -> Self {
        let size = AtomicU64::new(inner.size());
        Self { inner: RwLock::new(inner), size, writable, broken: AtomicBool::new(false) }
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its metadata made no sense before"));
        }
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Release);
            Err(io::Error::new(io::ErrorKind::InvalidData, "its metadata make no sense"))
        })
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.size());
        if fits && self.writable { Ok(()) } else { Err(rustix::io::Errno::INVAL.into()) }
    }
}

impl DiskImage for Qcow2Image {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.call(|| self.inner().read(bytes, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        self.call(|| self.inner().write(bytes, offset))
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.check(offset, length)?;
        if unmap {
            // Moves clusters under those who read: nobody else may be in there.
            let freed = self.call(|| {
                self.inner.write().unwrap_or_else(PoisonError::into_inner).discard_to_zero(offset, length)
            });
            match freed {
                // Version 2 cannot.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        self.call(|| self.inner().write_zeroes(offset, length))
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        let freed = self.call(|| {
            self.inner.write().unwrap_or_else(PoisonError::into_inner).discard_to_any(offset, length)
        });
        match freed {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.call(|| {
            let inner = self.inner();
            // Tables that find no space are written when there is.
            inner.flush()?;
            inner.sync().map_err(super::raw::lost)
        })
    }

    fn extent(&self, offset: u64) -> io::Result<(Extent, u64)> {
        let rest = self.size().saturating_sub(offset);
        let (extent, length) = self.call(|| {
            let inner = self.inner();
            let (mapping, length) = inner.get_mapping(offset, rest)?;
            let zero = matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
            Ok((if zero { Extent::Zero } else { Extent::Data }, length))
        })?;
        // At the end there is nothing, and nobody shall wait for it to become more.
        Ok((extent, if length == 0 { rest } else { length.min(rest) }))
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        let before = self.size();
        self.call(|| {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            if size < before {
                return inner.resize_shrink(size);
            }
            // Zeroes, lest a longer backing file shows through.
            inner.resize_grow(size, PreallocateMode::Zero)
        })?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }
}
