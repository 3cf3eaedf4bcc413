//! Ends that a guest or a person wants: power-off, reset, stop. The codes are those of `throughway --help`.

use rustix::process::Signal;

use crate::image;
use crate::machine::{Guest, available};

#[test]
fn power_off_by_acpi_ends_with_0() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=hello").run();
    assert_eq!((ended.code, &*ended.console, &*ended.log), (Some(0), "hello\n", ""));
}

#[test]
fn the_64_bit_entry_works_too() {
    if !available() {
        return;
    }
    let ended = Guest { kernel: image::bzimage(), ..Guest::new("test=hello") }.run();
    assert_eq!((ended.code, &*ended.console, &*ended.log), (Some(0), "hello\n", ""));
}

#[test]
fn each_way_to_reset_starts_the_guest_again() {
    if !available() {
        return;
    }
    for way in ["cf9", "i8042", "acpi"] {
        for kernel in [image::elf(), image::bzimage()] {
            // The second processor is one that the guest never starts.
            let ended = Guest { kernel, cpus: "2", ..Guest::new(&format!("test=reset by={way}")) }.run();
            assert_eq!((ended.code, &*ended.console), (Some(0), "boot 1\nboot 2\n"), "{way}: {}", ended.log);
        }
    }
}

#[test]
fn resets_can_be_repeated_with_processors_running() {
    if !available() {
        return;
    }
    let guest = Guest { cpus: "2", ..Guest::new("test=reset by=cf9 times=6 cpus=2") };
    let ended = guest.run();
    let boots = (1..=6).map(|boot| format!("boot {boot}\nhello from processor 1\n"));
    assert_eq!((ended.code, ended.console), (Some(0), boots.collect()), "{}", ended.log);
}

#[test]
fn a_reset_ends_with_4_where_the_file_says_exit() {
    if !available() {
        return;
    }
    for way in ["cf9", "i8042", "acpi"] {
        let ended = Guest { on_reset: "exit", ..Guest::new(&format!("test=reset by={way}")) }.run();
        assert_eq!((ended.code, &*ended.console), (Some(4), "boot 1\n"), "{way}: {}", ended.log);
    }
}

#[test]
fn signals_stop_a_guest_that_does_not_listen_with_7() {
    if !available() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut guest = Guest { cpus: "2", ..Guest::new("test=spin") }.start();
        guest.wait_for("ready");
        guest.signal(signal);
        let ended = guest.end();
        assert_eq!(ended.code, Some(7), "{signal:?}: {}", ended.log);
    }
}

#[test]
fn a_halted_guest_is_stopped_as_well() {
    if !available() {
        return;
    }
    let mut guest = Guest::new("test=halt").start();
    guest.wait_for("halting");
    guest.signal(Signal::TERM);
    assert_eq!(guest.end().code, Some(7));
}
