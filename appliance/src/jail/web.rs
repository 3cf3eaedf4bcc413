//! The walls around `throughway web`: files of its own folder and no other ones, no connection that it makes itself, no program.
//!
//! It holds what the daemon has handed it: listeners, its folder, one socket. What comes in by those is all that it needs, so of
//! the file system Landlock leaves it the folder, and of the system calls a list leaves it what files and connections are worked
//! with. All of it is done on its only thread, before the first stranger is let in; threads that it makes have it from there.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use libc::{SYS_clone, SYS_ioctl};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::SeccompAction;

use super::rules::{Result, Rules, any, common, is, program, rule, threads};
use super::trap::{self, Then};

/// What is asked of Landlock where the kernel has it; an older one gives less.
const LANDLOCK: ABI = ABI::V6;

/// Of every thread.
const ALLOWED: &[i64] = &[
    // Memory, waiting, and its own end.
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getcpu,
    libc::SYS_uname,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // What is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    // Its folder: Landlock says which.
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    // Connections that others have made.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// Answered with ENOSYS: what libraries try, and can do without. clone3(2) hides its flags from a filter: the C library takes
/// clone(2) then.
const REFUSED: &[i64] = &[libc::SYS_clone3, libc::SYS_readlink, libc::SYS_getcwd, libc::SYS_prlimit64];

/// What this host does not give of it, in words.
#[derive(Debug, Default)]
pub struct Lacks(Option<&'static str>);

impl Lacks {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.unwrap_or_default())
    }
}

/// Locks this process up, which must have one thread: it may write in this folder, and read in that of the file of users.
///
/// # Errors
/// It has more threads, or the kernel refuses: then it must not serve anybody.
pub fn enter(folder: BorrowedFd<'_>, users: Option<&Path>) -> io::Result<Lacks> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("there are {threads} threads already")));
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    trap::install(Then::End)?;
    lock_thread(folder, users)
}

/// The calling thread, and those that it makes.
fn lock_thread(folder: BorrowedFd<'_>, users: Option<&Path>) -> io::Result<Lacks> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    let lacks = match lock_land(folder, users)? {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some("a newer Landlock"),
        RulesetStatus::NotEnforced => Some("Landlock"),
    };
    filter()?;
    Ok(Lacks(lacks))
}

/// Nothing of the file system can be opened but what is said here, no port be bound or connected to, no abstract socket be
/// reached, no other process be sent a signal.
fn lock_land(folder: BorrowedFd<'_>, users: Option<&Path>) -> io::Result<RulesetStatus> {
    let own = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile;
    let locked = || {
        let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        let rules = rules.handle_access(AccessFs::from_all(LANDLOCK))?;
        let rules = rules.handle_access(AccessNet::from_all(LANDLOCK))?;
        let rules = rules.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        let mut rules = rules.create()?.add_rule(PathBeneath::new(folder, own))?;
        for folder in folders(users) {
            let reads: BitFlags<AccessFs> = AccessFs::ReadFile.into();
            rules = rules.add_rule(PathBeneath::new(folder, reads))?;
        }
        rules.restrict_self()
    };
    Ok(locked().map_err(io::Error::other)?.ruleset)
}

/// The folders that the file of users is looked for in: where it is said to be, and where that leads. Who edits it puts another
/// file into its place, so it is the folder that counts. One that cannot be opened now cannot be read later either.
fn folders(users: Option<&Path>) -> Vec<PathFd> {
    let said = users.map(Path::to_owned);
    let led = users.and_then(|users| std::fs::canonicalize(users).ok());
    let parent = |path: PathBuf| path.parent().map(Path::to_owned);
    [said, led].into_iter().flatten().filter_map(parent).filter_map(|path| PathFd::new(path).ok()).collect()
}

/// From now on system calls are those of the lists.
fn filter() -> io::Result<()> {
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let refused = program(any(REFUSED), SeccompAction::Allow, absent)?;
    let allowed = rules().map_err(io::Error::other)?;
    let allowed = program(allowed, SeccompAction::Trap, SeccompAction::Allow)?;
    for program in [refused, allowed] {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn rules() -> Result<Rules> {
    let mut rules = any(ALLOWED);
    // The first list refuses them, but only where this one does not end the process for them.
    rules.extend(any(REFUSED));
    rules.extend(common(&[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA])?);
    rules.insert(SYS_ioctl, vec![rule(&[is(1, libc::FIONBIO)?])?]);
    rules.insert(SYS_clone, vec![threads()?]);
    Ok(rules)
}

#[cfg(test)]
mod tests;
