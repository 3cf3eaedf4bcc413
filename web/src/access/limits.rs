//! How often somebody may be wrong: by address and by user, over restarts too.
//!
//! Each is a leaky bucket in the form of the generic cell rate algorithm: what is kept of it is one time, the one at which
//! all of its tries will be there again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::store::Store;

/// So many are remembered; who has the most tries left is forgotten first.
const MOST: usize = 2048;
/// They go to disk no more often than this, in seconds, but for the first.
const WRITE_EVERY: u64 = 1;
/// And then they do after this.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// So many places that somebody has logged in from are remembered, and for this long, in seconds.
const PLACES: (usize, u64) = (256, 90 * 24 * 60 * 60);

/// Tries at once, and the seconds after which one comes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    burst: u64,
    every: u64,
}

/// One address: as many people may sit behind one.
pub(super) const ADDRESS: Rate = Rate { burst: 20, every: 30 };
/// One user, from wherever, or from an address that he has logged in from.
pub(super) const USER: Rate = Rate { burst: 10, every: 60 };

/// All that were wrong of late.
pub(super) struct Limits {
    store: Store,
    kept: Kept,
    written: u64,
    dirty: bool,
    /// Somebody has promised to write.
    promised: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Kept {
    /// When each bucket is full again.
    full_at: BTreeMap<String, u64>,
    /// Who has logged in from where, and when he did last.
    places: BTreeMap<String, u64>,
}

impl Limits {
    /// As the file has them.
    pub(super) fn open(path: PathBuf, now: u64) -> Self {
        let mut store = Store::new(path);
        let kept = store
            .read_if_changed()
            .ok()
            .flatten()
            .filter(|text| !text.is_empty())
            .and_then(|text| match serde_json::from_str(&text) {
                Ok(all) => Some(all),
                Err(error) => {
                    tracing::warn!("{} is wrong, it begins anew: {error}", store.path().display());
                    None
                }
            })
            .unwrap_or_default();
        let mut limits = Self { store, kept, written: 0, dirty: false, promised: false };
        limits.age(now);
        limits
    }

    /// Takes a try from each of these buckets.
    ///
    /// # Errors
    /// One of them is empty: the seconds until it is not. Nothing is taken then.
    pub(super) fn take(&mut self, buckets: &[(String, Rate)], now: u64) -> Result<(), u64> {
        let wait = buckets.iter().map(|(key, rate)| self.wait(key, *rate, now)).max().unwrap_or(0);
        if wait > 0 {
            return Err(wait);
        }
        for (key, rate) in buckets {
            let full = self.full(key, *rate, now).saturating_add(rate.every);
            self.kept.full_at.insert(key.clone(), full);
        }
        self.age(now);
        self.dirty = true;
        self.write_at_times(now);
        Ok(())
    }

    /// Gives back what [`Limits::take`] took: it was no wrong try.
    pub(super) fn give_back(&mut self, buckets: &[(String, Rate)], now: u64) {
        for (key, rate) in buckets {
            if let Some(full) = self.kept.full_at.get_mut(key) {
                *full = full.saturating_sub(rate.every);
            }
        }
        self.age(now);
        self.dirty = true;
        self.write_at_times(now);
    }

    /// Remembers that somebody has logged in from a place.
    pub(super) fn remember(&mut self, place: &str, now: u64) {
        let places = &mut self.kept.places;
        places.insert(place.to_owned(), now);
        places.retain(|_, at| at.saturating_add(PLACES.1) > now);
        while places.len() > PLACES.0 {
            let Some(oldest) = places.iter().min_by_key(|(_, at)| **at).map(|(place, _)| place.clone())
            else {
                break;
            };
            places.remove(&oldest);
        }
        self.dirty = true;
        self.write_at_times(now);
    }

    /// Whether he has.
    pub(super) fn remembers(&self, place: &str) -> bool {
        self.kept.places.contains_key(place)
    }

    /// There is something that the disk does not know, and nobody has promised yet to write it: whoever is told so has.
    pub(super) fn promise(&mut self) -> bool {
        let promise = self.dirty && !self.promised;
        self.promised |= promise;
        promise
    }

    /// Writes it down.
    pub(super) fn write(&mut self, now: u64) {
        self.promised = false;
        // Said in the log where it fails, and tried again with the next one who is wrong.
        self.written = now;
        if let Ok(text) = serde_json::to_string(&self.kept) {
            self.dirty = self.store.write(&text, false).is_err();
        }
    }

    fn write_at_times(&mut self, now: u64) {
        if now.abs_diff(self.written) >= WRITE_EVERY {
            self.write(now);
        }
    }

    /// When a bucket is full again. What a clock that was set back would make of it is bounded by an empty bucket.
    fn full(&self, key: &str, rate: Rate, now: u64) -> u64 {
        let full = self.kept.full_at.get(key).copied().unwrap_or(0);
        full.clamp(now, now.saturating_add(rate.burst.saturating_mul(rate.every)))
    }

