//! COM1 on a terminal: raw while the guest runs, and Ctrl-A to get out.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::machine::{Guest, Heard, Running, available, wait_until};

pub(crate) struct Terminal {
    /// The person's side.
    person: File,
    /// The program's side.
    program: OwnedFd,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let program = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self { person: person.into(), program }
    }

    /// Starts `guest` on it. With `listening`, what it says is read.
    pub(crate) fn start(&self, guest: &Guest, listening: bool) -> Running {
        let (mut command, folder) = guest.command();
        let end = || Stdio::from(self.program.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(Stdio::piped()).spawn().unwrap();
        let console =
            if listening { Heard::listen(self.person.try_clone().unwrap()) } else { Heard::default() };
        Running::new(child, console, folder)
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.person.write_all(bytes).unwrap();
    }

    /// Whether it treats lines as a terminal does for a shell.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.program).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

#[test]
fn ctrl_a_x_leaves_and_the_terminal_is_as_before() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    assert!(terminal.is_cooked());
    let mut guest = terminal.start(&Guest::new("test=obey"), true);
    guest.wait_for("ready");
    assert!(!terminal.is_cooked(), "raw while the guest runs");
    terminal.type_in(b"\x01x");
    guest.wait_for_end_with(7);
    assert!(terminal.is_cooked());
}

#[test]
fn what_is_typed_reaches_the_guest_ctrl_c_and_ctrl_a_too() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut guest = terminal.start(&Guest::new("test=obey"), true);
    guest.wait_for("ready");
    terminal.type_in(b"abc\x03\x01ad\r");
    guest.wait_for("abc\x03\x01d\r");
    terminal.type_in(b"\x01h");
    guest.wait_for("Ctrl-A x");
    terminal.type_in(b"q");
    guest.wait_for("bye");
    guest.wait_for_end_with(0);
    assert!(terminal.is_cooked());
}

#[test]
fn ctrl_a_p_presses_the_power_button() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut guest = terminal.start(&Guest::new("test=button"), true);
    guest.wait_for("ready");
    terminal.type_in(b"\x01p");
    guest.wait_for("pressed");
    guest.wait_for_end_with(0);
}

#[test]
fn ctrl_a_x_leaves_a_guest_that_never_reads() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut guest = terminal.start(&Guest::new("test=spin"), true);
    guest.wait_for("ready");
    // More than all that is between us and the guest can hold.
    for _ in 0..400 {
        terminal.type_in(&[b'x'; 512]);
    }
    terminal.type_in(b"\x01x");
    guest.wait_for_end_with(7);
}

#[test]
fn ctrl_a_x_leaves_a_guest_that_nobody_reads() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let guest = terminal.start(&Guest::new("test=flood"), false);
    // Raw, so it has started; that it stands still by the time of the signal is likely, and either way it must end.
    wait_until("the terminal is raw", || !terminal.is_cooked());
    std::thread::sleep(std::time::Duration::from_millis(500));
    terminal.type_in(b"\x01x");
    guest.wait_for_end_with(7);
}
