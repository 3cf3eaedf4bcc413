//! Port 0x402: what debug builds of the firmware print, line by line to the log.

use std::sync::{Mutex, PoisonError};

use crate::Action;
use crate::bus::BusDevice;

/// The port.
pub(super) const PORT: u64 = 0x402;
/// What reads back while somebody listens.
const LISTENING: u8 = 0xe9;
/// Longer lines are cut.
const LONGEST: usize = 512;

/// The port, and the line that is not at its end yet. Lines are logged at level debug.
#[derive(Default)]
pub struct DebugPort {
    line: Mutex<Vec<u8>>,
}

impl DebugPort {
    /// Logs what there is of a line.
    pub fn flush(&self) {
        let line = std::mem::take(&mut *self.line.lock().unwrap_or_else(PoisonError::into_inner));
        say(&line);
    }

    fn put(&self, byte: u8) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        match byte {
            b'\n' => {
                say(&line);
                line.clear();
            }
            b'\r' => {}
            _ if line.len() < LONGEST => line.push(byte),
            _ => {}
        }
    }
}

/// Only what can be printed reaches a terminal.
fn say(line: &[u8]) {
    if !line.is_empty() {
        tracing::debug!(target: "firmware", "{}", line.escape_ascii());
    }
}

impl BusDevice for DebugPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        // Where nobody listens the firmware need not format anything.
        if tracing::enabled!(target: "firmware", tracing::Level::DEBUG) {
            data.fill(LISTENING);
        }
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        data.iter().for_each(|byte| self.put(*byte));
        Action::None
    }
}
