//! One daemon for each state folder, and for each folder of running guests.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// A process that a daemon which was killed had just made holds the lock until it is another program.
const PATIENCE: Duration = Duration::from_millis(500);

/// The file, in either folder.
const NAME: &str = "daemon.lock";

/// Held for as long as the daemon lives.
pub struct Only {
    _files: [File; 2],
}

/// Why another daemon may not begin.
#[derive(Debug, thiserror::Error)]
pub enum NotAlone {
    /// There is one.
    #[error(
        "A daemon runs with the folder {folder} already, as process {pid}; `throughway daemon --stop` ends it and its guests"
    )]
    Another {
        /// Which both want.
        folder: String,
        /// Of the first.
        pid: String,
    },
    /// The lock cannot be had.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl Only {
    /// Takes both locks.
    ///
    /// # Errors
    /// Another daemon has one of them.
    pub fn take(state: &Path, notes: &Path) -> Result<Self, NotAlone> {
        let until = Instant::now() + PATIENCE;
        Ok(Self { _files: [lock(state, until)?, lock(notes, until)?] })
    }
}

fn lock(folder: &Path, until: Instant) -> Result<File, NotAlone> {
    let path = folder.join(NAME);
    let doing = |what: &'static str| {
        let path = path.display().to_string();
        move |error: io::Error| NotAlone::Failed(anyhow::Error::new(error).context(format!("{what} {path}")))
    };
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(doing("Making the folder of"))?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(doing("Opening"))?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_owned();
                return Err(NotAlone::Another { folder: folder.display().to_string(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(doing("Locking")(error)),
        }
    }
    let pid = std::process::id().to_string();
    file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(doing("Writing"))?;
    Ok(file)
}

/// The daemon that has this folder; none where there is none.
///
/// # Errors
/// It cannot be made out.
pub fn daemon_of(folder: &Path) -> anyhow::Result<Option<u32>> {
    let path = folder.join(NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("Opening {}", path.display())),
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        _ => return Ok(None),
    }
    let pid = fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
    let pid = pid.trim().parse().with_context(|| format!("{} has no number of a process", path.display()))?;
    Ok(Some(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_for_each_folder() {
        let [state, other, notes] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        assert_eq!(daemon_of(state.path()).unwrap(), None);
        let only = Only::take(state.path(), notes.path()).unwrap();
        assert_eq!(daemon_of(state.path()).unwrap(), Some(std::process::id()));
        for (state, notes) in [(&state, &other), (&other, &notes)] {
            let error = Only::take(state.path(), notes.path()).err().unwrap().to_string();
            assert!(error.contains(&format!("already, as process {}", std::process::id())), "{error}");
        }
        drop(only);
        assert_eq!(daemon_of(state.path()).unwrap(), None);
        Only::take(state.path(), notes.path()).unwrap();
    }
}
