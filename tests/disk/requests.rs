//! Each kind of request, on each queue of a disk, by each way that it may be served.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use crate::machine::{self, Ended, Guest, Heard, Running};
use crate::tools;

/// What the guest of `test=requests` says of a queue of a disk that it may write to.
const GOOD: &str = "write 0 read it flush 0 discard 0 write 0 zeroes 0 read it write 0 read 0 same name 0 root beyond 1 nonsense 2";
/// And of one that it may not, after it could: the sector that is written last is as it was.
const READ_ONLY: &str = "write 1 read something else flush 0 discard 1 write 1 zeroes 1 read it write 1 read 0 same name 0 root \
                         beyond 1 nonsense 2";

fn ended(disk: &Path, options: &str, io_uring: bool) -> Ended {
    let mut guest = Guest::new("test=requests");
    guest.arguments = &["-v"];
    guest.disks = format!("{{root: {{path: \"{}\", queues: 3, {options}}}}}", disk.display());
    let (mut command, folder) = guest.command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !io_uring {
        // SAFETY: between fork and exec it makes two system calls with arguments on the stack, and nothing else.
        unsafe { command.pre_exec(without_io_uring) };
    }
    let mut child = command.spawn().unwrap();
    let console = Heard::listen(child.stdout.take().unwrap());
    Running::new(child, console, folder).end()
}

/// As a host does that forbids it: `io_uring_setup` fails with EPERM.
fn without_io_uring() -> std::io::Result<()> {
    let filter = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let mut program = [
        // The number of the call: the first word.
        filter(0x20, 0, 0),
        filter(0x15, 1, u32::try_from(libc::SYS_io_uring_setup).unwrap_or_default()),
        filter(0x06, 0, refused),
        filter(0x06, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: no pointers are involved.
    let sealed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which outlives the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if sealed == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Runs the guest and looks at what each of the three queues did, and at what was said of how it is served.
fn serves(disk: &Path, options: &str, io_uring: bool, answers: &str, how: &str) {
    let ended = ended(disk, options, io_uring);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.console.contains("queues 3\n") && ended.console.ends_with("all\n"), "{}", ended.console);
    for queue in 0..3 {
        let wanted = format!("queue {queue}: {answers}\n");
        assert!(ended.console.contains(&wanted), "{wanted} {}", ended.console);
    }
    assert!(ended.log.contains(&format!("disk root: {how}")), "{how}: {}", ended.log);
}

#[test]
fn every_request_is_served_by_every_way() {
    if !tools::available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = folder.path();
    tools::run(at, "throughway image create disk.raw 1MiB");
    tools::run(at, "throughway image create disk.qcow2 1MiB");
    let (raw, qcow2) = (at.join("disk.raw"), at.join("disk.qcow2"));
    let one_by_one = "requests are done one by one on each queue";
    serves(&raw, "format: raw", true, GOOD, "io_uring in use");
    serves(&raw, "format: raw, direct: true", true, GOOD, "io_uring in use");
    let refused = format!("io_uring not in use (Operation not permitted (os error 1)), {one_by_one}");
    serves(&raw, "format: raw", false, GOOD, &refused);
    serves(&raw, "format: raw, direct: true", false, GOOD, &refused);
    serves(&qcow2, "format: qcow2", true, GOOD, one_by_one);
    tools::run(at, "qemu-img check disk.qcow2");
    let before = std::fs::read(&raw).unwrap();
    serves(&raw, "format: raw, read-only: true", true, READ_ONLY, "io_uring in use");
    serves(&raw, "format: raw, read-only: true", false, READ_ONLY, &refused);
    assert!(before == std::fs::read(&raw).unwrap());
}
