//! The watchdog as Linux's driver drives it, and as a guest may.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

fn unlock(watchdog: &Watchdog) {
    let _ = watchdog.write_bar(0, RELOAD, &[0x80, 0]);
    let _ = watchdog.write_bar(0, RELOAD, &[0x86, 0]);
}

fn preload(watchdog: &Watchdog, ticks: u32) {
    for register in [PRELOAD_1, PRELOAD_2] {
        unlock(watchdog);
        let _ = watchdog.write_bar(0, register, &ticks.to_le_bytes());
    }
}

/// As `esb_timer_start` does it.
fn start(watchdog: &Watchdog) {
    let _ = watchdog.write_config(LOCK, &[ENABLE]);
}

fn keep_alive(watchdog: &Watchdog) {
    unlock(watchdog);
    let _ = watchdog.write_bar(0, RELOAD, &RELOAD_NOW.to_le_bytes());
}

fn status(watchdog: &Watchdog) -> u16 {
    let mut word = [0xff; 2];
    watchdog.read_bar(0, RELOAD, &mut word);
    u16::from_le_bytes(word)
}

/// What comes of the next time that the descriptor is readable, as the machine's loop sees it.
fn next(watchdog: &Watchdog, within: Duration) -> Option<Action> {
    let watched = watchdog.watched();
    let mut fds = [PollFd::from_borrowed_fd(watched[0].0, PollFlags::IN)];
    let timeout = Timespec::try_from(within).unwrap();
    (poll(&mut fds, Some(&timeout)).unwrap() > 0).then(|| watchdog.ready(0))
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn time_runs_out_after_both_stages_and_the_next_start_knows() {
    let watchdog = Watchdog::new().unwrap();
    preload(&watchdog, 5);
    start(&watchdog);
    assert_eq!(next(&watchdog, LONG), Some(Action::None), "the first stage");
    assert_eq!(next(&watchdog, LONG), Some(Action::WatchdogExpired));
    assert_eq!(next(&watchdog, Duration::from_millis(20)), None, "it is off");
    watchdog.reset().unwrap();
    assert_eq!(status(&watchdog), TIMED_OUT | TIMED_OUT_BEFORE);
    unlock(&watchdog);
    let _ = watchdog.write_bar(0, RELOAD, &TIMED_OUT.to_le_bytes());
    assert_eq!(status(&watchdog), 0);
}

#[test]
fn who_keeps_it_alive_is_left_alone_and_so_is_who_stops_it() {
    let watchdog = Watchdog::new().unwrap();
    preload(&watchdog, PRELOAD_MASK);
    start(&watchdog);
    let end = |watchdog: &Watchdog| watchdog.lock().running.map(|(_, end)| end);
    let before = end(&watchdog).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    keep_alive(&watchdog);
    assert!(end(&watchdog).unwrap() > before);
    let _ = watchdog.write_config(LOCK, &[0]);
    assert_eq!((end(&watchdog), next(&watchdog, Duration::from_millis(10))), (None, None));
}

#[test]
fn a_locked_one_cannot_be_stopped_but_by_a_reset() {
    let watchdog = Watchdog::new().unwrap();
    let _ = watchdog.write_config(LOCK, &[ENABLE | LOCKED]);
    let _ = watchdog.write_config(LOCK, &[0]);
    assert!(watchdog.lock().running.is_some());
    watchdog.reset().unwrap();
    assert!(watchdog.lock().running.is_none());
    let _ = watchdog.write_config(LOCK, &[0]);
    assert_eq!(watchdog.lock().space.u8(LOCK), 0);
}

#[test]
fn without_the_key_nothing_changes() {
    let watchdog = Watchdog::new().unwrap();
    let _ = watchdog.write_bar(0, PRELOAD_1, &5_u32.to_le_bytes());
    let _ = watchdog.write_bar(0, RELOAD, &[0x80, 0]);
    let _ = watchdog.write_bar(0, PRELOAD_1, &5_u32.to_le_bytes());
    assert_eq!(watchdog.lock().preload, [PRELOAD_MASK; 2]);
}

#[test]
fn one_that_may_not_reboot_begins_anew() {
    let watchdog = Watchdog::new().unwrap();
    let _ = watchdog.write_config(CONFIG, &CONFIG_NO_REBOOT.to_le_bytes());
    preload(&watchdog, 1);
    start(&watchdog);
    for _ in 0..6 {
        assert_eq!(next(&watchdog, LONG), Some(Action::None));
    }
    assert!(watchdog.lock().running.is_some());
}

proptest! {
    #[test]
    fn no_access_breaks_it(
        accesses in vec((any::<bool>(), 0_u64..0x80, vec(any::<u8>(), 0..9)), 0..64),
    ) {
        let watchdog = Watchdog::new().unwrap();
        for (config, at, mut data) in accesses {
            if config {
                let _ = watchdog.write_config(u16::try_from(at).unwrap(), &data);
                watchdog.read_config(u16::try_from(at).unwrap(), &mut data);
            } else {
                let _ = watchdog.write_bar(0, at, &data);
                watchdog.read_bar(0, at, &mut data);
            }
            let _ = watchdog.ready(0);
        }
        // On exactly while its enable bit says so.
        let state = watchdog.lock();
        prop_assert_eq!(state.running.is_some(), state.space.u8(LOCK) & ENABLE != 0);
    }
}
