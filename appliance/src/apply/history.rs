//! Changes of the host, on disk: what was done, how it was before, and what became of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vfio::PciAddress;

use super::keep::{forget, keep, read_all};
use super::restart::{boot, is_this_boot};
use super::{Holder, Undo};

const ABOUT: &str = "how the host was before a change";

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    /// Counted from 1.
    pub id: u64,
    /// Who asked for it: the login's user number.
    pub user: u32,
    /// By which name, where it was over the admin interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, in seconds since 1970.
    pub started: u64,
    /// In which boot of the box: how things were before it is nothing to another boot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// What was asked for: `apply FILE`, `rollback of 7`, `restore of 7`.
    pub title: String,
    /// Where the file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The change that it brought back after the box was started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<u64>,
    /// The file's text; none for a change that goes back to before any file.
    pub text: Option<String>,
    /// Its steps, as a person reads them.
    pub steps: Vec<String>,
    /// How everything that it changed was before, oldest first.
    pub undo: Vec<Undo>,
    /// Objects that it gave back: they are Throughway's no more.
    pub released: Vec<String>,
    /// What became of it.
    pub state: State,
}

impl Record {
    /// The box was not started anew since.
    pub fn is_of_this_boot(&self) -> bool {
        is_this_boot(&self.boot)
    }

    /// The change that somebody asked for: itself, or what it brought back.
    pub fn origin(&self) -> u64 {
        self.restores.unwrap_or(self.id)
    }
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being done. When its process is gone, everything is put back.
    Applying {
        /// By whom.
        holder: Holder,
    },
    /// It is done, and waits until somebody says that he still comes in.
    Waiting {
        /// Who puts everything back otherwise.
        holder: Holder,
        /// When, in seconds since 1970.
        until: u64,
    },
    /// It holds.
    Committed,
    /// Everything was put back.
    Reverted {
        /// Why.
        why: String,
    },
}

/// The folder of changes.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
}

impl History {
    /// Below a state folder, which is made when it is first written to.
    pub fn at(state: &Path) -> Self {
        Self { folder: state.join("history") }
    }

    /// All changes, oldest first.
    pub fn records(&self) -> anyhow::Result<Vec<Record>> {
        read_all(&self.folder, ABOUT)
    }

    /// A new change, not yet on disk.
    pub fn begin(&self, title: String, text: Option<String>, steps: Vec<String>) -> anyhow::Result<Record> {
        let id = self.records()?.last().map_or(1, |last| last.id.saturating_add(1));
        let state = State::Applying { holder: Holder::this("") };
        let (user, started, boot) = (login(), now(), boot().to_owned());
        let (undo, released) = (Vec::new(), Vec::new());
        Ok(Record {
            id,
            user,
            by: None,
            started,
            boot,
            title,
            file: None,
            restores: None,
            text,
            steps,
            undo,
            released,
            state,
        })
    }

    /// Writes a change so that it survives a power cut from here on.
    pub fn write(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(record.id);
        let made = fs::create_dir_all(&self.folder);
        made.and_then(|()| keep(&path, record)).with_context(|| format!("Writing {}", path.display()))
    }

    /// A change holds from here on.
    pub(crate) fn commit(&self, mut record: Record) -> anyhow::Result<()> {
        record.state = State::Committed;
        self.write(&record)?;
        self.forget_confirmation(record.id);
        Ok(())
    }

    /// Nothing of a change is left.
    pub(super) fn give_up(&self, mut record: Record, why: String) -> anyhow::Result<()> {
        record.state = State::Reverted { why };
        self.write(&record)?;
        self.forget_confirmation(record.id);
        Ok(())
    }

    /// Forgets what earlier boots were brought back by: else there would be one more with each.
    pub fn forget_restores(&self) -> anyhow::Result<()> {
        let old = |record: &Record| record.restores.is_some() && !record.is_of_this_boot();
        for record in self.records()?.iter().filter(|record| old(record)) {
            let path = self.path(record.id);
            forget(&path).with_context(|| format!("Removing {}", path.display()))?;
        }
        Ok(())
    }

    /// Somebody says that he still comes in.
    pub fn confirm(&self, id: u64) -> anyhow::Result<()> {
        let path = self.confirmation(id);
        keep(&path, &login()).with_context(|| format!("Writing {}", path.display()))
    }

    /// Whether somebody has said so.
    pub fn is_confirmed(&self, id: u64) -> bool {
        self.confirmation(id).exists()
    }

    /// Forgets that somebody said so.
    pub fn forget_confirmation(&self, id: u64) {
        if let Err(error) = forget(&self.confirmation(id)) {
            tracing::warn!("Removing {}: {error}", self.confirmation(id).display());
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id:08}.json"))
    }

    fn confirmation(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id:08}.confirmed"))
    }
}

