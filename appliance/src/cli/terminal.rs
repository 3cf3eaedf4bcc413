//! The person's terminal as the guest's console: raw while the guest runs, Ctrl-A in front of what is for us. Signals too.
//!
//! No thread waits for them: the machine's own loop does.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use vmm::Machine;
use vmm::machine::{Handle, Watched};
use vmm::spec::{Console, ConsoleDevice};

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
const HELP: &[u8] = b"\r\nCtrl-A x  stop the guest and leave\r\nCtrl-A p  press its power button\r\nCtrl-A a  send Ctrl-A\r\nCtrl-A h  this help\r\n";

/// Standard input as a raw terminal, until this is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    /// None where standard input is no terminal.
    pub(super) fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            tracing::warn!("Putting the terminal back: {error}; `reset` does it");
        }
    }
}

/// The signals of a guest's process.
pub(super) struct Heard {
    /// Those that end a process.
    pub(super) stop: File,
    /// What it has counted is to be said.
    pub(super) stats: File,
}

/// Signals are waited for: those that end a process stop the guest, so that its devices go back.
pub(super) fn hear() -> io::Result<Heard> {
    Ok(Heard { stop: catch(&[SIGTERM, SIGINT, SIGHUP])?, stats: catch(&[SIGUSR1])? })
}

/// Has the machine do what signals ask for.
pub(super) fn heed_signals(machine: &mut Machine, heard: Heard) {
    let stop = Handle::stop as fn(&Handle);
    for (came, act) in [(heard.stop, stop), (heard.stats, Handle::log_stats)] {
        machine.watch(Box::new(Signals { came, handle: machine.handle(), act }));
    }
}

/// The ends of the console that the guest gets. Has the machine wait for what is typed in a terminal that is `raw`; anything else
/// (a pipe, a file) is passed on untouched.
pub(super) fn console(machine: &mut Machine, raw: bool) -> io::Result<Console> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = Some(io::stdout().as_fd().try_clone_to_owned()?);
    let console = |input| Console { device: ConsoleDevice::Serial, input: Some(input), output, log: None };
    if !raw {
        return Ok(console(input));
    }
    // What a guest that reads nothing leaves in the pipe must not keep us from seeing Ctrl-A.
    let (to_us, to_guest) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let handle = machine.handle();
    machine.watch(Box::new(Relay { typed: input, to_guest: to_guest.into(), escaped: false, handle }));
    Ok(console(to_us))
}

/// What some signals do.
struct Signals {
    /// Readable when one has come.
    came: File,
    handle: Handle,
    act: fn(&Handle),
}

/// From now on these signals make the file readable instead of ending us.
pub(super) fn catch(signals: &[i32]) -> io::Result<File> {
    let (came, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(came.into())
}

impl Watched for Signals {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }

    fn ready(&mut self) -> bool {
        if self.came.read(&mut [0; 16]).is_ok() {
            (self.act)(&self.handle);
        }
        true
    }
}

/// From the terminal to the guest, but for what follows Ctrl-A.
struct Relay {
    typed: OwnedFd,
    to_guest: File,
    escaped: bool,
    handle: Handle,
}

impl Watched for Relay {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.typed.as_fd()
    }

    fn ready(&mut self) -> bool {
        let mut bytes = [0; 256];
        let Ok(count @ 1..) = rustix::io::read(&self.typed, &mut bytes) else { return false };
        let mut pass = Vec::with_capacity(count);
        for byte in bytes.iter().take(count).copied() {
            match (self.escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) => pass.push(byte),
                (true, byte) => {
                    self.escaped = false;
                    match byte {
                        b'x' | b'X' | 0x18 => self.handle.stop(),
                        b'p' | b'P' => self.handle.press_power_button(),
                        b'a' | ESCAPE => pass.push(ESCAPE),
                        _ => help(),
                    }
                }
            }
        }
        // Once the guest is gone, nobody reads any more; there is nothing to do about it.
        if let Err(error) = self.to_guest.write_all(&pass) {
            tracing::debug!("Input for the guest was dropped: {error}");
        }
        true
    }
}

/// Where nobody reads what we say, there is nobody to help.
fn help() {
    let mut stdout = io::stdout();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0) {
        let _ = stdout.write_all(HELP).and_then(|()| stdout.flush());
    }
}
