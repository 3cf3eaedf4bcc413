//! Reading and writing attributes below one root, with errors that name the file.

use std::io;
use std::path::{Path, PathBuf};

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

/// Names in a folder, sorted; none where there is no such folder.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
