//! What is typed, until the guest takes it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::vm::Signal;

/// Bytes that are kept for a guest that does not read; whoever types more waits.
const MOST: usize = 4096;

/// Typed by the machine's loop, and read by the console's thread.
pub struct Keyboard {
    typed: Mutex<VecDeque<u8>>,
    /// Raised while there is something.
    some: Signal,
    /// Raised when the guest has taken the last of it.
    drained: Signal,
}

impl Keyboard {
    /// Nothing is typed yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { typed: Mutex::default(), some: Signal::new()?, drained: Signal::new()? })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes may be typed now.
    pub fn room(&self) -> usize {
        MOST.saturating_sub(self.lock().len())
    }

    /// Types as many as there is room for.
    pub fn type_in(&self, bytes: &[u8]) {
        let mut typed = self.lock();
        let room = MOST.saturating_sub(typed.len());
        typed.extend(bytes.iter().take(room));
        if !typed.is_empty() {
            self.some.raise();
        }
    }

    /// Takes at most `most` bytes.
    pub(super) fn take(&self, most: usize) -> Vec<u8> {
        let mut typed = self.lock();
        let count = most.min(typed.len());
        let taken = typed.drain(..count).collect();
        if typed.is_empty() {
            self.some.take();
            if count > 0 {
                *typed = VecDeque::new();
                self.drained.raise();
            }
        }
        taken
    }

    /// Readable while something is typed.
    pub(super) fn some(&self) -> &Signal {
        &self.some
    }

    /// Readable when the guest has taken the last of it, until [`Signal::take`].
    pub(crate) fn drained(&self) -> &Signal {
        &self.drained
    }
}
