//! Images that are made: there whole, or not at all.
//!
//! A new image has no name until [`NewImage::publish`] (`O_TMPFILE`), so that whatever ends this process before leaves
//! nothing behind. Where the filesystem has no such files, a hidden name beside the image is used and taken away again.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::qcow2::{Qcow2Image, guarded, storage};
use super::{DiskImage, Error, Format, LARGEST, RawImage};

/// What of a new image is set aside on the host's disk from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocate {
    /// Nothing: it grows as it is written.
    Off,
    /// All of it, so that it can never be too late to find the host's disk full.
    Full,
}

/// An image that nobody sees yet.
#[derive(Debug)]
pub struct NewImage {
    file: File,
    path: PathBuf,
    /// Its hidden name, where it has to have one.
    hidden: Option<PathBuf>,
}

impl NewImage {
    /// Begins an image that will be `path`.
    pub fn begin(path: &Path) -> Result<Self, Error> {
        let folder = folder(path);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let failed = || Error::io("Making the image", path);
        match rustix::fs::openat(CWD, folder, flags | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(Self { file: file.into(), path: path.to_owned(), hidden: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(errno) => return Err(failed()(errno.into())),
        }
        let hidden = hidden_name(path);
        let file = rustix::fs::openat(CWD, &hidden, flags | OFlags::CREATE | OFlags::EXCL, mode)
            .map_err(|errno| failed()(errno.into()))?;
        Ok(Self { file: file.into(), path: path.to_owned(), hidden: Some(hidden) })
    }

    /// Makes it a raw disk of `size` zeroes.
    pub fn raw(&self, size: u64, preallocate: Preallocate) -> Result<Box<dyn DiskImage>, Error> {
        self.bounded(size)?;
        let failed = || Error::io("Making the image", &self.path);
        self.file.set_len(size).map_err(failed())?;
        if preallocate == Preallocate::Full && size > 0 {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size)
                .map_err(|errno| failed()(errno.into()))?;
        }
        let file = self.file.try_clone().map_err(failed())?;
        Ok(Box::new(RawImage::new(file).map_err(failed())?))
    }

    /// Makes it a qcow2 image of `size` zeroes, or of what `backing` has: its name as the header shall have it, and its
    /// format. `cluster_size` is a power of two from 512 to 2 MiB.
    pub fn qcow2(
        &self,
        size: u64,
        cluster_size: u32,
        backing: Option<(String, Format)>,
        preallocate: Preallocate,
    ) -> Result<Box<dyn DiskImage>, Error> {
        self.bounded(size)?;
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return Err(Error::refused(
                &self.path,
                "can have clusters of a power of two from 512 bytes to 2 MiB",
            ));
        }
        if backing.is_some() && preallocate == Preallocate::Full {
            return Err(Error::refused(&self.path, "stands on another image and cannot be set aside whole"));
        }
        let make = || {
            let storage = storage(self.file.try_clone()?, true, false)?;
            let mut builder = Qcow2::<imago::file::File>::create_builder(storage)
                .size(size)
                .cluster_size(usize::try_from(cluster_size).unwrap_or_default())
                .preallocate(match preallocate {
                    Preallocate::Off => PreallocateMode::None,
                    Preallocate::Full => PreallocateMode::FullAllocate,
                });
            if let Some((name, format)) = backing {
                builder = builder.backing(name, format.name().to_owned());
            }
            let image = builder.create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::builder(image).backing(None).write(true))
            })?;
            Ok(Qcow2Image::new(FormatAccess::new(image), true))
        };
        Ok(Box::new(guarded(make).map_err(Error::io("Making the image", &self.path))?))
    }

    /// Makes it durable and gives it its name. What had that name stays, unless `replace` says otherwise.
    pub fn publish(mut self, replace: bool) -> Result<(), Error> {
        let failed = || Error::io("Making the image", &self.path);
        self.file.sync_all().map_err(failed())?;
        if !replace && self.hidden.is_none() {
            self.link(&self.path)?;
        } else {
            let hidden = match self.hidden.clone() {
                Some(hidden) => hidden,
                None => {
                    let hidden = hidden_name(&self.path);
                    self.link(&hidden)?;
                    self.hidden = Some(hidden.clone());
                    hidden
                }
            };
            let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            match rustix::fs::renameat_with(CWD, &hidden, CWD, &self.path, flags) {
                Ok(()) => self.hidden = None,
                Err(Errno::EXIST) => return Err(there_already(&self.path)),
                Err(errno) => return Err(Error::io("Naming the image", &self.path)(errno.into())),
            }
        }
        File::open(folder(&self.path))
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("Making durable the name of", &self.path))
    }

    fn link(&self, path: &Path) -> Result<(), Error> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(there_already(&self.path)),
            Err(errno) => Err(Error::io("Naming the image", &self.path)(errno.into())),
        }
    }

    fn bounded(&self, size: u64) -> Result<(), Error> {
        if size <= LARGEST {
            return Ok(());
        }
        Err(Error::refused(
            &self.path,
            format!("cannot be a disk of {size} bytes; at most {LARGEST} are allowed"),
        ))
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // Nothing more can be done about it, and the error that led here is the one to tell.
            let _: io::Result<()> = std::fs::remove_file(hidden);
        }
    }
}

fn there_already(path: &Path) -> Error {
    Error::refused(path, "exists already, and is left as it is: say --force to replace it")
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn hidden_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}
