//! Joins this terminal with the box's console, byte by byte.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::machine::{Event, Machine};

/// Ctrl-A, the key that introduces a command, as in QEMU and screen.
const ESCAPE: u8 = 1;

/// The terminal in raw mode; as it was again on drop.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Ok(Self { before: None }) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("Setting the terminal to raw mode")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Tells a leaving person's keys from others: Ctrl-A x leaves, Ctrl-A Ctrl-A is Ctrl-A.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// The bytes to pass on, or `None` to leave.
    fn take(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut pass = Vec::new();
        for key in typed {
            match (self.escaped, *key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return None,
                (_, key) => {
                    self.escaped = false;
                    pass.push(key);
                }
            }
        }
        Some(pass)
    }
}

/// Relays until the person leaves, the box ends, or the demonstration in it does.
pub fn console(machine: &mut Machine) -> Result<()> {
    let _raw = Raw::enter()?;
    machine.show_console(true);
    let mut keys = Keys::default();
    let mut typing = true;
    loop {
        let now = Instant::now();
        let until = now.checked_add(Duration::from_millis(if typing { 0 } else { 200 })).unwrap_or(now);
        match machine.next(until) {
            Event::Ended => return Ok(()),
            Event::Result(line) if line.starts_with("##end") => return Ok(()),
            _ => {}
        }
        if typing {
            let stdin = std::io::stdin();
            let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
            let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            if poll(&mut ready, Some(&wait)).unwrap_or(0) == 0 {
                continue;
            }
            let mut typed = [0_u8; 256];
            let count = stdin.lock().read(&mut typed).context("Reading the terminal")?;
            if count == 0 {
                // No more input is no reason to end: the guest goes on.
                typing = false;
                continue;
            }
            let Some(pass) = keys.take(typed.get(..count).unwrap_or_default()) else { return Ok(()) };
            machine.console_input().write_all(&pass).context("Writing to the box's console")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_a_x_leaves_and_nothing_else_does() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ax").as_deref(), Some(&b"ax"[..]));
        assert_eq!(keys.take(b"\x01\x01x").as_deref(), Some(&b"\x01x"[..]));
        assert_eq!(keys.take(b"\x01").as_deref(), Some(&b""[..]));
        assert_eq!(keys.take(b"x"), None);
    }
}
