//! The cache folder: everything that is fetched or built once and used again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The cache folder, `$THROUGHWAY_CACHE`, else `$XDG_CACHE_HOME/throughway`,
/// else `~/.cache/throughway`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Finds the folder from the environment and creates it.
    pub fn open() -> Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = if let Some(root) = variable("THROUGHWAY_CACHE") {
            root
        } else if let Some(base) = variable("XDG_CACHE_HOME") {
            base.join("throughway")
        } else if let Some(home) = variable("HOME") {
            home.join(".cache/throughway")
        } else {
            bail!("Finding the cache folder: none of THROUGHWAY_CACHE, XDG_CACHE_HOME and HOME is set");
        };
        let root = std::path::absolute(&root).with_context(|| format!("Resolving {}", root.display()))?;
        Self::at(root)
    }

    /// Uses `root`, an absolute path, and creates it.
    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("Creating the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the folder; nothing is created.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Waits for and takes the lock called `name`, so that two runs never build
    /// the same thing at once. Released on drop.
    pub fn lock(&self, name: &str) -> Result<File> {
        let folder = self.path("locks");
        fs::create_dir_all(&folder).with_context(|| format!("Creating {}", folder.display()))?;
        let path = folder.join(name);
        let file = File::create(&path).with_context(|| format!("Opening the lock {}", path.display()))?;
        if file.try_lock().is_err() {
            crate::progress::note(&format!("Another run holds {name}: waiting for it"));
            file.lock().with_context(|| format!("Locking {}", path.display()))?;
        }
        Ok(file)
    }

    /// The folder `name/key`, filled by `fill` when it is not there yet.
    ///
    /// `fill` writes into a scratch folder that is renamed into place at the end:
    /// a run that was killed leaves nothing that looks complete. Folders of other
    /// keys stay, other checkouts may use them.
    pub fn folder(&self, name: &str, key: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let complete = self.path(name).join(key);
        if complete.is_dir() {
            return Ok(complete);
        }
        let _lock = self.lock(&format!("{name}-{key}"))?;
        if complete.is_dir() {
            return Ok(complete);
        }
        let scratch = self.path(name).join(format!("{key}.partial"));
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("Removing {}", scratch.display()))?;
        }
        fs::create_dir_all(&scratch).with_context(|| format!("Creating {}", scratch.display()))?;
        fill(&scratch)?;
        fs::rename(&scratch, &complete)
            .with_context(|| format!("Renaming {} to {}", scratch.display(), complete.display()))?;
        Ok(complete)
    }
}

/// A short stable key over `parts`, for naming what was built from them
/// (FNV-1a, 64 bit: a name, not a protection).
#[must_use]
pub fn key<I>(parts: I) -> String
where
    I: IntoIterator,
    I::Item: AsRef<[u8]>,
{
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.as_ref().iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_filled_once_and_only_when_complete() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = Cache::at(scratch.path().join("cache")).unwrap();

        let failed = cache.folder("thing", "1", |_| bail!("no"));
        assert!(failed.is_err());
        let made = cache.folder("thing", "1", |path| Ok(fs::write(path.join("a"), "x")?)).unwrap();
        let again = cache.folder("thing", "1", |_| bail!("filled twice")).unwrap();

        assert_eq!(made, again);
        assert_eq!(fs::read_to_string(made.join("a")).unwrap(), "x");
    }

    #[test]
    fn keys_tell_apart_where_parts_end() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
    }
}
