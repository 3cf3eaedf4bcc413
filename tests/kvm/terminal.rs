//! COM1 on a terminal: raw while the guest runs, and Ctrl-A to get out.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
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

    /// Its program's side, for a process.
    fn end(&self) -> Stdio {
        Stdio::from(self.program.try_clone().unwrap())
    }

    /// Starts `guest` on it. With `listening`, what it says is read.
    pub(crate) fn start(&self, guest: &Guest, listening: bool) -> Running {
        let (mut command, folder) = guest.command();
        let child = command.stdin(self.end()).stdout(self.end()).stderr(Stdio::piped()).spawn().unwrap();
        let console =
            if listening { Heard::listen(self.person.try_clone().unwrap()) } else { Heard::default() };
        Running::new(child, console, folder)
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.person.write_all(bytes).unwrap();
    }

    /// Whether it treats lines as a terminal does for a shell.
    pub(crate) fn is_cooked(&self) -> bool {
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

#[test]
fn a_signal_ends_the_guest_and_the_terminal_is_as_before() {
    if !available() {
        return;
    }
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let terminal = Terminal::open();
        let mut guest = terminal.start(&Guest::new("test=obey"), true);
        guest.wait_for("ready");
        assert!(!terminal.is_cooked());
        guest.signal(signal);
        guest.wait_for_end_with(7);
        assert!(terminal.is_cooked(), "{signal:?}");
    }
}

#[test]
fn a_crash_of_the_guest_leaves_the_terminal_as_before() {
    if !available() {
        return;
    }
    let terminal = Terminal::open();
    let guest = Guest { on_reset: "exit", ..Guest::new("test=triple-fault") };
    terminal.start(&guest, true).wait_for_end_with(5);
    assert!(terminal.is_cooked());
}

/// `throughway vm console` on a terminal of its own.
fn attach(terminal: &Terminal, guest: &Running) -> Running {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.args(["vm", "console", "guest", "--run-dir"]).arg(guest.folder().join("run"));
    let child = command.stdin(terminal.end()).stdout(terminal.end()).stderr(Stdio::piped()).spawn().unwrap();
    Running::new(child, Heard::listen(terminal.person.try_clone().unwrap()), tempfile::tempdir().unwrap())
}

#[test]
fn who_leaves_a_console_by_whatever_way_has_the_terminal_as_before() {
    if !available() {
        return;
    }
    let mut guest = Guest::new("test=obey").start();
    guest.wait_for("ready");
    let socket = guest.folder().join("run/guest/control.sock");
    wait_until("it can be controlled", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let attached = || {
        let mut terminal = Terminal::open();
        let mut console = attach(&terminal, &guest);
        console.wait_for("ready");
        assert!(!terminal.is_cooked(), "raw while it is attached");
        terminal.type_in(b"a");
        console.wait_for("a");
        (terminal, console)
    };
    let (mut terminal, console) = attached();
    terminal.type_in(b"\x01d");
    console.wait_for_end_with(0);
    assert!(terminal.is_cooked());
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (terminal, console) = attached();
        console.signal(signal);
        console.wait_for_end_with(0);
        assert!(terminal.is_cooked(), "{signal:?}");
    }
    // The guest ends under it.
    let (mut terminal, console) = attached();
    terminal.type_in(b"q");
    console.wait_for_end_with(0);
    assert!(terminal.is_cooked());
    assert_eq!(guest.end().code, Some(0));
}
