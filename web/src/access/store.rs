//! Files of the folder: read whole, and replaced whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::control::Problem;

/// No file of ours grows beyond this; what is larger was not written by us.
const LARGEST: u64 = 1 << 20;

/// A file, and the version of it that was seen last.
#[derive(Debug)]
pub(super) struct Store {
    /// Where it is.
    path: PathBuf,
    /// It is told from another version by these.
    seen: Option<Stamp>,
}

/// One version of a file.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

impl Store {
    /// Of which nothing was seen yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its text where it is another one than was read or written last; empty where there is none any more.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(super) fn read_if_changed(&mut self) -> Result<Option<String>, Problem> {
        let now = self.stamp().map_err(|error| self.unread(&error))?;
        if now.is_some() && now == self.seen {
            return Ok(None);
        }
        let text = self.read().map_err(|error| self.unread(&error))?;
        self.seen = now;
        Ok(Some(text))
    }

    /// Forgets what was seen: the next [`Store::read_if_changed`] reads.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Replaces it. With `lasting` it is on the disk when this comes back, and not only in the kernel's memory.
    ///
    /// # Errors
    /// There is no room, or the disk says no; it is as it was then.
    pub(super) fn write(&mut self, text: &str, lasting: bool) -> Result<(), Problem> {
        self.replace(text, lasting).map_err(|error| self.unwritten(&error))?;
        self.seen = self.stamp().ok().flatten();
        Ok(())
    }

    /// Removes it, where it is there.
    ///
    /// # Errors
    /// It is there still.
    pub(super) fn remove(&mut self) -> Result<(), Problem> {
        self.seen = None;
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Problem::fault(format!("Cannot remove {}: {error}", self.path.display())))
            }
            _ => Ok(()),
        }
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        match std::fs::metadata(&self.path) {
            Ok(at) => Ok(Some((
                at.dev(),
                at.ino(),
                at.size(),
                at.mtime(),
                at.mtime_nsec(),
                at.ctime(),
                at.ctime_nsec(),
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> io::Result<String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        if file.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
        Ok(text)
    }

    fn replace(&self, text: &str, lasting: bool) -> io::Result<()> {
        // One name for all times: what a crash leaves is taken away by the next write.
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let written = (|| {
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            if lasting {
                file.sync_all()?;
            }
            std::fs::rename(&beside, &self.path)
        })();
        if written.is_err() {
            // It is in nobody's way if it stays.
            let _ = std::fs::remove_file(&beside);
            return written;
        }
        if lasting && let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn unread(&self, error: &io::Error) -> Problem {
        tracing::error!("Cannot read {}: {error}", self.path.display());
        Problem::unavailable(format!("Cannot read {}: {error}. Root can put it right", self.path.display()))
    }

    fn unwritten(&self, error: &io::Error) -> Problem {
        let said = format!("Cannot write {}: {error}. Nothing was changed", self.path.display());
        tracing::error!("{said}");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem::no_room(said),
            _ => Problem::fault(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_read_and_the_same_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut store = Store::new(path.clone());
        assert_eq!(store.read_if_changed().unwrap().as_deref(), Some(""));
        store.write("one", true).unwrap();
        assert_eq!(store.read_if_changed().unwrap(), None);
        std::fs::write(&path, "two and more").unwrap();
        assert_eq!(store.read_if_changed().unwrap().as_deref(), Some("two and more"));
        assert_eq!(store.read_if_changed().unwrap(), None);
        store.remove().unwrap();
        assert_eq!(store.read_if_changed().unwrap().as_deref(), Some(""));
        store.remove().unwrap();
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old").unwrap();
        std::fs::create_dir_all(folder.path().join("file.new/x")).unwrap();
        let problem = Store::new(path.clone()).write("new", true).unwrap_err();
        assert_eq!(problem.status, 500);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn a_full_disk_is_said_and_loses_nothing() {
        let mut store = Store::new("/dev/full".into());
        let problem = store.unwritten(&io::Error::from(rustix::io::Errno::NOSPC));
        assert_eq!(problem.status, 507);
        assert!(problem.detail.contains("Nothing was changed"), "{problem}");
        store.forget();
    }
}
