//! The kinds of threads that a machine is made of, and what its owner does to each before it serves a guest.
//!
//! A thread takes over what the one that starts it may do, so a kind may only do less than who starts it: `Control` starts
//! `Hotplug` and `Prefault`, and the thread of vCPU 0; vCPUs start `Queue`. A thread that makes a machine which is known early
//! ([`Begun`](crate::Begun)) is of no kind: it is over before the machine runs.

use std::sync::OnceLock;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The machine's own loop, on the thread that runs it.
    Control,
    /// Runs a vCPU; the first of them starts the others before that.
    Vcpu,
    /// Serves queues of a virtio device.
    Queue,
    /// Opens a device that is plugged in, and lets go of one that leaves.
    Hotplug,
    /// Touches guest memory before the start.
    Prefault,
}

/// What is done on a thread as it begins.
pub type Guard = fn(Kind);

static GUARD: OnceLock<Guard> = OnceLock::new();

/// Has `guard` called on each thread that begins from now on. Once in a process; false where there is one already.
pub fn guard(guard: Guard) -> bool {
    GUARD.set(guard).is_ok()
}

/// The calling thread is one of this kind from now on.
pub(crate) fn begins(kind: Kind) {
    if let Some(guard) = GUARD.get() {
        guard(kind);
    }
}
