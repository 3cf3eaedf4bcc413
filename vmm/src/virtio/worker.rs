//! The thread that serves a device, and what it waits for.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};

use crate::vm::vector::Signal;

/// Why a worker woke up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It is to end now.
    Stop,
    /// Which of the descriptors are ready, in their order; closed and failed ones count as ready.
    Ready(Vec<bool>),
}

/// A thread. It is told to end, and waited for, when this is dropped.
pub struct Worker {
    stop: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

/// A worker's own end of its [`Worker`].
pub struct Stop(Arc<Signal>);

impl Worker {
    /// Starts `body`, which must return soon after [`Stop::wait`] has said so. Of `name` the system shows 15 bytes.
    ///
    /// # Errors
    /// The host has no descriptor or no thread left.
    pub fn spawn(name: &str, body: impl FnOnce(Stop) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(Signal::new()?);
        let seen = Stop(Arc::clone(&stop));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || body(seen))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said why.
            let _ = thread.join();
        }
    }
}

impl Stop {
    /// Sleeps until one of `fds` is readable (or, as its flag says, writable), or the worker is to end.
    ///
    /// # Errors
    /// What `poll` says, but an interruption.
    pub fn wait(&self, fds: &[(BorrowedFd<'_>, PollFlags)]) -> io::Result<Wake> {
        let stop = self.0.fd();
        let mut polled = Vec::with_capacity(fds.len().saturating_add(1));
        polled.push(PollFd::new(&stop, PollFlags::IN));
        polled.extend(fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        loop {
            match poll(&mut polled, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        Ok(match ready.next() {
            Some(true) => Wake::Stop,
            _ => Wake::Ready(ready.collect()),
        })
    }

    /// Whether the worker is to end; for the middle of a long piece of work.
    pub fn is_raised(&self) -> bool {
        self.0.is_raised()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_when_it_is_dropped() {
        let ended = Arc::new(Signal::new().unwrap());
        let told = Arc::clone(&ended);
        let worker = Worker::spawn("test", move |stop| {
            assert_eq!(stop.wait(&[]).unwrap(), Wake::Stop);
            told.raise();
        })
        .unwrap();
        drop(worker);
        assert!(ended.take());
    }

    #[test]
    fn what_is_ready_is_told_in_order() {
        let (quiet, raised) = (Signal::new().unwrap(), Signal::new().unwrap());
        raised.raise();
        let stop = Stop(Arc::new(Signal::new().unwrap()));
        let fds = [(quiet.fd(), PollFlags::IN), (raised.fd(), PollFlags::IN)];
        assert_eq!(stop.wait(&fds).unwrap(), Wake::Ready(vec![false, true]));
        assert!(!stop.is_raised());
    }
}
