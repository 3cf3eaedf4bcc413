//! Files that must survive a power cut, and folders of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a value as JSON so that from here on it is there: whole, or as it was before.
pub(super) fn keep(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_whole(path, 0o666, &serde_json::to_vec_pretty(value)?)
}

/// Writes a value as JSON so that from here on every process sees it: whole, or as it was before. A power cut may take it.
pub(super) fn show(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec_pretty(value)?)?;
    fs::rename(&fresh, path)
}

/// Has a file that was shown be there under another name, and survive a power cut from here on. None is no error.
pub(super) fn settle(shown: &Path, path: &Path) -> io::Result<()> {
    match File::open(shown) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => {
            file?.sync_all()?;
            fs::rename(shown, path)?;
            sync_folder(path)
        }
    }
}

/// Writes a file, with the mode where it is new, so that from here on it is there: whole, or as it was before.
pub(crate) fn write_whole(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder(path)
}

/// Reads a value back. One that cannot be read is an error that says what the file was `about`: to pass over it would be to
/// forget how something was.
pub(super) fn read<T: DeserializeOwned>(path: &Path, about: &str) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("Reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| {
        format!("{} is damaged: it says {about}; look into it, put that back, then remove it", path.display())
    })
}

/// Reads all values of a folder, in the order of their names. None where the folder is not there.
pub(super) fn read_all<T: DeserializeOwned>(folder: &Path, about: &str) -> anyhow::Result<Vec<T>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("Reading {}", folder.display()))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().map(|path| read(path, about)).collect()
}

/// Removes a file so that it stays removed. One that is not there is no error.
pub(super) fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder(path)),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
