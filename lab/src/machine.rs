//! One running box: starts QEMU, time-stamps its console, hands over the results
//! that come out of its second serial port, and ends it whatever happens here.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::qemu::{self, Spec};
use crate::sysroot::Sysroot;

/// What came out of the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A line of L1's console.
    Console(String),
    /// A line of the results port.
    Result(String),
    /// The box has ended.
    Ended,
    /// Nothing within the time waited.
    Silence,
}

/// A running box. Dropping it kills QEMU; so does the end of this process, however it comes.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    input: Option<ChildStdin>,
    shown: Arc<AtomicBool>,
    events: Receiver<Event>,
    started: Instant,
}

impl Machine {
    /// Boots the box. `log` gets the time-stamped console.
    pub fn boot(sysroot: &Sysroot, mut spec: Spec, log: &Path) -> Result<Self> {
        // Made without close-on-exec: QEMU opens it again through /proc/self/fd.
        let (reader, writer) = rustix::pipe::pipe().context("Making the results pipe")?;
        spec.results = Some(writer.as_raw_fd());
        let mut command = command(sysroot, &spec);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().context("Starting QEMU")?;
        drop(writer);
        let (sender, events) = mpsc::channel();
        let log = File::create(log).with_context(|| format!("Creating {}", log.display()))?;
        let shown = Arc::new(AtomicBool::new(false));
        if let Some(console) = child.stdout.take() {
            let (sender, log) = (sender.clone(), log.try_clone().context("Sharing the console log")?);
            let console = Tee { from: console, shown: Arc::clone(&shown) };
            std::thread::spawn(move || stream(console, started, log, &sender, Event::Console));
        }
        if let Some(errors) = child.stderr.take() {
            let (sender, log) = (sender.clone(), log.try_clone().context("Sharing the console log")?);
            std::thread::spawn(move || {
                stream(errors, started, log, &sender, |line| Event::Console(format!("qemu: {line}")))
            });
        }
        std::thread::spawn(move || {
            stream(File::from(reader), started, log, &sender, Event::Result);
            // The far end is QEMU's alone: its end is the box's.
            let _ = sender.send(Event::Ended);
        });
        let input = child.stdin.take();
        Ok(Self { child, input, shown, events, started })
    }

    /// Waits for the next event, at most until `deadline`.
    pub fn next(&self, deadline: Instant) -> Event {
        match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Silence,
            Err(RecvTimeoutError::Disconnected) => Event::Ended,
        }
    }

    /// Whether L1's console is also copied to standard output, byte by byte as it comes.
    pub fn show_console(&self, shown: bool) {
        self.shown.store(shown, Ordering::Relaxed);
    }

    /// What is written here is typed on L1's console.
    pub fn console_input(&mut self) -> impl Write + '_ {
        Input(self.input.as_mut())
    }

    /// Time since QEMU was started.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Only ever this child: it is not reaped before, so its number is not another's.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Boots the box with the terminal as its console, until the person leaves.
pub fn interactive(sysroot: &Sysroot, spec: &Spec) -> Result<ExitStatus> {
    command(sysroot, spec).status().context("Starting QEMU")
}

fn command(sysroot: &Sysroot, spec: &Spec) -> Command {
    // setpriv makes the kernel kill QEMU when this process ends, even by SIGKILL.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.args(sysroot.run_with("/usr/bin/qemu-system-x86_64"));
    command.args(qemu::arguments(spec, &sysroot.path("/usr/share")));
    command.env("QEMU_MODULE_DIR", sysroot.path("/usr/lib/x86_64-linux-gnu/qemu"));
    command
}

/// A reader that copies what it reads to standard output while it is asked to.
struct Tee<R> {
    from: R,
    shown: Arc<AtomicBool>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if self.shown.load(Ordering::Relaxed) {
            let mut stdout = io::stdout();
            stdout.write_all(buffer.get(..count).unwrap_or_default())?;
            stdout.flush()?;
        }
        Ok(count)
    }
}

struct Input<'a>(Option<&'a mut ChildStdin>);

impl Write for Input<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |input| input.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |input| input.flush())
    }
}

fn stream(
    from: impl Read,
    started: Instant,
    mut log: File,
    to: &Sender<Event>,
    event: impl Fn(String) -> Event,
) {
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        let _ = writeln!(log, "[{:8.3}] {line}", started.elapsed().as_secs_f64());
        if to.send(event(line)).is_err() {
            return;
        }
    }
}

/// The folder one run shares with its box. Removed on drop; what a killed run
/// left is removed by the next one.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes a folder below `base` that no other run has.
    pub fn create(base: &Path) -> Result<Self> {
        fs::create_dir_all(base).with_context(|| format!("Creating {}", base.display()))?;
        sweep(base);
        let pid = std::process::id();
        for number in 0_u32.. {
            let path = base.join(format!("{pid}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("Creating {}", path.display())),
            }
        }
        anyhow::bail!("No free run folder in {}", base.display())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of runs whose process is gone.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split('-').next().unwrap_or_default();
        if !pid.is_empty() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_folders_are_distinct_and_go_away() {
        let base = tempfile::tempdir().unwrap();
        let first = RunFolder::create(base.path()).unwrap();
        let second = RunFolder::create(base.path()).unwrap();
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }

    #[test]
    fn what_a_killed_run_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        // Process numbers end at 2^22 (PID_MAX_LIMIT of linux/threads.h).
        let stale = base.path().join("4194305-0");
        fs::create_dir(&stale).unwrap();
        let _run = RunFolder::create(base.path()).unwrap();
        assert!(!stale.exists());
    }
}
