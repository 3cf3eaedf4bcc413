//! The console's log of a guest that nobody watches: files of limited size, the oldest of which are given up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// `console.log`, and before it `console.log.1`, `console.log.2` and so on, each at most so large.
pub struct RotatingLog {
    path: PathBuf,
    /// Bytes of each file.
    limit: u64,
    /// Files in all, at least 1.
    files: u32,
    file: File,
    length: u64,
}

impl RotatingLog {
    /// Goes on with what is there.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn open(path: &Path, limit: u64, files: u32) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), limit: limit.max(1), files: files.max(1), file, length })
    }

    /// Moves each file to the next number, the last one over the end.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut path = self.path.clone().into_os_string();
            if number > 0 {
                path.push(format!(".{number}"));
            }
            PathBuf::from(path)
        };
        if self.files == 1 {
            self.file.set_len(0)?;
        }
        for number in (1..self.files).rev() {
            match fs::rename(numbered(number.saturating_sub(1)), numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Write for RotatingLog {
    /// Up to where the file is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= self.limit {
            self.rotate()?;
        }
        let left = usize::try_from(self.limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let count = self.file.write(bytes.get(..left.min(bytes.len())).unwrap_or(bytes))?;
        self.length = self.length.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap_or_else(|_| "-".into())
    }

    #[test]
    fn the_oldest_is_given_up_and_nothing_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.log");
        let mut log = RotatingLog::open(&path, 4, 3).unwrap();
        log.write_all(b"0123456789abcd").unwrap();
        let all = || ["c.log", "c.log.1", "c.log.2", "c.log.3"].map(|name| read(folder.path(), name));
        assert_eq!(all(), ["cd", "89ab", "4567", "-"]);
        drop(log);
        let mut log = RotatingLog::open(&path, 4, 3).unwrap();
        log.write_all(b"efg").unwrap();
        assert_eq!(all(), ["g", "cdef", "89ab", "-"]);
    }

    #[test]
    fn one_file_alone_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.log");
        let mut log = RotatingLog::open(&path, 4, 1).unwrap();
        log.write_all(b"012345").unwrap();
        assert_eq!(read(folder.path(), "c.log"), "45");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
