//! The console's log of a guest that nobody watches: files of limited size, the oldest of which are given up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// `console.log`, and before it `console.log.1`, `console.log.2` and so on.
#[derive(Debug)]
pub struct LogFiles {
    path: PathBuf,
    /// Files in all, at least 1.
    files: u32,
}

impl LogFiles {
    /// So many.
    pub fn at(path: &Path, files: u32) -> Self {
        Self { path: path.to_owned(), files: files.max(1) }
    }

    /// The newest, to go on with.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)
    }

    /// Moves each file to the next number, the last one over the end, and begins a new one.
    ///
    /// # Errors
    /// The folder is not what it was.
    pub fn rotate(&self) -> io::Result<File> {
        let numbered = |number: u32| {
            let mut path = self.path.clone().into_os_string();
            if number > 0 {
                path.push(format!(".{number}"));
            }
            PathBuf::from(path)
        };
        for number in (1..self.files).rev() {
            match fs::rename(numbered(number.saturating_sub(1)), numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let file = self.open()?;
        if self.files == 1 {
            file.set_len(0)?;
        }
        Ok(file)
    }
}

/// Where the next file comes from when one is full.
type Next = Box<dyn FnMut() -> io::Result<File> + Send>;

/// A log in files of limited size.
pub struct RotatingLog {
    /// Bytes of each file.
    limit: u64,
    file: File,
    length: u64,
    next: Next,
}

impl RotatingLog {
    /// Goes on with what is in `file`.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(file: File, limit: u64, next: Next) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { limit: limit.max(1), file, length, next })
    }
}

impl Write for RotatingLog {
    /// Up to where the file is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= self.limit {
            self.file = (self.next)()?;
            self.length = 0;
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

    fn log(path: &Path, limit: u64, files: u32) -> RotatingLog {
        let files = LogFiles::at(path, files);
        RotatingLog::new(files.open().unwrap(), limit, Box::new(move || files.rotate())).unwrap()
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap_or_else(|_| "-".into())
    }

    #[test]
    fn the_oldest_is_given_up_and_nothing_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.log");
        let mut log = super::tests::log(&path, 4, 3);
        log.write_all(b"0123456789abcd").unwrap();
        let all = || ["c.log", "c.log.1", "c.log.2", "c.log.3"].map(|name| read(folder.path(), name));
        assert_eq!(all(), ["cd", "89ab", "4567", "-"]);
        drop(log);
        let mut log = super::tests::log(&path, 4, 3);
        log.write_all(b"efg").unwrap();
        assert_eq!(all(), ["g", "cdef", "89ab", "-"]);
    }

    #[test]
    fn one_file_alone_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.log");
        let mut log = super::tests::log(&path, 4, 1);
        log.write_all(b"012345").unwrap();
        assert_eq!(read(folder.path(), "c.log"), "45");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
