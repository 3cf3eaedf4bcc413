//! The claims of all guests, on disk: a file each, written before anything is changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use vfio::PciAddress;

use super::{Claim, Holder, Undo};

/// The folder of claims.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
}

/// While it is held nobody else changes the host through this ledger.
pub struct Lock {
    _file: File,
}

impl Ledger {
    /// Below a state folder, which is made when it is first written to.
    pub fn at(state: &Path) -> Self {
        Self { folder: state.join("claims") }
    }

    /// Waits until nobody else changes the host.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let (file, path) = self.open_lock()?;
        file.lock().with_context(|| format!("Locking {}", path.display()))?;
        Ok(Lock { _file: file })
    }

    /// The lock, where nobody else changes the host now.
    pub(super) fn try_lock(&self) -> anyhow::Result<Option<Lock>> {
        let (file, path) = self.open_lock()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("Locking {}", path.display()))
            }
        }
    }

    fn open_lock(&self) -> anyhow::Result<(File, PathBuf)> {
        self.make_folder()?;
        let path = self.folder.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        Ok((file.map_err(|error| failed("Opening", &path, error))?, path))
    }

    /// All claims. A file that cannot be read is an error: to pass over it would be to forget how something was.
    pub fn claims(&self) -> anyhow::Result<Vec<Claim>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("Reading {}", self.folder.display()))?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().map(|path| read(path)).collect()
    }

    /// Functions that running guests hold.
    pub fn held(&self) -> anyhow::Result<BTreeMap<PciAddress, Holder>> {
        let mut held = BTreeMap::new();
        for claim in self.claims()?.into_iter().filter(|claim| claim.holder.is_alive()) {
            let driver = |undo: &Undo| match undo {
                Undo::Driver { address, .. } => Some(*address),
                _ => None,
            };
            held.extend(claim.undo.iter().filter_map(driver).map(|address| (address, claim.holder.clone())));
        }
        Ok(held)
    }

    /// The claim of one guest.
    pub fn claim(&self, vm: &str) -> anyhow::Result<Option<Claim>> {
        let path = self.path(vm);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes a claim so that it survives a power cut from here on.
    pub fn write(&self, claim: &Claim) -> anyhow::Result<()> {
        self.make_folder()?;
        let path = self.path(&claim.holder.vm);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec_pretty(claim).context("Writing a claim")?;
        let written = File::create(&fresh).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| fs::rename(&fresh, &path)).and_then(|()| self.sync());
        renamed.with_context(|| format!("Writing {}", path.display()))
    }

    /// Forgets a claim: everything is put back.
    pub fn forget(&self, vm: &str) -> anyhow::Result<()> {
        let path = self.path(vm);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("Removing {}", path.display())),
        }
    }

    fn make_folder(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).map_err(|error| failed("Making", &self.folder, error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Names of guests are keys of a file, so they may hold anything: what is not plain is written as its bytes' numbers.
    fn path(&self, vm: &str) -> PathBuf {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let name: String = vm
            .bytes()
            .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
            .collect();
        self.folder.join(format!("{name}.json"))
    }
}

/// Where rights are what lacks, says so.
fn failed(doing: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => " (a guest with devices needs root)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{doing} {}{hint}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Claim> {
    let text = fs::read(path).with_context(|| format!("Reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| {
        format!("{} is damaged: it says how devices were before a guest took them; look into it, put them back, then remove it", path.display())
    })
}

#[cfg(test)]
mod tests {
    use vfio::bind::DriverState;

    use super::*;

    fn claim(vm: &str, holder: Holder) -> Claim {
        let before = DriverState { driver: Some("igbvf".into()), driver_override: None };
        let address = "0000:01:10.0".parse().unwrap();
        Claim {
            holder: Holder { vm: vm.into(), ..holder },
            undo: vec![Undo::Driver { address, pf: None, before }],
        }
    }

    #[test]
    fn claims_are_kept_and_only_the_living_hold() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(state.path());
        assert!(ledger.claims().unwrap().is_empty());
        let alive = claim("a/../b", Holder::this("x"));
        ledger.write(&alive).unwrap();
        let mut dead = claim("c", Holder::this("x"));
        dead.holder.started += 1;
        ledger.write(&dead).unwrap();
        assert_eq!(ledger.claims().unwrap().len(), 2);
        assert_eq!(ledger.claim("a/../b").unwrap(), Some(alive));
        assert_eq!(ledger.held().unwrap().len(), 1);
        ledger.forget("a/../b").unwrap();
        ledger.forget("a/../b").unwrap();
        assert!(ledger.held().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_claim_is_not_passed_over() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(state.path());
        ledger.write(&claim("a", Holder::this("a"))).unwrap();
        fs::write(ledger.path("a"), "{").unwrap();
        assert!(ledger.claims().unwrap_err().to_string().contains("damaged"));
    }
}
