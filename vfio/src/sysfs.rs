//! Reading and writing attributes below one root, with errors that name the file.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, openat, readlinkat};

use crate::PciAddress;

/// An attribute could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {source}")]
pub struct Error {
    /// `Reading`, or `Writing "vfio-pci" to`.
    pub doing: String,
    /// The file.
    pub path: String,
    /// The errno.
    pub source: io::Error,
}

impl Error {
    fn new(doing: impl Into<String>, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let (doing, path) = (doing.into(), path.display().to_string());
        move |source| Self { doing, path, source }
    }
}

/// Where sysfs is: `/sys`, or a recorded tree of another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// The tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path below the root, which `path` does not repeat.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The folder of a function.
    pub fn device(&self, address: PciAddress) -> PathBuf {
        self.path("bus/pci/devices").join(address.to_string())
    }
}

/// What an attribute says, without the newline at its end.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::new("Reading", path))?;
    Ok(text.trim_end().to_owned())
}

/// The same, where the attribute may be absent or unreadable.
pub(crate) fn read_maybe(path: &Path) -> Option<String> {
    read(path).ok()
}

/// Writes an attribute at once, as the kernel wants it.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), Error> {
    let doing = format!("Writing {:?} to", value.trim_end());
    let open = std::fs::OpenOptions::new().write(true).open(path);
    open.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(Error::new(doing, path))
}

/// The last part of what a link leads to: a driver's name, a group's number.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// A number in hexadecimal with `0x` or in decimal.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A folder that is read several times: its files are found from it, not from the root. Once it is listed, those that are not there
/// are known without asking.
pub(crate) struct Folder {
    descriptor: OwnedFd,
    list: Option<List>,
}

/// Names, all in one text, and where in it each is and what it is.
#[derive(Default)]
struct List {
    names: String,
    entries: Vec<(Range<usize>, FileType)>,
}

impl Folder {
    /// Not listed; none where there is no such folder.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        Self::open_at(CWD, path, OFlags::empty())
    }

    /// A folder in this one, not one that is linked to; listed.
    pub(crate) fn folder(&self, name: &str) -> Option<Self> {
        Some(Self::open_at(self.descriptor.as_fd(), Path::new(name), OFlags::NOFOLLOW)?.listed())
    }

    fn open_at(at: BorrowedFd<'_>, path: &Path, more: OFlags) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        let descriptor = openat(at, path, flags, Mode::empty()).ok()?;
        Some(Self { descriptor, list: None })
    }

    /// With a list of what is in it, which costs more than asking for a few names.
    pub(crate) fn listed(mut self) -> Self {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut raw = RawDir::new(&self.descriptor, &mut buffer);
        let mut list = List { names: String::with_capacity(1024), entries: Vec::with_capacity(64) };
        while let Some(Ok(entry)) = raw.next() {
            let Some(name) = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."))
            else {
                continue;
            };
            let start = list.names.len();
            list.names.push_str(name);
            list.entries.push((start..list.names.len(), entry.file_type()));
        }
        self.list = Some(list);
        self
    }

    /// What an attribute says, without the newline at its end; none where it is absent or unreadable.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        if !self.may_have(name) {
            return None;
        }
        let file = openat(&self.descriptor, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        // No attribute is longer than a page, and each is read at once (Documentation/filesystems/sysfs.rst).
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let (text, _) = rustix::io::read(&file, &mut buffer).ok()?;
        Some(std::str::from_utf8(text).ok()?.trim_end().to_owned())
    }

    /// The last part of what a link leads to.
    pub(crate) fn link_name(&self, name: &str) -> Option<String> {
        if !self.may_have(name) {
            return None;
        }
        let target = readlinkat(&self.descriptor, name, Vec::with_capacity(128)).ok()?;
        Some(Path::new(target.to_str().ok()?).file_name()?.to_str()?.to_owned())
    }

    /// Folders in it, once it is listed; links to folders are none.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        // Not every file system says in its lists what something is.
        let folder = |kind: FileType| matches!(kind, FileType::Directory | FileType::Unknown);
        self.entries().filter(move |(_, kind)| folder(*kind)).map(|(name, _)| name)
    }

    /// Something of this name is there, of a folder that is listed.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries().any(|(other, _)| other == name)
    }

    fn may_have(&self, name: &str) -> bool {
        self.list.is_none() || self.has(name)
    }

    fn entries(&self) -> impl Iterator<Item = (&str, FileType)> {
        let list = self.list.as_ref();
        list.into_iter().flat_map(|list| {
            list.entries.iter().filter_map(|(at, kind)| Some((list.names.get(at.clone())?, *kind)))
        })
    }
}

/// Names in a folder, sorted; none where there is no such folder.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
