//! Getting a vCPU thread out of the guest and back: a switch with three positions and a signal.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread looks whether it may run before it sleeps.
const SOON: Duration = Duration::from_micros(100);

const PARK: u8 = 0;
const RUN: u8 = 1;
const END: u8 = 2;

/// Which position is wanted, and where the thread is.
pub(super) struct Switch {
    wanted: AtomicU8,
    place: Mutex<Place>,
    changed: Condvar,
}

#[derive(Default)]
struct Place {
    thread: Option<libc::pid_t>,
    in_guest: bool,
}

impl Default for Switch {
    fn default() -> Self {
        Self { wanted: AtomicU8::new(PARK), place: Mutex::default(), changed: Condvar::new() }
    }
}

impl Switch {
    pub(super) fn enter_thread(&self) {
        // SAFETY: gettid has no preconditions.
        let id = unsafe { libc::gettid() };
        self.place.lock().unwrap_or_else(PoisonError::into_inner).thread = Some(id);
        self.changed.notify_all();
    }

    pub(super) fn leave_thread(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Place::default();
        self.changed.notify_all();
    }

    /// The thread's side: waits while parked; false when it shall end. `soon` says that it will probably run soon.
    pub(super) fn wait_to_run(&self, soon: bool) -> bool {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).in_guest = false;
        self.changed.notify_all();
        // A processor that sleeps takes about as long to wake.
        let until = Instant::now() + SOON;
        while soon && self.wanted.load(Ordering::Acquire) == PARK && Instant::now() < until {
            std::hint::spin_loop();
        }
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.wanted.load(Ordering::Acquire) {
                RUN => break,
                END => return false,
                _ => place = self.changed.wait(place).unwrap_or_else(PoisonError::into_inner),
            }
        }
        place.in_guest = true;
        true
    }

    /// The thread's side, before each entry.
    pub(super) fn may_run(&self) -> bool {
        self.wanted.load(Ordering::Acquire) == RUN
    }

    /// The thread's side: park at the next look, unless the end is wanted already.
    pub(super) fn park_self(&self) {
        let _ = self.wanted.compare_exchange(RUN, PARK, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn resume(&self) {
        let _place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.wanted.compare_exchange(PARK, RUN, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify_all();
    }

    pub(super) fn park(&self) {
        self.park_self();
        self.pull_out();
    }

    pub(super) fn end(&self) {
        self.wanted.store(END, Ordering::Release);
        self.pull_out();
    }

    /// Signals the thread until it has left the guest. A signal that comes just before KVM_RUN is lost, hence the loop.
    fn pull_out(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
        while place.in_guest {
            if let Some(thread) = place.thread {
                // SAFETY: the signal has a handler (`install_handler`), and the thread cannot end while `in_guest` is
                // true, since it takes this lock first.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
            }
            let wait = self.changed.wait_timeout(place, Duration::from_millis(1));
            place = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Gives the kick signal (SIGRTMIN) a handler that does nothing: it only ends KVM_RUN with EINTR.
pub fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler touches nothing, and `action` lives through the call.
    match unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_thread_runs_parks_runs_again_and_ends() {
        install_handler().unwrap();
        let (switch, turns) = (Arc::new(Switch::default()), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (switch, turns) = (Arc::clone(&switch), Arc::clone(&turns));
            move || {
                switch.enter_thread();
                let mut soon = false;
                while switch.wait_to_run(soon) {
                    soon = !soon;
                    while switch.may_run() {
                        turns.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
                switch.leave_thread();
            }
        });
        for _ in 0..20 {
            switch.resume();
            let before = turns.load(Ordering::Relaxed);
            while turns.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            switch.park();
            let parked = turns.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(200));
            assert_eq!(turns.load(Ordering::Relaxed), parked);
        }
        switch.end();
        thread.join().unwrap();
    }
}
