//! The person's terminal as the guest's console: raw while the guest runs, Ctrl-A in front of what is for us. Signals too:
//! one thread waits for all that a person may do.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use vmm::machine::Handle;
use vmm::spec::Console;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
const HELP: &[u8] = b"\r\nCtrl-A x  stop the guest and leave\r\nCtrl-A p  press its power button\r\nCtrl-A a  send Ctrl-A\r\nCtrl-A h  this help\r\n";

/// Standard input and output, as they are to be left again.
pub(super) struct Terminal {
    before: Option<Termios>,
    input: OwnedFd,
}

impl Terminal {
    /// Makes a terminal raw and starts to read it. Anything else (a pipe, a file) is passed on untouched.
    pub(super) fn open(handle: Handle) -> io::Result<Self> {
        let signals = Signals::catch()?;
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            wait_in_background(signals, None, handle)?;
            return Ok(Self { before: None, input: stdin.as_fd().try_clone_to_owned()? });
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        // What a guest that reads nothing leaves in the pipe must not keep us from seeing Ctrl-A.
        let (input, to_guest) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let terminal = Self { before: Some(before), input };
        wait_in_background(signals, Some(Relay { to_guest: to_guest.into(), escaped: false }), handle)?;
        Ok(terminal)
    }

    /// The ends that the guest gets.
    pub(super) fn console(&self) -> io::Result<Console> {
        Ok(Console {
            input: Some(self.input.try_clone()?),
            output: io::stdout().as_fd().try_clone_to_owned()?,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, before)
        {
            tracing::warn!("Putting the terminal back: {error}; `reset` does it");
        }
    }
}

/// Readable when a signal has come.
struct Signals {
    /// SIGTERM, SIGINT and SIGHUP: the guest is stopped, so that its devices go back.
    stop: File,
    /// SIGUSR1: its statistics are logged.
    stats: File,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let on = |signals: &[i32]| {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
            }
            io::Result::Ok(File::from(reader))
        };
        Ok(Self { stop: on(&[SIGTERM, SIGINT, SIGHUP])?, stats: on(&[SIGUSR1])? })
    }
}

/// From the terminal to the guest, but for what follows Ctrl-A.
struct Relay {
    to_guest: File,
    escaped: bool,
}

impl Relay {
    /// Takes what was typed. False where there is no terminal any more.
    fn typed(&mut self, handle: &Handle) -> bool {
        let mut bytes = [0; 256];
        // Not through `Stdin`, whose buffer poll knows nothing of.
        let Ok(count @ 1..) = rustix::io::read(io::stdin(), &mut bytes) else { return false };
        let mut pass = Vec::with_capacity(count);
        for byte in bytes.iter().take(count).copied() {
            match (self.escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) => pass.push(byte),
                (true, byte) => {
                    self.escaped = false;
                    match byte {
                        b'x' | b'X' | 0x18 => handle.stop(),
                        b'p' | b'P' => handle.press_power_button(),
                        b'a' | ESCAPE => pass.push(ESCAPE),
                        _ => {
                            let _ = io::stdout().write_all(HELP).and_then(|()| io::stdout().flush());
                        }
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

fn wait_in_background(mut signals: Signals, mut relay: Option<Relay>, handle: Handle) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("terminal".into());
    thread.spawn(move || {
        loop {
            let stdin = io::stdin();
            let mut waited =
                vec![PollFd::new(&signals.stop, PollFlags::IN), PollFd::new(&signals.stats, PollFlags::IN)];
            if relay.is_some() {
                waited.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("Waiting for signals and the terminal: {error}");
                    return;
                }
            }
            let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            let mut signal = [0; 16];
            if is_ready(0) && signals.stop.read(&mut signal).is_ok() {
                handle.stop();
            }
            if is_ready(1) && signals.stats.read(&mut signal).is_ok() {
                handle.log_stats();
            }
            if is_ready(2) && !relay.as_mut().is_some_and(|relay| relay.typed(&handle)) {
                relay = None;
            }
        }
    })?;
    Ok(())
}
