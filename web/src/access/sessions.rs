//! Who has logged in. On disk and in memory there is a digest of each session's secret alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::secret::{self, Digest};
use super::store::Store;
use crate::control::Problem;

/// A session that is not used ends after this long, in seconds.
pub(super) const IDLE: u64 = 60 * 60;
/// And any after this.
pub(super) const LONGEST: u64 = 12 * 60 * 60;
/// So many one user has; his oldest goes first.
const EACH: usize = 16;
/// So many there are.
const MOST: usize = 512;
/// When a session was used last goes to disk no more often than this, in seconds.
const WRITE_EVERY: u64 = 120;

/// A login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Session {
    /// Whose.
    pub(super) user: String,
    /// Of what his password was at the time: another password ends the session.
    pub(super) password: Digest,
    /// Since when.
    pub(super) since: u64,
    /// When it was used last.
    pub(super) used: u64,
}

impl Session {
    /// When it ends unless it is used.
    pub(super) fn ends(&self) -> u64 {
        self.used.saturating_add(IDLE).min(self.since.saturating_add(LONGEST))
    }

    /// A clock that was set back makes nothing older than it is, and nobody younger than new.
    fn holds(&self, now: u64) -> bool {
        now < self.ends() && self.since <= now.saturating_add(IDLE)
    }
}

/// All of them.
pub(super) struct Sessions {
    store: Store,
    all: BTreeMap<Digest, Session>,
    written: u64,
}

impl Sessions {
    /// As the file has them: a restart of ours logs nobody out.
    pub(super) fn open(path: PathBuf, now: u64) -> Self {
        let mut store = Store::new(path);
        let all = store
            .read_if_changed()
            .ok()
            .flatten()
            .filter(|text| !text.is_empty())
            .and_then(|text| match serde_json::from_str::<BTreeMap<Digest, Session>>(&text) {
                Ok(all) => Some(all),
                Err(error) => {
                    tracing::warn!("{} is wrong, everybody logs in again: {error}", store.path().display());
                    None
                }
            })
            .unwrap_or_default();
        let mut sessions = Self { store, all, written: now };
        sessions.all.retain(|_, session| session.holds(now));
        sessions
    }

    /// Begins one; its secret.
    ///
    /// # Errors
    /// There is no randomness, or it cannot be written down.
    pub(super) fn begin(&mut self, user: &str, password: Digest, now: u64) -> Result<String, Problem> {
        let secret = secret::long().map_err(|error| Problem::fault(format!("No random bytes: {error}")))?;
        self.all.retain(|_, session| session.holds(now));
        let his = |session: &Session| session.user == user;
        self.make_room(EACH, &his);
        self.make_room(MOST, &|_| true);
        let digest = Digest::of(&secret);
        let session = Session { user: user.to_owned(), password, since: now, used: now };
        self.all.insert(digest.clone(), session);
        if let Err(problem) = self.write(now) {
            self.all.remove(&digest);
            return Err(problem);
        }
        Ok(secret)
    }

    /// The one that a secret is of, used now.
    pub(super) fn used(&mut self, secret: &Digest, now: u64) -> Option<Session> {
        let session = self.all.get_mut(secret)?;
        if !session.holds(now) {
            self.all.remove(secret);
            return None;
        }
        session.used = session.used.max(now);
        let session = session.clone();
        if now.saturating_sub(self.written) >= WRITE_EVERY && self.write(now).is_err() {
            // It was said in the log; a session that looks older after a restart is no harm.
            self.written = now;
        }
        Some(session)
    }

    /// The same, which is not used by that.
    pub(super) fn look(&self, secret: &Digest, now: u64) -> Option<&Session> {
        self.all.get(secret).filter(|session| session.holds(now))
    }

    /// Ends those that it says so of.
    pub(super) fn end(&mut self, which: impl Fn(&Digest, &Session) -> bool, now: u64) {
        let before = self.all.len();
        self.all.retain(|secret, session| !which(secret, session));
        if self.all.len() != before && self.write(now).is_err() {
            tracing::warn!(
                "Sessions that were ended may come back with a restart: they could not be written"
            );
        }
    }

    fn make_room(&mut self, most: usize, among: &dyn Fn(&Session) -> bool) {
        while self.all.values().filter(|session| among(session)).count() >= most {
            let oldest = self.all.iter().filter(|(_, session)| among(session));
            let Some(oldest) = oldest.min_by_key(|(_, session)| session.used).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.all.remove(&oldest);
        }
    }

    fn write(&mut self, now: u64) -> Result<(), Problem> {
        let text = serde_json::to_string(&self.all)
            .map_err(|error| Problem::fault(format!("Cannot write the sessions: {error}")))?;
        self.store.write(&text, false)?;
        self.written = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &tempfile::TempDir, now: u64) -> Sessions {
        Sessions::open(folder.path().join("sessions.json"), now)
    }

    #[test]
    fn it_ends_when_it_is_not_used_and_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let mut sessions = open(&folder, 1000);
        let secret = Digest::of(&sessions.begin("ada", Digest::of("hash"), 1000).unwrap());
        assert!(sessions.used(&secret, 1000 + IDLE - 1).is_some());
        assert!(sessions.used(&secret, 1000 + 2 * IDLE - 2).is_some());
        assert!(sessions.used(&secret, 1000 + 3 * IDLE).is_none());
        let mut now = 1_000_000;
        let secret = Digest::of(&sessions.begin("ada", Digest::of("hash"), now).unwrap());
        while now < 1_000_000 + LONGEST {
            assert!(sessions.used(&secret, now).is_some(), "{now}");
            now += IDLE / 2;
        }
        assert!(sessions.used(&secret, now).is_none());
    }

    #[test]
    fn a_restart_keeps_it_and_the_file_does_not_tell_it() {
        let folder = tempfile::tempdir().unwrap();
        let secret = open(&folder, 5).begin("ada", Digest::of("hash"), 5).unwrap();
        let text = std::fs::read_to_string(folder.path().join("sessions.json")).unwrap();
        assert!(!text.contains(&secret) && text.contains("ada"), "{text}");
        assert_eq!(open(&folder, 6).used(&Digest::of(&secret), 6).unwrap().user, "ada");
        assert!(open(&folder, 5 + IDLE).used(&Digest::of(&secret), 5 + IDLE).is_none());
        std::fs::write(folder.path().join("sessions.json"), "{").unwrap();
        assert!(open(&folder, 6).used(&Digest::of(&secret), 6).is_none());
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut sessions = open(&folder, 0);
        let first = Digest::of(&sessions.begin("ada", Digest::of("hash"), 0).unwrap());
        let other = Digest::of(&sessions.begin("bob", Digest::of("hash"), 0).unwrap());
        for now in 1..=EACH as u64 {
            sessions.begin("ada", Digest::of("hash"), now).unwrap();
        }
        assert!(sessions.look(&first, 20).is_none());
        assert!(sessions.look(&other, 20).is_some());
        assert_eq!(sessions.all.len(), EACH + 1);
    }

    #[test]
    fn one_that_is_ended_stays_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut sessions = open(&folder, 0);
        let secret = Digest::of(&sessions.begin("ada", Digest::of("hash"), 0).unwrap());
        sessions.end(|key, _| key.is(&secret), 1);
        assert!(sessions.used(&secret, 1).is_none());
        assert!(open(&folder, 1).used(&secret, 1).is_none());
    }
}
