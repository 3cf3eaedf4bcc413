//! What a guest has said on its console of late. Readers keep their own place in it and are never waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::vm::Signal;

/// Bytes that are kept. Memory is taken as the guest speaks.
const KEPT: usize = 64 << 10;

/// The last bytes, and a signal for who waits for more.
pub struct Recent {
    ring: Mutex<Ring>,
    /// Someone wants to be told.
    awaited: AtomicBool,
    /// Always, for a log.
    logged: AtomicBool,
    /// Told, and not looked yet.
    told: AtomicBool,
    more: Signal,
}

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// How many there have been in all.
    end: u64,
}

impl Ring {
    fn start(&self) -> u64 {
        self.end.saturating_sub(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }
}

impl Recent {
    /// Nothing was said yet.
    pub fn new() -> std::io::Result<Self> {
        let (awaited, logged, told) = Default::default();
        Ok(Self { ring: Mutex::default(), awaited, logged, told, more: Signal::new()? })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest says something; the answer is how many bytes it has said by now.
    pub(crate) fn extend(&self, said: &[u8]) -> u64 {
        let end = {
            let mut ring = self.lock();
            for byte in said {
                if ring.bytes.len() >= KEPT {
                    ring.bytes.pop_front();
                }
                ring.bytes.push_back(*byte);
            }
            ring.end = ring.end.saturating_add(u64::try_from(said.len()).unwrap_or(u64::MAX));
            ring.end
        };
        if said.is_empty() {
            return end;
        }
        let awaited = self.awaited.load(Ordering::Acquire) || self.logged.load(Ordering::Acquire);
        if awaited && !self.told.swap(true, Ordering::AcqRel) {
            self.more.raise();
        }
        end
    }

    /// A log wants to be told of more, always.
    pub(crate) fn has_log(&self, logged: bool) {
        self.logged.store(logged, Ordering::Release);
    }

    /// Whether [`more`](Self::more) is to be raised from now on.
    pub(crate) fn await_more(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    /// Readable when something was said since [`look`](Self::look).
    pub(crate) fn more(&self) -> &Signal {
        &self.more
    }

    /// Before reading: what is said from now on raises the signal again.
    pub(crate) fn look(&self) {
        self.more.take();
        self.told.store(false, Ordering::Release);
    }

    /// Where to begin: with all that is kept, or with what comes next.
    pub(crate) fn place(&self, recent: bool) -> u64 {
        let ring = self.lock();
        if recent { ring.start() } else { ring.end }
    }

    /// At most `most` bytes from `place` on, and the place that they begin at: later than asked for where some are gone.
    pub(crate) fn read(&self, place: u64, most: usize) -> (u64, Vec<u8>) {
        let ring = self.lock();
        let from = place.clamp(ring.start(), ring.end);
        let skip = usize::try_from(from.saturating_sub(ring.start())).unwrap_or(usize::MAX);
        (from, ring.bytes.iter().skip(skip).take(most).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(recent: &Recent, text: &str) {
        recent.extend(text.as_bytes());
    }

    #[test]
    fn readers_have_places_of_their_own() {
        let recent = Recent::new().unwrap();
        say(&recent, "hello");
        let (old, new) = (recent.place(true), recent.place(false));
        say(&recent, " you");
        assert_eq!(recent.read(old, 100), (0, b"hello you".to_vec()));
        assert_eq!(recent.read(new, 2), (5, b" y".to_vec()));
        assert_eq!(recent.read(9, 100), (9, Vec::new()));
        assert_eq!(recent.read(u64::MAX, 100), (9, Vec::new()));
    }

    #[test]
    fn what_is_too_old_is_gone_and_the_reader_sees_it() {
        let recent = Recent::new().unwrap();
        for _ in 0..KEPT {
            recent.extend(b"a");
        }
        assert_eq!(recent.extend(b"b"), 65537);
        let (from, bytes) = recent.read(0, KEPT);
        assert_eq!((from, bytes.len(), bytes.last()), (1, KEPT, Some(&b'b')));
    }

    #[test]
    fn who_waits_is_told_once_until_he_looks() {
        let recent = Recent::new().unwrap();
        recent.extend(b"a");
        assert!(!recent.more().is_raised());
        recent.await_more(true);
        say(&recent, "bc");
        assert!(recent.more().take());
        recent.extend(b"d");
        assert!(!recent.more().is_raised(), "told already");
        recent.look();
        recent.extend(b"e");
        assert!(recent.more().is_raised());
    }
}
