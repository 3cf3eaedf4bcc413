//! The claims of all guests, on disk: a file each, written before anything is changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vfio::PciAddress;

use super::keep::{forget, keep, read, read_all, settle, show};
use super::restart::boot;
use super::{Claim, Holder, Undo};

/// Letters of a boot's name, by which files of other boots are told.
const BOOT_LENGTH: usize = 36;
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
        let mut claims: Vec<Claim> = read_all(&self.folder, ABOUT)?;
        for path in self.shown()? {
            if !path.with_extension("json").exists() {
                claims.push(read(&path, ABOUT)?);
            }
        }
        Ok(claims)
    }

    /// Claims of this boot that are not settled yet. Those of other boots are removed unread: nothing of what they say is there,
    /// and they may not be whole.
    fn shown(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("Reading {}", self.folder.display()))?,
        };
        let mut shown = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(extension) if extension == boot() => shown.push(path),
                Some(extension) if extension.len() == BOOT_LENGTH => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        shown.sort();
        Ok(shown)
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
        let there = [self.path(vm), self.shown_path(vm)].into_iter().find(|path| path.exists());
        there.map(|path| read(&path, ABOUT)).transpose()
    }

    /// Writes a claim so that it survives a power cut from here on.
    pub fn write(&self, claim: &Claim) -> anyhow::Result<()> {
        self.make_folder()?;
        let path = self.path(&claim.holder.vm);
        keep(&path, claim).with_context(|| format!("Writing {}", path.display()))?;
        // That one says more than what was shown before.
        match fs::remove_file(self.shown_path(&claim.holder.vm)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Removing what {} stands for", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes a claim so that whoever recovers finds it while this boot lasts: enough for links, which end with the boot as well
    /// (docs/decisions/0493). [`Self::settle`] is to follow.
    pub fn show(&self, claim: &Claim) -> anyhow::Result<()> {
        let vm = &claim.holder.vm;
        if boot().len() != BOOT_LENGTH || self.path(vm).exists() {
            return self.write(claim);
        }
        self.make_folder()?;
        let path = self.shown_path(vm);
        show(&path, claim).with_context(|| format!("Writing {}", path.display()))
    }

    /// Has a claim that was shown survive a power cut too, if it is still there. Under the lock.
    pub fn settle(&self, vm: &str) -> anyhow::Result<()> {
        let path = self.path(vm);
        settle(&self.shown_path(vm), &path).with_context(|| format!("Writing {} to disk", path.display()))
    }

    /// Forgets a claim: everything is put back.
    pub fn forget(&self, vm: &str) -> anyhow::Result<()> {
        let (path, shown) = (self.path(vm), self.shown_path(vm));
        forget(&path).with_context(|| format!("Removing {}", path.display()))?;
        match fs::remove_file(&shown) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Removing {}", shown.display()))
            }
            _ => Ok(()),
        }
    }

    fn make_folder(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).map_err(|error| failed("Making", &self.folder, error))
    }

    fn path(&self, vm: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(vm)))
    }

    /// Of a claim that is not settled: only this boot knows the name.
    fn shown_path(&self, vm: &str) -> PathBuf {
        self.folder.join(format!("{}.{}", file_name(vm), boot()))
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
    fn a_claim_that_is_shown_is_one_until_it_is_settled_or_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(state.path());
        let shown = claim("a.b", Holder::this("x"));
        ledger.show(&shown).unwrap();
        assert!(!ledger.path("a.b").exists());
        let seen = |ledger: &Ledger| (ledger.claim("a.b").unwrap(), ledger.claims().unwrap());
        assert_eq!(seen(&ledger), (Some(shown.clone()), vec![shown.clone()]));
        ledger.settle("a.b").unwrap();
        assert!(ledger.path("a.b").exists() && !ledger.shown_path("a.b").exists());
        assert_eq!(seen(&ledger), (Some(shown.clone()), vec![shown.clone()]));
        ledger.settle("a.b").unwrap();
        ledger.forget("a.b").unwrap();
        ledger.show(&shown).unwrap();
        ledger.forget("a.b").unwrap();
        ledger.settle("a.b").unwrap();
        assert_eq!(seen(&ledger), (None, Vec::new()));
    }

    #[test]
    fn a_claim_that_is_written_stands_for_what_was_shown() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(state.path());
        let shown = claim("a", Holder::this("a"));
        let written = Claim { undo: Vec::new(), ..shown.clone() };
        ledger.show(&shown).unwrap();
        ledger.write(&written).unwrap();
        assert_eq!(ledger.claims().unwrap(), std::slice::from_ref(&written));
        assert!(!ledger.shown_path("a").exists());
        // Killed in between, both are there.
        show(&ledger.shown_path("a"), &shown).unwrap();
        assert_eq!(
            (ledger.claim("a").unwrap(), ledger.claims().unwrap()),
            (Some(written.clone()), vec![written])
        );
        // What survives power cuts does so from then on.
        ledger.show(&shown).unwrap();
        assert_eq!(read::<Claim>(&ledger.path("a"), ABOUT).unwrap(), shown);
    }

    #[test]
    fn what_another_boot_was_shown_is_nothing() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(state.path());
        ledger.show(&claim("a", Holder::this("a"))).unwrap();
        let torn = ledger.folder.join("b.01234567-89ab-cdef-0123-456789abcdef");
        fs::write(&torn, "").unwrap();
        assert_eq!(ledger.claims().unwrap().len(), 1);
        assert!(!torn.exists());
        fs::write(ledger.shown_path("a"), "{").unwrap();
        assert!(ledger.claims().unwrap_err().to_string().contains("damaged"));
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
