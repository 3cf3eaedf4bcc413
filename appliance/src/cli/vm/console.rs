//! `throughway vm console`: this terminal as that of a guest that runs.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm::control::{Attach, Request};

use super::Guest;
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::terminal::{Raw, catch};
use crate::control::ClientError;

/// Typed and not taken by the guest; what is typed beyond that is dropped.
const MOST_TYPED: usize = 64 << 10;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    guest: Guest,
    /// Only watch: what is typed does not reach the guest.
    #[arg(long, conflicts_with = "take")]
    read_only: bool,
    /// Take the keyboard from who is attached already; they are detached.
    #[arg(long)]
    take: bool,
    /// Do not begin with what the guest has said of late.
    #[arg(long)]
    no_recent: bool,
    /// The key in front of what is for us, not for the guest: Ctrl and a letter, or one of [ \ ] ^ _.
    #[arg(long, value_name = "KEY", default_value = "^a", value_parser = control_key)]
    escape: u8,
}

/// `^a` or `^]` as the byte that it types.
fn control_key(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [b'^', key @ (b'a'..=b'z' | b'A'..=b'Z' | b'['..=b'_')] => Ok(key.to_ascii_uppercase() & 0x1f),
        _ => Err("a key is written as ^a or ^]".to_owned()),
    }
}

/// `Ctrl-A` of the byte that it types.
fn name(key: u8) -> String {
    format!("Ctrl-{}", char::from(key | 0x40))
}

/// Why the console is left.
enum Left {
    Detached,
    Over,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut client = arguments.guest.connect()?;
    let write = !arguments.read_only;
    let how = Attach { write, take: arguments.take, recent: !arguments.no_recent };
    client.ask(&Request::Console(how))?;
    let vm = client.vm().to_owned();
    let (first, socket) = client.into_console();
    // Before the terminal is changed: it is put back on every way out.
    let signals = catch(&[SIGTERM, SIGINT, SIGHUP]).context("Catching signals")?;
    let raw = Raw::new().context("Setting the terminal up")?;
    if raw.is_some() {
        let escape = name(arguments.escape);
        let typing = if write { "" } else { ", watching only" };
        eprint!("Attached to guest `{vm}`{typing}. {escape} d detaches, {escape} h helps.\r\n");
    }
    let mut console = Console {
        socket,
        signals,
        keyboard: Keyboard { escape: arguments.escape, escaped: false },
        typed: Vec::new(),
        write,
        guest: &arguments.guest,
    };
    let left = show(&first).and_then(|()| console.run());
    drop(raw);
    match left.context("The console of the guest")? {
        Left::Detached => eprintln!("\nDetached from guest `{vm}`, which goes on."),
        Left::Over => match arguments.guest.connect() {
            Ok(_) => eprintln!("\nDetached: somebody else has taken the console of guest `{vm}`."),
            Err(ClientError::NotRunning(_) | ClientError::Dead(..) | ClientError::Between(_)) => {
                eprintln!("\nGuest `{vm}` has ended.");
            }
            Err(error) => return Err(error.into()),
        },
    }
    Ok(Exit::Success)
}

struct Console<'a> {
    socket: UnixStream,
    signals: File,
    keyboard: Keyboard,
    typed: Vec<u8>,
    write: bool,
    guest: &'a Guest,
}

impl Console<'_> {
    fn run(&mut self) -> io::Result<Left> {
        let stdin = io::stdin();
        let mut listens = true;
        loop {
            let wanted = if self.typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut fds = vec![PollFd::new(&self.socket, wanted), PollFd::new(&self.signals, PollFlags::IN)];
            if listens {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            let is = |at: usize, flag: PollFlags| ready.get(at).is_some_and(|flags| flags.intersects(flag));
            let some = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            if is(1, some) {
                return Ok(Left::Detached);
            }
            if is(2, some)
                && let Some(left) = self.type_in(&mut listens)?
            {
                return Ok(left);
            }
            if !self.typed.is_empty() && is(0, PollFlags::OUT) {
                self.send()?;
            }
            if is(0, some) && !self.hear()? {
                return Ok(Left::Over);
            }
        }
    }

    /// From the keyboard.
    fn type_in(&mut self, listens: &mut bool) -> io::Result<Option<Left>> {
        let mut bytes = [0; 1024];
        let count = match rustix::io::read(io::stdin().as_fd(), &mut bytes[..]) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                *listens = false;
                return Ok(None);
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for key in self.keyboard.keys(bytes.get(..count).unwrap_or_default()) {
            match key {
                Key::Byte(byte) if self.write && self.typed.len() < MOST_TYPED => self.typed.push(byte),
                Key::Byte(_) => {}
                Key::Detach => return Ok(Some(Left::Detached)),
                Key::PowerButton => match self.guest.ask(&Request::PowerButton) {
                    Ok(_) => eprint!("\r\nThe power button is pressed.\r\n"),
                    Err(Failure::Refused(error) | Failure::Fault(error)) => eprint!("\r\nerror: {error}\r\n"),
                    Err(Failure::Input(_)) => {}
                },
                Key::Help => self.help()?,
            }
        }
        Ok(None)
    }

    fn help(&self) -> io::Result<()> {
        let escape = name(self.keyboard.escape);
        show(
            format!(
                "\r\n{escape} d  detach; the guest goes on\r\n{escape} p  press its power button\r\n{escape} a  send {escape}\r\n{escape} h  this help\r\n"
            )
            .as_bytes(),
        )
    }

    fn send(&mut self) -> io::Result<()> {
        match send(&self.socket, &self.typed, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => drop(self.typed.drain(..count.min(self.typed.len()))),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Its end is heard when reading.
            Err(_) => self.typed.clear(),
        }
        Ok(())
    }

    /// From the guest; false at the end.
    fn hear(&self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        match recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => Ok(false),
            Ok((count, _)) => show(bytes.get(..count).unwrap_or_default()).map(|()| true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

/// What a key means.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Byte(u8),
    Detach,
    PowerButton,
    Help,
}

struct Keyboard {
    escape: u8,
    escaped: bool,
}

impl Keyboard {
    fn keys(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::with_capacity(bytes.len());
        for byte in bytes.iter().copied() {
            if !std::mem::take(&mut self.escaped) {
                self.escaped = byte == self.escape;
                keys.extend((!self.escaped).then_some(Key::Byte(byte)));
                continue;
            }
            keys.push(match byte {
                b'd' | b'D' | b'q' | b'.' | 0x04 => Key::Detach,
                b'p' | b'P' => Key::PowerButton,
                b'a' => Key::Byte(self.escape),
                byte if byte == self.escape => Key::Byte(byte),
                _ => Key::Help,
            });
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_escape_key_is_for_us() {
        let mut keyboard = Keyboard { escape: 1, escaped: false };
        assert_eq!(keyboard.keys(b"x\x01"), [Key::Byte(b'x')]);
        assert_eq!(keyboard.keys(b"d"), [Key::Detach]);
        assert_eq!(
            keyboard.keys(b"\x01\x01\x01a\x01p\x01?d"),
            [Key::Byte(1), Key::Byte(1), Key::PowerButton, Key::Help, Key::Byte(b'd')]
        );
    }

    #[test]
    fn escape_keys_are_written_with_a_caret() {
        assert_eq!(control_key("^a"), Ok(1));
        assert_eq!(control_key("^A"), Ok(1));
        assert_eq!(control_key("^]"), Ok(0x1d));
        assert_eq!((name(1), name(0x1d)), ("Ctrl-A".into(), "Ctrl-]".into()));
        assert!(control_key("a").is_err() && control_key("^5").is_err());
    }
}
