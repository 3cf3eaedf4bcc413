//! Waiting for changes of the host: what the kernel tells over netlink and by uevents, and a look now and then for what it does
//! not tell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use netconfig::watch::Changes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vfio::uevent::Events;

/// A change comes with others: so long must be quiet before the host is read.
const QUIET: Duration = Duration::from_millis(200);
/// But where it is never quiet, it is read all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The kernel told of something.
    Changed,
    /// Time is up.
    Late,
    /// Whoever started it wants no more.
    Stopped,
}

/// Ears for all that the kernel tells.
pub struct Watch {
    changes: Changes,
    events: Events,
}

impl Watch {
    /// From now on: what happens after this is told, however late it is asked for.
    pub fn open() -> anyhow::Result<Self> {
        let changes = Changes::open().context("Listening to changes of links")?;
        let events = Events::open().context("Listening to devices that come and go")?;
        Ok(Self { changes, events })
    }

    /// Waits until something has changed and it is quiet again, for `most` at most. `stop` ends it when it becomes readable.
    pub fn wait(&self, most: Duration, stop: BorrowedFd<'_>) -> io::Result<Woken> {
        let end = Instant::now() + most;
        loop {
            match self.sleep(end, stop)? {
                // What does not matter is no reason to look, nor to wait any longer.
                Woken::Changed if !self.heard()? => {}
                Woken::Changed => return self.settle(stop),
                woken => return Ok(woken),
            }
        }
    }

    /// Waits until it is quiet.
    fn settle(&self, stop: BorrowedFd<'_>) -> io::Result<Woken> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.sleep(end.min(Instant::now() + QUIET), stop)? {
                Woken::Changed if Instant::now() < end => {
                    self.heard()?;
                }
                Woken::Stopped => return Ok(Woken::Stopped),
                Woken::Changed | Woken::Late => break,
            }
        }
        // What is read from here on is newer than all that was told.
        self.heard()?;
        Ok(Woken::Changed)
    }

    fn heard(&self) -> io::Result<bool> {
        // Both, always.
        let links = self.changes.heard()?;
        Ok(self.events.heard()? || links)
    }

    fn sleep(&self, end: Instant, stop: BorrowedFd<'_>) -> io::Result<Woken> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
            let ears = self.changes.descriptors().chain([self.events.as_fd(), stop]);
            let mut ears: Vec<PollFd<'_>> =
                ears.map(|ear| PollFd::from_borrowed_fd(ear, PollFlags::IN)).collect();
            match poll(&mut ears, Some(&left)) {
                Ok(0) => return Ok(Woken::Late),
                Ok(_) => {
                    let stopped = ears.last().is_some_and(|stop| !stop.revents().is_empty());
                    return Ok(if stopped { Woken::Stopped } else { Woken::Changed });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
