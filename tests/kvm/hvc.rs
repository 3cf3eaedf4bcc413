//! The virtio console: on a terminal, on pipes, and of a guest in the background.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::machine::{Guest, Heard, available, wait_until};
use crate::terminal::Terminal;

fn guest() -> Guest {
    Guest { key: "console: virtio", ..Guest::new("test=hvc") }
}

#[test]
fn pipes_get_what_both_consoles_say_and_the_virtio_console_hears() {
    if !available() {
        return;
    }
    let mut guest = guest().start();
    guest.wait_for("by COM1\nby virtio\n");
    // More than it takes at once.
    let text = "0123456789abcdefgh".repeat(20);
    guest.send(text.as_bytes());
    guest.wait_for(&text);
    guest.send(b"q");
    let ended = guest.end();
    let said = format!("by COM1\nby virtio\n{text}bye\n");
    assert_eq!((ended.code, ended.console), (Some(0), said), "{}", ended.log);
}

#[test]
fn a_terminal_is_typed_to_and_left() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut guest = terminal.start(&self::guest(), true);
    guest.wait_for("by virtio");
    terminal.type_in(b"abc\x03\x01a");
    guest.wait_for("abc\x03\x01");
    terminal.type_in(b"\x01x");
    guest.wait_for_end_with(7);
}

#[test]
fn a_guest_in_the_background_is_heard_typed_to_and_logged() {
    if !available() {
        return;
    }
    let (_, folder) = guest().command();
    let folder = folder.path();
    let vm = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("vm").args(words).arg("--run-dir").arg(folder.join("run")).env_remove("RUST_LOG");
        command
    };
    let mut start = vm(&["start", "guest"]);
    start.arg("--file").arg(folder.join("box.yaml")).arg("--log-dir").arg(folder.join("logs"));
    let started = start.arg("--state-dir").arg(folder.join("state")).output().unwrap();
    assert_eq!(started.status.code(), Some(0), "{}", String::from_utf8_lossy(&started.stderr));

    let mut console = vm(&["console", "guest"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let heard = Heard::listen(console.stdout.take().unwrap());
    assert!(heard.wait_for("by COM1\nby virtio\n", 0).is_some(), "what was said before");
    let mut keyboard = console.stdin.take().unwrap();
    keyboard.write_all(b"typed over the socket").unwrap();
    assert!(heard.wait_for("typed over the socket", 0).is_some());
    let log = folder.join("logs/guest.console.log");
    wait_until("the log has it", || {
        std::fs::read_to_string(&log).unwrap_or_default() == "by COM1\nby virtio\ntyped over the socket"
    });
    keyboard.write_all(b"q").unwrap();
    assert!(heard.wait_for("bye\n", 0).is_some());
    assert_eq!(console.wait().unwrap().code(), Some(0));
    wait_until("it is gone", || !folder.join("run/guest").exists());
}
