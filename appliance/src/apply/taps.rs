//! Taps that were made for a guest and are open since, so that it need not open them again.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// The first queue of each, by the link's name.
#[derive(Debug, Default)]
pub struct Taps(Mutex<BTreeMap<String, OwnedFd>>);

impl Taps {
    /// Keeps one until it is taken.
    pub(super) fn keep(&self, link: &str, queue: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(link.to_owned(), queue);
    }

    /// The first queue of a tap, if it is open here.
    pub fn take(&self, link: &str) -> Option<OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(link)
    }
}
