//! A guest that panics, and one that does not reload its watchdog: what the file says happens.

use rustix::process::Signal;

use crate::machine::{Guest, available};

fn panics(key: &'static str, then: &str) -> Guest {
    Guest { key, ..Guest::new(&format!("test=panic{then}")) }
}

#[test]
fn a_panic_is_logged_and_the_guest_goes_on() {
    if !available() {
        return;
    }
    let ended = panics("on-panic: log", "").run();
    assert_eq!((ended.code, &*ended.console), (Some(0), "boot 1\nevents 3\nit goes on\n"), "{}", ended.log);
    assert!(
        ended.log.contains("a panic of its kernel; it goes on, as `on-panic: log` asks"),
        "{}",
        ended.log
    );
}

#[test]
fn a_panic_stops_the_guest() {
    if !available() {
        return;
    }
    let ended = panics("on-panic: stop", " then=spin").run();
    assert_eq!((ended.code, &*ended.console), (Some(5), "boot 1\nevents 3\n"), "{}", ended.log);
    assert!(
        ended.log.ends_with("error: Guest `guest` was stopped: a panic of its kernel\n"),
        "{}",
        ended.log
    );
}

#[test]
fn a_panic_resets_the_guest() {
    if !available() {
        return;
    }
    let ended = panics("on-panic: reset", " then=spin").run();
    assert_eq!(
        (ended.code, &*ended.console),
        (Some(0), "boot 1\nevents 3\nboot 2\nit goes on\n"),
        "{}",
        ended.log
    );
}

#[test]
fn a_panic_pauses_the_guest_and_it_can_still_be_stopped() {
    if !available() {
        return;
    }
    let mut guest = panics("on-panic: pause", " then=spin").start();
    guest.wait_for_log("it is paused, as `on-panic: pause` asks");
    guest.signal(Signal::TERM);
    assert_eq!(guest.end().code, Some(7));
}

#[test]
fn a_crash_kernel_is_left_alone() {
    if !available() {
        return;
    }
    let ended = Guest { key: "on-panic: stop", ..Guest::new("test=panic events=2") }.run();
    assert_eq!((ended.code, &*ended.console), (Some(0), "boot 1\nevents 3\nit goes on\n"), "{}", ended.log);
}

#[test]
fn without_the_key_nobody_is_at_the_port() {
    if !available() {
        return;
    }
    let ended = Guest::new("test=panic").run();
    assert_eq!((ended.code, &*ended.console), (Some(0), "boot 1\nevents ff\nit goes on\n"), "{}", ended.log);
    let ended = Guest::new("test=watchdog then=end").run();
    assert!(ended.console.contains("no watchdog\n"), "{}", ended.console);
}

#[test]
fn a_watchdog_that_is_not_reloaded_resets_the_guest_which_knows_it() {
    if !available() {
        return;
    }
    let ended = Guest { key: "watchdog: reset", ..Guest::new("test=watchdog") }.run();
    let said = "boot 1\ntime ran out before: no\nit runs\nboot 2\ntime ran out before: yes\nit runs\n";
    assert_eq!((ended.code, &*ended.console), (Some(0), said), "{}", ended.log);
    assert!(ended.log.contains("its watchdog was not reloaded in time; it is reset"), "{}", ended.log);
}

#[test]
fn a_watchdog_stops_the_guest() {
    if !available() {
        return;
    }
    let ended = Guest { key: "watchdog: stop", ..Guest::new("test=watchdog") }.run();
    assert_eq!(ended.code, Some(5), "{}", ended.log);
    assert!(ended.log.ends_with("was stopped: its watchdog was not reloaded in time\n"), "{}", ended.log);
}
