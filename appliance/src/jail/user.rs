//! A user for each guest: from a range that nobody else has, and no two guests at a time the same.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;

/// The first: in a range that no distribution, no container manager and no login gives out (systemd, UIDS-GIDS.md).
const FIRST: u32 = 0x7100_0000;
/// So many.
const COUNT: u32 = 1 << 16;
/// Guests of all folders and files of one host share them.
const FOLDER: &str = "/run/throughway/.users";

/// A user, as long as the file is open somewhere.
#[derive(Debug)]
pub struct User {
    /// Number of the user and of its group.
    pub number: u32,
    /// Locked.
    pub held: File,
}

impl User {
    /// One for the guest `name`: the same as the last time, where nobody has that.
    ///
    /// # Errors
    /// The folder of locks cannot be used.
    pub fn of(name: &str) -> anyhow::Result<Self> {
        Self::in_folder(Path::new(FOLDER), name)
    }

    fn in_folder(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let mut builder = DirBuilder::new();
        if let Some(above) = folder.parent() {
            builder.recursive(true).mode(0o755).create(above).with_context(|| making(above))?;
        }
        builder.recursive(true).mode(0o700).create(folder).with_context(|| making(folder))?;
        let start = hash(name);
        for turn in 0..COUNT {
            let number = FIRST + (start.wrapping_add(turn) % COUNT);
            let path = folder.join(number.to_string());
            let lock = || -> io::Result<Option<File>> {
                let file =
                    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
                match file.try_lock() {
                    Ok(()) => Ok(Some(file)),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(error)) => Err(error),
                }
            };
            if let Some(held) = lock().with_context(|| format!("Locking {}", path.display()))? {
                return Ok(Self { number, held });
            }
        }
        anyhow::bail!("All {COUNT} users for guests are in use")
    }
}

fn making(folder: &Path) -> String {
    format!("Making {}", folder.display())
}

/// FNV-1a.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_one_user_and_each_has_its_own_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("users");
        let of = |name| User::in_folder(&folder, name).unwrap();
        let (first, second) = (of("firewall"), of("firewall"));
        assert_ne!(first.number, second.number);
        assert!((FIRST..FIRST + COUNT).contains(&first.number));
        let copy = first.held.try_clone().unwrap();
        let number = first.number;
        drop(first);
        assert_ne!(of("firewall").number, number, "somebody has the file");
        drop(copy);
        assert_eq!(of("firewall").number, number);
    }
}
