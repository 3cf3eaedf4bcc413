//! Locks against others, on the bytes that QEMU and qemu-img lock, so that each sees the other.
//!
//! A user of an image holds a shared lock on byte `100 + n` for each permission `n` that it uses, and on byte `200 + n`
//! for each that it does not bear from others (QEMU, `docs/system/images.rst`, "Disk image file locking"). They are locks
//! of the open file description: they go along when the descriptor is handed over, and end with its last copy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Error;

const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// Permissions by their numbers.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The kernel lets go of an io_uring, and of the files that it writes to, a moment after its process has been killed. The lock
/// stays until then, and rightly: writes may be under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading; others may read too.
    Read,
    /// Writing; nobody else may read or write.
    Write,
}

/// Locks `file` until its last descriptor is closed.
pub(super) fn lock(file: &File, path: &Path, access: Access) -> Result<(), Error> {
    let used: &[i64] = match access {
        Access::Read => &[CONSISTENT_READ],
        Access::Write => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    let unshared = [WRITE, RESIZE];
    let failed = || Error::io("Locking", path);
    for byte in used.iter().map(|n| USED + n).chain(unshared.iter().map(|n| UNSHARED + n)) {
        share(file, byte).map_err(failed())?;
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match other(file, used, &unshared).map_err(failed())? {
            None => return Ok(()),
            Some(what) if Instant::now() >= until => {
                return Err(Error::InUse { path: path.to_owned(), what });
            }
            Some(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What somebody else does with it that does not go together with this use.
fn other(file: &File, used: &[i64], unshared: &[i64]) -> io::Result<Option<&'static str>> {
    for n in used {
        if is_held(file, UNSHARED + n)? {
            return Ok(Some("does not share it"));
        }
    }
    for n in unshared {
        if is_held(file, USED + n)? {
            return Ok(Some("writes to it"));
        }
    }
    Ok(None)
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        // It must be 0 for locks of open file descriptions.
        l_pid: 0,
    }
}

fn share(file: &File, byte: i64) -> io::Result<()> {
    let range = range(libc::F_RDLCK, byte);
    // SAFETY: fcntl reads the structure, which outlives the call, and the descriptor is open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether somebody else has any lock there.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = range(libc::F_WRLCK, byte);
    // SAFETY: fcntl reads and writes the structure, which outlives the call, and the descriptor is open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::from(range.l_type) != libc::F_UNLCK) }
}
