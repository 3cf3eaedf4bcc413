//! Where what a guest says on its consoles goes, COM1 and virtio alike.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::control::Recent;

/// Bytes that a slow reader's writer may leave behind when vCPUs are to be stopped.
const MOST_HELD: usize = 1024;
/// A log that is further behind is written by who says the next byte.
const FAR_BEHIND: u64 = 16 << 10;
/// Written to a log at once.
const LOG_PIECE: usize = 4096;

/// Where the guest's bytes go: to what is kept of late, from there to the log, and to a reader. Each goes to the reader at
/// once, and who writes it waits for one that is slow; where nobody takes it any more (EPIPE, EIO of a closed pty) the guest
/// goes on unheard.
pub struct ConsoleOutput {
    recent: Arc<Recent>,
    log: Option<Mutex<Log>>,
    /// As far as the log has got.
    logged: AtomicU64,
    to: Option<Reader>,
    /// Readable while nobody may wait for a reader, because vCPUs are to be stopped.
    hurry: EventFd,
}

struct Log {
    to: Box<dyn Write + Send>,
    fails: bool,
}

struct Reader {
    file: File,
    /// Said while nobody could wait; goes out before what is said next. Who writes to `file` has it locked.
    held: Mutex<VecDeque<u8>>,
}

impl ConsoleOutput {
    /// For a reader, where there is one, and a log. What was said of late is kept in `recent`.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(
        reader: Option<OwnedFd>,
        log: Option<Box<dyn Write + Send>>,
        recent: &Arc<Recent>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            recent: Arc::clone(recent),
            log: log.map(|to| Mutex::new(Log { to, fails: false })),
            logged: AtomicU64::new(0),
            to: reader.map(|file| Reader { file: File::from(file), held: Mutex::default() }),
            hurry: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// One byte; waits for the reader.
    pub(super) fn put(&self, byte: u8) {
        self.keep(&[byte]);
        if let Some(to) = &self.to {
            self.put_to(to, byte);
        }
    }

    /// As many bytes as the reader takes without being waited for, once it is writable; all where there is none.
    pub(crate) fn offer(&self, bytes: &[u8]) -> usize {
        let taken = self.to.as_ref().map_or(bytes.len(), |to| to.offer(bytes));
        self.keep(bytes.get(..taken).unwrap_or(bytes));
        taken
    }

    /// The reader, to wait until something can be written.
    pub(crate) fn reader(&self) -> Option<&File> {
        self.to.as_ref().map(|to| &to.file)
    }

    /// For who reads over the control socket, and for the log.
    fn keep(&self, bytes: &[u8]) {
        let end = self.recent.extend(bytes);
        if self.log.is_some() && end.saturating_sub(self.logged.load(Ordering::Acquire)) > FAR_BEHIND {
            self.write_log();
        }
    }

    fn put_to(&self, to: &Reader, byte: u8) {
        let mut held = to.held();
        if held.len() < MOST_HELD {
            held.push_back(byte);
        }
        while let Some(byte) = held.front().copied() {
            if !self.write(&to.file, byte) {
                return;
            }
            held.pop_front();
        }
    }

    /// False where it was not to be waited for.
    fn write(&self, mut to: &File, byte: u8) -> bool {
        loop {
            let written =
                self.wait(to).and_then(|may| if may { to.write(&[byte]).map(Some) } else { Ok(None) });
            match written {
                Ok(count) => return count.is_some(),
                Err(error) if retryable(&error) => {}
                Err(error) => {
                    tracing::debug!("Writing to the console: {error}");
                    return true;
                }
            }
        }
    }

    /// Waits until something can be written; false when it is not to be waited for.
    fn wait(&self, to: &File) -> io::Result<bool> {
        // SAFETY: the descriptor belongs to `self.hurry`, which lives as long as the borrow.
        let hurry = unsafe { BorrowedFd::borrow_raw(self.hurry.as_raw_fd()) };
        let mut fds = [PollFd::new(to, PollFlags::OUT), PollFd::from_borrowed_fd(hurry, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [to, hurry] = fds;
        Ok(!to.revents().is_empty() || hurry.revents().is_empty())
    }

    /// From now on no vCPU waits for a slow reader: what he does not take is held until later. For when vCPUs are to be
    /// stopped.
    pub fn hurry(&self) {
        if let Err(error) = self.hurry.write(1) {
            tracing::error!("Stopping to wait for the console's reader: {error}");
        }
    }

    /// Ends [`hurry`](Self::hurry).
    pub fn take_time(&self) {
        let _ = self.hurry.read();
    }

    /// Brings the log to where the guest is.
    pub fn write_log(&self) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let place = self.logged.load(Ordering::Acquire);
            let (from, piece) = self.recent.read(place, LOG_PIECE);
            if piece.is_empty() {
                return;
            }
            let result = log.to.write_all(&piece).and_then(|()| log.to.flush());
            if let (Err(error), false) = (&result, log.fails) {
                tracing::error!(
                    "Writing the console's log: {error}; what the guest says is lost until that works"
                );
            }
            log.fails = result.is_err();
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            self.logged.store(from.saturating_add(count), Ordering::Release);
        }
    }
}

impl Reader {
    fn held(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        let mut held = match self.held.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            // A vCPU waits for the reader.
            Err(TryLockError::WouldBlock) => return 0,
        };
        let first = held.front().copied();
        let written = match first {
            Some(byte) => (&self.file).write(&[byte]).map(|_| 0),
            None => (&self.file).write(bytes),
        };
        match written {
            Err(error) if retryable(&error) => return 0,
            Err(error) => tracing::debug!("Writing to the console: {error}"),
            Ok(count) if first.is_none() => return count,
            Ok(_) => {}
        }
        if held.pop_front().is_some() { 0 } else { bytes.len() }
    }
}

fn retryable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
