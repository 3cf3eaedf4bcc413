//! The claims of all guests, on disk: a file each, written before anything is changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vfio::PciAddress;

use super::keep::{forget, keep, read, read_all};
use super::{Claim, Holder, Undo};

const ABOUT: &str = "how devices were before a guest took them";

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

    /// All claims.
    pub fn claims(&self) -> anyhow::Result<Vec<Claim>> {
        read_all(&self.folder, ABOUT)
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
        if path.exists() { read(&path, ABOUT).map(Some) } else { Ok(None) }
    }

    /// Writes a claim so that it survives a power cut from here on.
    pub fn write(&self, claim: &Claim) -> anyhow::Result<()> {
        self.make_folder()?;
        let path = self.path(&claim.holder.vm);
        keep(&path, claim).with_context(|| format!("Writing {}", path.display()))
    }

    /// Forgets a claim: everything is put back.
    pub fn forget(&self, vm: &str) -> anyhow::Result<()> {
        let path = self.path(vm);
        forget(&path).with_context(|| format!("Removing {}", path.display()))
    }

    fn make_folder(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).map_err(|error| failed("Making", &self.folder, error))
    }

    fn path(&self, vm: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(vm)))
    }
}

/// A file's name for a guest. Names of guests are keys of a file, so they may hold anything: what is not plain is written as
/// its bytes' numbers.
pub(crate) fn file_name(vm: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    vm.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect()
}

/// Where rights are what lacks, says so.
fn failed(doing: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => " (changing the host, and giving devices to a guest, needs root)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{doing} {}{hint}", path.display()))
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
