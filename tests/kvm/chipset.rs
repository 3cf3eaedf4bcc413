//! Clocks, and interrupts that arrive by lines.

use std::process::Command;

use crate::machine::{Guest, available};
use crate::terminal::Terminal;

/// The day in UTC, as the guest prints it.
fn today() -> String {
    let date = Command::new("date").args(["-u", "+date %Y-%-m-%-d"]).output().unwrap();
    String::from_utf8(date.stdout).unwrap()
}

#[test]
fn the_guest_knows_the_day_and_how_long_10_ms_are() {
    if !available() {
        return;
    }
    let before = today();
    let ended = Guest::new("test=clocks").run();
    let after = today();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    // It may be midnight.
    let rest = ended.console.strip_prefix(&before).or_else(|| ended.console.strip_prefix(&after));
    assert_eq!(rest, Some("10 ms are over\nmemory 5a\n"), "{}", ended.console);
}

#[test]
fn typing_and_the_power_button_raise_their_lines() {
    if !available() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut guest = terminal.start(&Guest::new("test=interrupts"), true);
    guest.wait_for("type\n");
    terminal.type_in(b"A");
    guest.wait_for("line 4 for 65\n");
    guest.wait_for("press; line 9 is down\n");
    terminal.type_in(b"\x01p");
    guest.wait_for("line 9 is up\n");
    guest.wait_for("then down\n");
    guest.wait_for_end_with(0);
}
