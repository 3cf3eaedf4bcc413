//! The person's terminal as the guest's console: raw while the guest runs, Ctrl-A in front of what is for us.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

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
        act_on_signals(handle.clone())?;
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None, input: stdin.as_fd().try_clone_to_owned()? });
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        // What a guest that reads nothing leaves in the pipe must not keep us from seeing Ctrl-A.
        let (input, to_guest) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let terminal = Self { before: Some(before), input };
        std::thread::Builder::new()
            .name("terminal".into())
            .spawn(move || relay(File::from(to_guest), &handle))?;
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

/// From the terminal to the guest, but for what follows Ctrl-A.
fn relay(mut to_guest: File, handle: &Handle) {
    let mut bytes = [0; 256];
    let mut escaped = false;
    loop {
        let Ok(count @ 1..) = io::stdin().read(&mut bytes) else { return };
        let mut pass = Vec::with_capacity(count);
        for byte in bytes.iter().take(count).copied() {
            match (escaped, byte) {
                (false, ESCAPE) => escaped = true,
                (false, byte) => pass.push(byte),
                (true, byte) => {
                    escaped = false;
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
        if let Err(error) = to_guest.write_all(&pass) {
            tracing::debug!("Input for the guest was dropped: {error}");
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP stop the guest, so that its devices go back; SIGUSR1 asks for its statistics.
fn act_on_signals(handle: Handle) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGUSR1 => handle.log_stats(),
                _ => handle.stop(),
            }
        }
    })?;
    Ok(())
}