    fn wait(&self, key: &str, rate: Rate, now: u64) -> u64 {
        let spent = self.full(key, rate, now).saturating_sub(now).saturating_add(rate.every);
        spent.saturating_sub(rate.burst.saturating_mul(rate.every))
    }

    fn age(&mut self, now: u64) {
        self.kept.full_at.retain(|_, full| *full > now);
        while self.kept.full_at.len() > MOST {
            let Some(key) =
                self.kept.full_at.iter().min_by_key(|(_, full)| **full).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.kept.full_at.remove(&key);
        }
    }
}

/// What addresses are counted by: of IPv6 the network that one house has.
pub(super) fn neighbourhood(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(folder: &tempfile::TempDir, now: u64) -> Limits {
        Limits::open(folder.path().join("limits.json"), now)
    }

    fn bucket(key: &str) -> [(String, Rate); 1] {
        [(key.to_owned(), USER)]
    }

    #[test]
    fn so_many_tries_and_then_one_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let mut limits = open(&folder, 1000);
        for _ in 0..10 {
            limits.take(&bucket("ada"), 1000).unwrap();
        }
        assert_eq!(limits.take(&bucket("ada"), 1000), Err(60));
        assert_eq!(limits.take(&bucket("ada"), 1059), Err(1));
        limits.take(&bucket("bob"), 1000).unwrap();
        limits.take(&bucket("ada"), 1060).unwrap();
        assert_eq!(limits.take(&bucket("ada"), 1060), Err(60));
        limits.give_back(&bucket("ada"), 1060);
        limits.take(&bucket("ada"), 1060).unwrap();
    }

    #[test]
    fn a_restart_gives_no_tries() {
        let folder = tempfile::tempdir().unwrap();
        let mut limits = open(&folder, 1000);
        for _ in 0..10 {
            limits.take(&bucket("ada"), 1000).unwrap();
        }
        assert!(limits.promise());
        assert!(!limits.promise());
        limits.write(1001);
        assert!(!limits.promise());
        assert_eq!(open(&folder, 1001).take(&bucket("ada"), 1001), Err(59));
        assert!(open(&folder, 1600).kept.full_at.is_empty());
        std::fs::write(folder.path().join("limits.json"), "]").unwrap();
        open(&folder, 1001).take(&bucket("ada"), 1001).unwrap();
    }

    #[test]
    fn where_one_bucket_is_empty_none_is_taken_from() {
        let folder = tempfile::tempdir().unwrap();
        let mut limits = open(&folder, 0);
        let both = [("a".to_owned(), ADDRESS), ("u".to_owned(), USER)];
        for _ in 0..10 {
            limits.take(&both, 0).unwrap();
        }
        let left = limits.kept.full_at["a"];
        assert_eq!(limits.take(&both, 0), Err(60));
        assert_eq!(limits.kept.full_at["a"], left);
    }

    #[test]
    fn there_are_so_many_and_who_was_wrong_most_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let mut limits = open(&folder, 0);
        for _ in 0..5 {
            limits.take(&bucket("bad"), 0).unwrap();
        }
        for one in 0..MOST + 10 {
            limits.take(&bucket(&one.to_string()), 0).unwrap();
        }
        assert_eq!(limits.kept.full_at.len(), MOST);
        assert_eq!(limits.kept.full_at["bad"], 300);
    }

    #[test]
    fn places_are_remembered_over_a_restart_and_not_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let mut limits = open(&folder, 0);
        for now in 0..=PLACES.0 as u64 {
            limits.remember(&format!("user ada from {now}"), now);
        }
        limits.write(300);
        let limits = open(&folder, 300);
        assert!(!limits.remembers("user ada from 0"));
        assert!(limits.remembers("user ada from 1") && limits.remembers("user ada from 256"));
    }

    #[test]
    fn houses_are_told_apart() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
    }

    proptest! {
        /// Whatever the clock does, in any time there are no more tries than the rate gives, and never for ever none.
        #[test]
        fn tries_are_as_many_as_the_rate_gives(steps in proptest::collection::vec(0_u64..100, 1..300)) {
            let folder = tempfile::tempdir().unwrap();
            let mut limits = open(&folder, 0);
            limits.written = u64::MAX / 2;
            let (mut now, mut taken) = (0, 0);
            for step in steps {
                now += step;
                if limits.take(&bucket("x"), now).is_ok() { taken += 1; }
                prop_assert!(taken <= USER.burst + now / USER.every);
                limits.written = now;
            }
            prop_assert!(limits.take(&bucket("x"), now + USER.every).is_ok());
        }

        #[test]
        fn a_clock_that_is_set_back_does_not_lock_anybody_out(then in 0_u64..u64::MAX, now in 0_u64..u64::MAX) {
            let folder = tempfile::tempdir().unwrap();
            let mut limits = open(&folder, then);
            for _ in 0..10 { let _ = limits.take(&bucket("x"), then); }
            if let Err(wait) = limits.take(&bucket("x"), now) {
                prop_assert!(wait <= USER.every);
            }
        }
    }
}
