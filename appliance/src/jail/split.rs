//! One process becomes two.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitIdOptions, WaitIdStatus, getpid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setsid, waitid,
};
use rustix::thread::{
    CpuSet, ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, sched_getaffinity, sched_getcpu,
    sched_setaffinity, unshare_unsafe,
};

use super::walls::Lacks;
use super::wire::Wire;

/// The machine's end of the wire, in its process.
const WIRE: i32 = 3;

/// Which of the two this process is.
pub enum Split {
    /// The one that was there, with the machine's process in its hands.
    Keeper(Machine),
    /// The new one: its end of the wire, what it lacks so far, and where it may run.
    Machine(Wire, Lacks, Everywhere),
}

/// Where the machine's process may run, which begins on another processor than the keeper's.
#[derive(Clone, Copy)]
pub struct Everywhere(Option<CpuSet>);

/// The machine's process, as its keeper has it. Dropped, it ends.
pub struct Machine {
    wire: Option<Wire>,
    pid: Pid,
    process: OwnedFd,
    over: bool,
}

/// Makes the machine's process. Its standard streams are this one's; it has no other descriptor, and ends when this one does.
///
/// # Errors
/// The system has no room for it.
pub fn split() -> io::Result<Split> {
    let (ours, theirs) = Wire::pair()?;
    let mut lacks = Lacks::default();
    let own_numbers = enter_numbers(&mut lacks);
    let everywhere = Everywhere(sched_getaffinity(None).ok());
    // SAFETY: there are no other threads yet, so the child may do whatever this process may.
    let forked = unsafe { libc::fork() };
    let error = io::Error::last_os_error();
    if forked == 0 {
        drop(ours);
        drop(own_numbers);
        match become_machine(theirs) {
            Ok(wire) => return Ok(Split::Machine(wire, lacks, everywhere)),
            Err(error) => {
                eprintln!("error: Beginning the guest's process: {error}");
                std::process::exit(3);
            }
        }
    }
    let pid = Pid::from_raw(forked).filter(|_| forked > 0).ok_or(error)?;
    everywhere.keep_apart(pid);
    drop(theirs);
    if let Some(own) = own_numbers {
        // Else the keeper's later children would be born among the machine's numbers.
        move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    }
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Split::Keeper(Machine { wire: Some(ours), pid, process, over: false }))
}

/// Has the next child begin process numbers of its own. The answer is the way back: this process.
fn enter_numbers(lacks: &mut Lacks) -> Option<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    // SAFETY: this names process numbers only, for children to come; no memory and no descriptors.
    let own = own.and_then(|own| unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.map(|()| own));
    own.inspect_err(|error| lacks.note("process numbers of its own", &(*error).into())).ok()
}

fn become_machine(wire: Wire) -> io::Result<Wire> {
    // One that was gone before is found out by the wire, which nobody else has the other end of.
    end_with_keeper()?;
    // A session of its own: nothing can be typed into the terminal of the keeper's (TIOCSTI), whose signals come from the
    // keeper.
    let _ = setsid();
    let wire = wire.into_fd();
    // SAFETY: numbers only. What was open as 3 is nothing of this program's: it has just begun.
    if wire.as_raw_fd() != WIRE && unsafe { libc::dup3(wire.as_raw_fd(), WIRE, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    std::mem::forget(wire);
    // SAFETY: numbers only; nobody in this process owns a descriptor from 4 on.
    if unsafe { libc::syscall(libc::SYS_close_range, WIRE + 1, i32::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nothing else owns it.
    Ok(Wire::of(unsafe { OwnedFd::from_raw_fd(WIRE) }))
}

/// The kernel kills this process when its parent ends. To be said again after a change of user, and then the wire asked whether
/// the parent ended meanwhile ([`Wire::is_hung_up`]).
pub(super) fn end_with_keeper() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

impl Everywhere {
    /// Has the new process begin on another processor than this one, where there is one: Linux may leave it behind its parent for
    /// longer than the whole start takes, beside an idle processor (one that halts looks like one that the hypervisor took away).
    fn keep_apart(&self, pid: Pid) {
        let Some(mut others) = self.0 else { return };
        others.unset(sched_getcpu());
        if others.count() > 0 {
            // It is late at worst.
            let _ = sched_setaffinity(Some(pid), &others);
        }
    }

    /// The calling thread may run wherever the keeper may. To be said when the keeper was heard of, as it may place this process
    /// at any time before that.
    pub fn again(&self) {
        if let Some(all) = &self.0 {
            let _ = sched_setaffinity(None, all);
        }
    }
}

impl Machine {
    /// The wire to it; none once it was [let go](Self::hang_up).
    pub fn wire(&self) -> io::Result<&Wire> {
        self.wire.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when it has ended.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Passes a signal on.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.process, signal) {
            tracing::debug!("Passing a signal on to the guest's process: {error}");
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&mut self) -> io::Result<Gone> {
        let status = loop {
            match waitid(rustix::process::WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                status => break status?,
            }
        };
        self.over = true;
        Ok(Gone::from(status))
    }
}

/// How the machine's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// By itself, with this code.
    Exit(i32),
    /// By a signal.
    Signal(i32),
}

impl From<Option<WaitIdStatus>> for Gone {
    fn from(status: Option<WaitIdStatus>) -> Self {
        let signal = status.as_ref().and_then(|status| status.terminating_signal());
        match signal {
            Some(signal) => Self::Signal(signal),
            None => Self::Exit(status.and_then(|status| status.exit_status()).unwrap_or(0)),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.wire.take());
        if !self.over {
            self.signal(Signal::KILL);
            if let Err(error) = self.wait() {
                tracing::debug!("Waiting for the guest's process: {error}");
            }
        }
    }
}
