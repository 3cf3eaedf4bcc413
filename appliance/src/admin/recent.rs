//! The last lines of the daemon's own log, for who looks at it from afar.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that are kept.
const LIMIT: usize = 256 << 10;

static KEPT: Mutex<Kept> = Mutex::new(Kept { lines: VecDeque::new(), bytes: 0, lost: false });

struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    lost: bool,
}

/// Keeps what is written to it, one line at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recent;

impl Recent {
    /// The last lines, oldest first, and whether there were more.
    pub(super) fn last(count: usize) -> (Vec<String>, bool) {
        let kept = kept();
        let skipped = kept.lines.len().saturating_sub(count);
        (kept.lines.iter().skip(skipped).cloned().collect(), skipped > 0 || kept.lost)
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl io::Write for Recent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut kept = kept();
        for line in text.lines() {
            kept.bytes = kept.bytes.saturating_add(line.len());
            kept.lines.push_back(line.to_owned());
        }
        while kept.bytes > LIMIT {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes = kept.bytes.saturating_sub(oldest.len());
            kept.lost = true;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Recent {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
