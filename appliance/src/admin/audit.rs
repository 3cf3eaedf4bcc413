//! Who changed what: lines of JSON that are only ever appended, on disk before anybody is answered. Three older files are kept.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use web::wire::AuditEntry;
use web::{Actor, Problem, Request};

use super::{Admin, cannot_write, fault};
use crate::apply::now;

/// Bytes of a file, and files.
const LIMIT: u64 = 4 << 20;
const FILES: u32 = 4;
/// Characters of what an entry says: a diff may be longer than anybody reads.
const LONGEST: usize = 16 << 10;
/// Room that must be left for an entry before something is done that has to be written down.
const ROOM: u64 = 256 << 10;

/// The log.
pub(super) struct Audit {
    folder: PathBuf,
    /// The next number, once it is known.
    next: Mutex<Option<u64>>,
}

impl Audit {
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), next: Mutex::new(None) }
    }

    fn path(&self, number: u32) -> PathBuf {
        match number {
            0 => self.folder.join("audit.jsonl"),
            number => self.folder.join(format!("audit.jsonl.{number}")),
        }
    }

    /// Writes an entry, whose number is given here.
    fn append(&self, mut entry: AuditEntry) -> io::Result<()> {
        // One at a time: the numbers follow one another.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let id = match *next {
            Some(id) => id,
            None => self.read(None, 1)?.first().map_or(1, |last| last.id.saturating_add(1)),
        };
        entry.id = id;
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.rotate()?;
        let path = self.path(0);
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path)?;
        let before = file.metadata()?.len();
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // No half line: the next one would be lost with it.
            let _ = file.set_len(before);
            return Err(error);
        }
        *next = Some(id.saturating_add(1));
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        if !fs::metadata(self.path(0)).is_ok_and(|file| file.len() >= LIMIT) {
            return Ok(());
        }
        for number in (1..FILES).rev() {
            match fs::rename(self.path(number.saturating_sub(1)), self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&self.folder)?.sync_all()
    }

    /// The newest ones first, of those with a smaller number than `before`.
    fn read(&self, before: Option<u64>, limit: usize) -> io::Result<Vec<AuditEntry>> {
        let mut found = BTreeMap::new();
        for number in 0..FILES {
            let file = match File::open(self.path(number)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            for line in BufReader::new(file).lines() {
                // A line that a power cut has cut off says nothing.
                let Ok(entry) = serde_json::from_str::<AuditEntry>(&line?) else { continue };
                if before.is_none_or(|before| entry.id < before) {
                    found.insert(entry.id, entry);
                    if found.len() > limit {
                        found.pop_first();
                    }
                }
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(found.into_values().rev().collect())
    }
}

impl Admin {
    pub(super) async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, Problem> {
        let admin = self.clone();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.beside(move |_| admin.0.audit.read(before, limit).map_err(fault)).await
    }

    /// Refuses what could not be written down. What makes room is let through.
    pub(super) fn may_be_written_down(&self, request: &Request) -> Result<(), Problem> {
        if matches!(
            request,
            Request::RemoveImage { .. } | Request::GiveUpUpload { .. } | Request::Audit { .. }
        ) {
            return Ok(());
        }
        let folder = &self.0.audit.folder;
        let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let room = rustix::fs::statvfs(there).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if room.is_ok_and(|room| room < ROOM) {
            return Err(Problem::no_room(format!(
                "The disk of {} is full, so that nothing can be written down, and nothing is done that has to be. Remove an image, or make room there",
                folder.display()
            )));
        }
        Ok(())
    }

    /// Writes down what somebody did, or was refused.
    pub(super) async fn write_down(
        &self,
        by: &Actor,
        what: &str,
        detail: String,
        refused: Option<&Problem>,
    ) -> Result<(), Problem> {
        let (what, detail) = match detail.split_once('\n') {
            Some((noted, detail)) if what == "note" => (noted.to_owned(), detail.to_owned()),
            _ => (what.to_owned(), detail),
        };
        let entry = AuditEntry {
            id: 0,
            at: now(),
            by: by.name.clone(),
            from: by.from.clone(),
            token: by.token.clone(),
            what,
            detail: cut(detail),
            refused: refused.map(|problem| problem.detail.clone()),
        };
        let AuditEntry { what, by, from, refused, .. } = &entry;
        match refused {
            None => tracing::info!("{by} ({from}): {what}"),
            Some(why) => tracing::warn!("{by} ({from}): {what}: refused: {why}"),
        }
        let (admin, copy) = (self.clone(), entry.clone());
        let written = self
            .beside(move |_| {
                let doing = "Writing the audit log";
                admin.0.audit.append(copy).map_err(|error| cannot_write(doing, &error))
            })
            .await;
        if let Err(problem) = &written {
            let line = serde_json::to_string(&entry).unwrap_or_default();
            tracing::error!("The audit log cannot be written ({}): {line}", problem.detail);
        }
        written
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("\n(the rest is cut off)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(what: &str) -> AuditEntry {
        AuditEntry {
            id: 0,
            at: 1,
            by: "x".into(),
            from: "local".into(),
            token: None,
            what: what.into(),
            detail: "y".repeat(1000),
            refused: None,
        }
    }

    #[test]
    fn entries_are_numbered_and_read_back_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        for what in ["a", "b"] {
            Audit::at(folder.path()).append(entry(what)).unwrap();
        }
        // A power cut in the middle of a line.
        let mut file = OpenOptions::new().append(true).open(folder.path().join("audit.jsonl")).unwrap();
        file.write_all(b"{\"id\":3,\n").unwrap();
        let audit = Audit::at(folder.path());
        audit.append(entry("c")).unwrap();
        let seen = |before, limit| {
            let read = audit.read(before, limit).unwrap();
            read.into_iter().map(|entry| (entry.id, entry.what)).collect::<Vec<_>>()
        };
        assert_eq!(seen(None, 10), [(3, "c".into()), (2, "b".into()), (1, "a".into())]);
        assert_eq!(seen(Some(3), 1), [(2, "b".into())]);
    }

    #[test]
    fn the_log_is_bounded_and_its_numbers_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::at(folder.path());
        fs::create_dir_all(folder.path()).unwrap();
        for round in 1..=6_u64 {
            audit.append(entry("x")).unwrap();
            // As if it were full.
            let file = OpenOptions::new().write(true).open(audit.path(0)).unwrap();
            file.set_len(LIMIT).unwrap();
            assert_eq!(Audit::at(folder.path()).read(None, 1).unwrap()[0].id, round);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        assert!(cut("ä".repeat(LONGEST)).ends_with("(the rest is cut off)"));
        assert_eq!(cut("short".into()), "short");
    }
}
