//! Programs of the box that are asked to do what the kernel does not: found, run, and started to stay.

use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a program may take to end once it is told to.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of what a program says is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// Where `program` is; also where PATH of who is not root does not look.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs a program to its end with `input`; what it says is in the language of scripts.
pub(crate) fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why at its end.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

/// Runs a program that goes on in the background once it serves, to that moment. What is left of it may keep what it was given to
/// write to, so that is no pipe, whose end would never come.
pub(crate) fn start(program: &Path, arguments: &[&str]) -> io::Result<Output> {
    let mut said = std::fs::File::from(rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::CLOEXEC)?);
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let status = command.stdout(said.try_clone()?).stderr(said.try_clone()?).status()?;
    said.rewind()?;
    let mut stderr = Vec::new();
    said.take(LONGEST).read_to_end(&mut stderr)?;
    Ok(Output { status, stdout: Vec::new(), stderr })
}

/// What a program said of its failure, on one line.
pub(crate) fn said(output: &Output) -> String {
    let both = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

/// Writes a file whole or not at all, and so that it survives the box.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// A program that runs on by itself and is found again by its pid file.
pub(crate) struct Running {
    process: OwnedFd,
}

impl Running {
    /// The process that `pid_file` names, when `mark` is one of its arguments: a number can be another's by now.
    pub(crate) fn find(pid_file: &Path, mark: &str) -> Option<Self> {
        let number: i32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let pid = Pid::from_raw(number)?;
        // Held before it is looked at, so that it is the same one that is looked at.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let arguments = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let ours = arguments.split(|byte| *byte == 0).any(|argument| argument == mark.as_bytes());
        (ours && !ended(&process, Duration::ZERO)).then_some(Self { process })
    }

    /// Tells it to end, and waits until it did.
    pub(crate) fn stop(self) -> io::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&self.process, signal) {
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                result => result?,
            }
            if ended(&self.process, PATIENCE) {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"))
    }
}

fn ended(process: &OwnedFd, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