/// How everything that Throughway has changed and not given back was before it first did, oldest first.
///
/// VFs are given back with their PF: until it is, how each was is kept, as they are made anew when it is. What was changed before
/// the box was started anew went with that.
pub fn originals(records: &[Record]) -> Vec<Undo> {
    let mut first = BTreeMap::<String, (usize, Undo)>::new();
    let mut count = 0;
    for record in records.iter().filter(|record| record.state == State::Committed && record.is_of_this_boot())
    {
        // Routes follow addresses, and are never a wish of their own.
        for undo in record.undo.iter().filter(|undo| !matches!(undo, Undo::Routes { .. })) {
            first.entry(undo.object()).or_insert_with(|| (count, undo.clone()));
            count += 1;
        }
        for object in &record.released {
            match first.get(object).map(|(_, undo)| undo) {
                Some(Undo::Sriov { pf, .. }) => {
                    let pf = *pf;
                    first.retain(|_, (_, undo)| undo.pf() != Some(pf));
                }
                Some(undo) if undo.pf().is_some_and(|pf| owns(&first, pf)) => {}
                _ => drop(first.remove(object)),
            }
        }
    }
    let mut ordered: Vec<(usize, Undo)> = first.into_values().collect();
    ordered.sort_by_key(|(at, _)| *at);
    ordered.into_iter().map(|(_, undo)| undo).collect()
}

/// The changes as they will be once the one that waits is confirmed: what the host was made last.
pub fn as_done(records: &[Record]) -> Vec<Record> {
    let mut records = records.to_vec();
    for record in &mut records {
        if matches!(&record.state, State::Waiting { holder, .. } if holder.is_alive()) {
            record.state = State::Committed;
        }
    }
    records
}

/// A PF's own number of VFs is among them.
fn owns(first: &BTreeMap<String, (usize, Undo)>, pf: PciAddress) -> bool {
    first.values().any(|(_, undo)| matches!(undo, Undo::Sriov { pf: of, .. } if *of == pf))
}

/// The change that holds now.
pub fn current(records: &[Record]) -> Option<&Record> {
    records.iter().rev().find(|record| record.state == State::Committed)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The user that logged in, also behind sudo and su (proc(5), loginuid); who runs the process where nobody did.
fn login() -> u32 {
    let text = fs::read_to_string("/proc/self/loginuid").unwrap_or_default();
    match text.trim().parse() {
        Ok(u32::MAX) | Err(_) => rustix::process::getuid().as_raw(),
        Ok(user) => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    fn pages(size: u64, before: u64) -> Undo {
        Undo::Hugepages { size: Size(size << 20), before }
    }

    #[test]
    fn originals_are_the_first_ones_of_what_was_not_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::at(folder.path());
        for (undo, released, state) in [
            (vec![pages(1, 10), pages(2, 20)], vec![], State::Committed),
            (vec![pages(1, 11), pages(3, 30)], vec![], State::Committed),
            (vec![pages(4, 40)], vec![], State::Reverted { why: "a test".into() }),
            (vec![pages(2, 22)], vec![pages(2, 0).object()], State::Committed),
        ] {
            let mut record = history.begin("a change".into(), None, Vec::new()).unwrap();
            (record.undo, record.released, record.state) = (undo, released, state);
            history.write(&record).unwrap();
        }
        let records = history.records().unwrap();
        assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(originals(&records), [pages(1, 10), pages(3, 30)]);
        assert_eq!(current(&records).unwrap().id, 4);
    }

    #[test]
    fn what_another_boot_had_is_nothing_to_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::at(folder.path());
        for (boot, restores, undo) in [
            ("another", None, pages(1, 10)),
            ("another", Some(1), pages(1, 11)),
            (boot(), Some(1), pages(1, 12)),
        ] {
            let mut record = history.begin("a change".into(), None, Vec::new()).unwrap();
            (record.boot, record.restores, record.undo) = (boot.to_owned(), restores, vec![undo]);
            record.state = State::Committed;
            history.write(&record).unwrap();
        }
        assert_eq!(originals(&history.records().unwrap()), [pages(1, 12)]);
        history.forget_restores().unwrap();
        let left = history.records().unwrap();
        assert_eq!(
            left.iter().map(|record| (record.id, record.origin())).collect::<Vec<_>>(),
            [(1, 1), (3, 1)]
        );
    }

    #[test]
    fn vfs_are_given_back_with_their_pf() {
        let pf = "0000:01:00.0".parse().unwrap();
        let vf = Undo::Vf { pf, before: netconfig::VfState { trust: Some(true), ..Default::default() } };
        let before = vfio::sriov::SriovState { num_vfs: 2, drivers_autoprobe: None };
        let number = Undo::Sriov { pf, before, eswitch_mode: None };
        let change = |undo: &[&Undo], released: &[&Undo]| Record {
            id: 1,
            user: 0,
            by: None,
            started: 0,
            boot: String::new(),
            title: String::new(),
            file: None,
            restores: None,
            text: None,
            steps: Vec::new(),
            undo: undo.iter().map(|undo| (*undo).clone()).collect(),
            released: released.iter().map(|undo| undo.object()).collect(),
            state: State::Committed,
        };
        // Without the number a VF is like anything else.
        assert_eq!(originals(&[change(&[&vf], &[]), change(&[], &[&vf])]), []);
        let changes = [change(&[&vf, &number], &[]), change(&[], &[&vf]), change(&[], &[&number])];
        assert_eq!(originals(&changes[..2]), [vf, number]);
        assert_eq!(originals(&changes), []);
    }

    #[test]
    fn a_confirmation_is_seen_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::at(folder.path());
        history.write(&history.begin("a change".into(), None, Vec::new()).unwrap()).unwrap();
        assert!(!history.is_confirmed(1));
        history.confirm(1).unwrap();
        assert!(history.is_confirmed(1));
        history.forget_confirmation(1);
        assert!(!history.is_confirmed(1));
    }
}
