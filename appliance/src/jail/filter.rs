//! Which system calls each kind of the machine's threads may make.
//!
//! A list of what is allowed, a little less for each thread that begins from another; everything else ends the process with a line
//! that says what it was ([`trap`](super::trap)). A second list answers with an error: what libraries try and can do without.
//!
//! What depends on a call's number alone is decided by a tree in front of what `seccompiler` makes of the rest: a list that is gone
//! through takes the kernel 0.1 ms longer to take in, on each thread of a start.

use std::collections::BTreeMap;
use std::io;

use libc::{SYS_clone, SYS_ioctl};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use vmm::threads::Kind;

use super::rules::{Result, Rules, common, is, program, rule, threads};
use super::tree::{self, Answer};

/// Of every thread: memory, waiting, files that are open, its own end.
const ALL: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getcpu,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // For the filters of threads that begin; they can only allow less.
    libc::SYS_seccomp,
];

/// Of those that work on disks and queues.
const STORAGE: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fcntl,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Of those that make devices work: vCPUs, on whose threads a guest's registers are written, and those below.
const DEVICES: &[i64] = &[libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sched_setaffinity, libc::SYS_pipe2];

/// Of the machine's loop and those that it starts.
const CONTROL: &[i64] = &[
    libc::SYS_memfd_create,
    // By which the standard library copies a file, where the kernel can.
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_prlimit64,
    libc::SYS_flock,
    // Of an image that is opened: its file system's block size.
    libc::SYS_fstatfs,
    libc::SYS_rt_sigaction,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
];

/// Answered with ENOSYS: the standard library looks for limits of its control group, the C library for the number of
/// processors; each goes on without. clone3(2) hides its flags from a filter: the C library takes clone(2) then.
const REFUSED: &[i64] = &[libc::SYS_clone3, libc::SYS_open, libc::SYS_openat, libc::SYS_readlink];

/// ioctl(2) numbers by what they are of: `asm-generic/ioctl.h` has the type in bits 8 to 15.
const KVM: u64 = 0xae;
const VFIO_AND_IOMMUFD: u64 = 0x3b;
const VHOST: u64 = 0xaf;
const TUN: u64 = 0x54;
/// Of a block device, `linux/fs.h`: sizes of its sectors and of itself.
const BLKSSZGET: u64 = 0x1268;
const BLKGETSIZE64: u64 = 0x8008_1272;

/// Has the calling thread be of this kind from now on, and all that it starts.
///
/// # Errors
/// The kernel refuses.
pub fn enter(kind: Kind) -> io::Result<()> {
    seccompiler::apply_filter(&compiled(kind)?).map_err(io::Error::other)
}

fn compiled(kind: Kind) -> io::Result<BpfProgram> {
    let rules = rules(kind).map_err(io::Error::other)?;
    let rest = program(rules, SeccompAction::Trap, SeccompAction::Allow)?;
    Ok(tree::before(rest, &plain(kind)).ok_or(io::ErrorKind::InvalidData)?)
}

/// What is answered without a look at the call's arguments.
fn plain(kind: Kind) -> BTreeMap<i64, Answer> {
    let lists: &[&[i64]] = match kind {
        Kind::Control | Kind::Hotplug => &[ALL, STORAGE, DEVICES, CONTROL],
        Kind::Vcpu => &[ALL, STORAGE, DEVICES],
        Kind::Queue => &[ALL, STORAGE],
        Kind::Prefault => &[ALL],
    };
    let allowed = lists.iter().flat_map(|list| list.iter()).map(|call| (*call, Answer::Allow));
    allowed.chain(REFUSED.iter().map(|call| (*call, Answer::Absent))).collect()
}

/// The calls that are allowed with some arguments.
fn rules(kind: Kind) -> Result<Rules> {
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_VMA];
    let mut rules = common(&names)?;
    if !matches!(kind, Kind::Prefault) {
        rules.insert(SYS_ioctl, ioctls(kind)?);
    }
    if !matches!(kind, Kind::Prefault | Kind::Queue) {
        rules.insert(SYS_clone, vec![threads()?]);
    }
    Ok(rules)
}

fn ioctls(kind: Kind) -> Result<Vec<SeccompRule>> {
    let of = |what: u64| {
        let equal = SeccompCmpOp::MaskedEq(0xff00);
        rule(&[SeccompCondition::new(1, SeccompCmpArgLen::Dword, equal, what << 8)?])
    };
    let mut allowed = vec![of(KVM)?, of(VHOST)?];
    // A tap's numbers are those of terminals, which say nothing of the length of what they point at.
    for direction in [1_u64, 2] {
        let equal = SeccompCmpOp::MaskedEq(0xc000_ff00);
        let number = direction << 30 | TUN << 8;
        allowed.push(rule(&[SeccompCondition::new(1, SeccompCmpArgLen::Dword, equal, number)?])?);
    }
    for number in [BLKSSZGET, BLKGETSIZE64] {
        allowed.push(rule(&[is(1, number)?])?);
    }
    if kind != Kind::Queue {
        allowed.push(of(VFIO_AND_IOMMUFD)?);
        allowed.push(rule(&[is(1, libc::FIONBIO)?])?);
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_filter_that_the_kernel_would_take() {
        for kind in [Kind::Control, Kind::Vcpu, Kind::Queue, Kind::Hotplug, Kind::Prefault] {
            let length = compiled(kind).unwrap().len();
            assert!((50..4096).contains(&length), "{kind:?}: {length}");
        }
    }
}
