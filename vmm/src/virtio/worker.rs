//! The thread that serves a device, and what it waits for.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::threads::{self as kinds, Kind};
use crate::vm::vector::Signal;

/// Why a worker woke up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It is to end now.
    Stop,
    /// Which of the descriptors are ready, in their order; closed and failed ones count as ready.
    Ready(Vec<bool>),
}

/// What is wanted of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Rest,
    End,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It may touch what is the guest's.
    Working,
    /// It waits to be let go on.
    Resting,
    /// It has left; what is left of it touches nothing.
    Gone,
}

/// What both ends share.
struct Shared {
    /// Raised while something else is wanted than running.
    signal: Signal,
    state: Mutex<(Wanted, Place)>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Wanted, Place)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.0 == Wanted::End {
            return;
        }
        state.0 = wanted;
        match wanted {
            Wanted::Run => drop(self.signal.take()),
            Wanted::Rest | Wanted::End => self.signal.raise(),
        }
        self.changed.notify_all();
    }
}

/// A thread. It is told to end, and waited for, when this is dropped.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A worker's own end of its [`Worker`].
pub struct Stop(Arc<Shared>);

/// Says that the worker has left, also where it panics.
struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.lock().1 = Place::Gone;
        self.0.changed.notify_all();
    }
}

impl Worker {
    /// Starts `body`, which must return soon after [`Stop::wait`] has said so. Of `name` the system shows 15 bytes.
    ///
    /// # Errors
    /// The host has no descriptor or no thread left.
    pub fn spawn(name: &str, body: impl FnOnce(Stop) + Send + 'static) -> io::Result<Self> {
        let (state, changed) = (Mutex::new((Wanted::Run, Place::Working)), Condvar::new());
        let shared = Arc::new(Shared { signal: Signal::new()?, state, changed });
        let seen = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _leaving = Leaving(Arc::clone(&seen));
            kinds::begins(Kind::Queue);
            body(Stop(seen));
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks it to rest: to touch nothing of the guest's. See [`rests`](Self::rests).
    pub fn ask_to_rest(&self) {
        self.shared.want(Wanted::Rest);
    }

    /// Waits until it rests, but no longer than `until`; false where it is still in the middle of a piece of work.
    pub fn rests(&self, until: Instant) -> bool {
        let mut state = self.shared.lock();
        while state.1 == Place::Working {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets one that rests, or is asked to, go on.
    pub fn go_on(&self) {
        self.shared.want(Wanted::Run);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.want(Wanted::End);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said why.
            let _ = thread.join();
        }
    }
}

impl Stop {
    /// Sleeps until one of `fds` is readable (or, as its flag says, writable), or the worker is to end. Where it is asked to
    /// rest, it does so here.
    ///
    /// # Errors
    /// What `poll` says, but an interruption.
    pub fn wait(&self, fds: &[(BorrowedFd<'_>, PollFlags)]) -> io::Result<Wake> {
        let stop = self.0.signal.fd();
        let mut polled = Vec::with_capacity(fds.len().saturating_add(1));
        polled.push(PollFd::new(&stop, PollFlags::IN));
        polled.extend(fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        loop {
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
            if ready.next() != Some(true) {
                return Ok(Wake::Ready(ready.collect()));
            }
            if self.rest() == Wanted::End {
                return Ok(Wake::Stop);
            }
        }
    }

    /// The same in the middle of work that others do for it, such as the kernel: it does not rest before that is done.
    ///
    /// # Errors
    /// What `poll` says, but an interruption.
    pub fn wait_at_work(&self, fds: &[(BorrowedFd<'_>, PollFlags)]) -> io::Result<Wake> {
        let stop = self.0.signal.fd();
        loop {
            let wanted = self.0.lock().0;
            if wanted == Wanted::End {
                return Ok(Wake::Stop);
            }
            let mut polled: Vec<_> =
                fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
            // Raised as long as it is to rest; then the end is looked for now and then.
            let again = (wanted == Wanted::Rest).then_some(Timespec { tv_sec: 0, tv_nsec: 50_000_000 });
            if again.is_none() {
                polled.push(PollFd::new(&stop, PollFlags::IN));
            }
            match poll(&mut polled, again.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = polled.iter().take(fds.len()).map(|fd| !fd.revents().is_empty()).collect();
            if ready.contains(&true) {
                return Ok(Wake::Ready(ready));
            }
        }
    }

    /// Rests while that is wanted; for the middle of a long piece of work that can wait. True if the worker is to end.
    pub fn may_rest(&self) -> bool {
        self.rest() == Wanted::End
    }

    fn rest(&self) -> Wanted {
        let mut state = self.0.lock();
        while state.0 == Wanted::Rest {
            state.1 = Place::Resting;
            self.0.changed.notify_all();
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.1 = Place::Working;
        state.0
    }

    /// Whether the worker is to end; for the middle of a long piece of work.
    pub fn is_raised(&self) -> bool {
        self.0.lock().0 == Wanted::End
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
        let (quiet, raised) = (Arc::new(Signal::new().unwrap()), Arc::new(Signal::new().unwrap()));
        raised.raise();
        let (tell, told) = std::sync::mpsc::channel();
        let _worker = Worker::spawn("test", move |stop| {
            let fds = [(quiet.fd(), PollFlags::IN), (raised.fd(), PollFlags::IN)];
            tell.send((stop.wait(&fds).unwrap(), stop.is_raised())).unwrap();
        });
        assert_eq!(told.recv().unwrap(), (Wake::Ready(vec![false, true]), false));
    }

    #[test]
    fn a_worker_rests_works_again_and_ends_from_rest() {
        use std::sync::atomic::{AtomicU64, Ordering};
        use std::time::Duration;

        let (turns, work) = (Arc::new(AtomicU64::new(0)), Arc::new(Signal::new().unwrap()));
        work.raise();
        let (seen, kick) = (Arc::clone(&turns), Arc::clone(&work));
        let worker = Worker::spawn("test", move |stop| {
            while stop.wait(&[(kick.fd(), PollFlags::IN)]).unwrap() != Wake::Stop {
                seen.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(50));
            }
        })
        .unwrap();
        for _ in 0..20 {
            let before = turns.load(Ordering::Relaxed);
            while turns.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            worker.ask_to_rest();
            assert!(worker.rests(Instant::now() + Duration::from_secs(60)));
            let resting = turns.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(300));
            assert_eq!(turns.load(Ordering::Relaxed), resting);
            worker.go_on();
        }
        worker.ask_to_rest();
        assert!(worker.rests(Instant::now() + Duration::from_secs(60)));
        drop(worker);
    }

    #[test]
    fn one_in_the_middle_of_its_work_is_not_waited_for_for_ever() {
        use std::time::Duration;

        let (held, hold) = std::sync::mpsc::channel::<()>();
        let worker = Worker::spawn("test", move |stop| {
            let _ = hold.recv();
            assert_eq!(stop.wait(&[]).unwrap(), Wake::Stop);
        })
        .unwrap();
        worker.ask_to_rest();
        assert!(!worker.rests(Instant::now() + Duration::from_millis(20)));
        drop(held);
        assert!(worker.rests(Instant::now() + Duration::from_secs(60)));
        worker.go_on();
        let gone = Worker::spawn("test", |_| {}).unwrap();
        gone.ask_to_rest();
        assert!(gone.rests(Instant::now() + Duration::from_secs(60)), "it has left");
    }
}
