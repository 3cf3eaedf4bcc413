//! COM1 on pipes and files.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::Stdio;

use rustix::process::Signal;

use crate::machine::{Guest, Heard, Running, available, wait_until};

/// Starts `guest` with no input and `output` for a console.
fn start(guest: &Guest, output: impl Into<Stdio>) -> Running {
    let (mut command, folder) = guest.command();
    let child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped()).spawn().unwrap();
    Running::new(child, Heard::default(), folder)
}

#[test]
fn a_file_gets_all_that_is_said() {
    if !available() {
        return;
    }
    let mut file = tempfile::tempfile().unwrap();
    let ended = start(&Guest::new("test=hello"), file.try_clone().unwrap()).end();
    let mut said = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut said).unwrap();
    assert_eq!((ended.code, &*said), (Some(0), "hello\n"), "{}", ended.log);
}

#[test]
fn string_instructions_say_every_byte() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=string").run();
    assert_eq!((ended.code, &*ended.console), (Some(0), "by a string instruction\n"), "{}", ended.log);
}

#[test]
fn what_comes_in_reaches_the_guest_in_order() {
    if !available() {
        return;
    }
    let mut guest = Guest::new("test=obey").start();
    guest.wait_for("ready");
    // More than the receive buffer takes at once; the guest says it all again, but for what it obeys.
    let text = "0123456789abcdefgh".repeat(20);
    guest.send(text.as_bytes());
    guest.wait_for(&text);
    guest.send(b"q");
    let ended = guest.end();
    assert_eq!((ended.code, ended.console), (Some(0), format!("ready\n{text}bye\n")), "{}", ended.log);
}

#[test]
fn the_end_of_the_input_is_not_the_end_of_the_guest() {
    if !available() {
        return;
    }
    let mut guest = Guest::new("test=obey").start();
    guest.wait_for("ready");
    guest.send(b"abq");
    drop(guest.input.take());
    let ended = guest.end();
    assert_eq!((ended.code, &*ended.console), (Some(0), "ready\nabbye\n"), "{}", ended.log);
}

#[test]
fn a_guest_that_nobody_can_hear_goes_on() {
    if !available() {
        return;
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(start(&Guest::new("test=hello"), writer).end().code, Some(0));
    // A full disk.
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(start(&Guest::new("test=hello"), full).end().code, Some(0));
}

#[test]
fn a_guest_whose_console_is_full_can_be_stopped() {
    if !available() {
        return;
    }
    for cpus in ["1", "2"] {
        let (reader, writer) = std::io::pipe().unwrap();
        let guest = start(&Guest { cpus, ..Guest::new("test=flood") }, writer);
        // Full when a write to it would block.
        let full = || {
            let mut unread = 0;
            // SAFETY: FIONREAD writes one int, and `reader` is a descriptor of ours.
            let result =
                unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::FIONREAD, &mut unread) };
            assert_eq!(result, 0);
            unread >= 60_000
        };
        wait_until("the pipe is full", full);
        guest.signal(Signal::TERM);
        let ended = guest.end();
        assert_eq!(ended.code, Some(7), "{}", ended.log);
    }
}
