//! One run of one target: seeds, time, and what is said of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::random::Random;

/// The longest that one access of a guest may take. Far more than any takes: the machine may be busy with other things.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a seed may take before it counts as one that never ends.
const ENDLESS: Duration = Duration::from_secs(300);

/// Panics of threads that serve devices: nobody else would hear of them.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Measures accesses.
pub(crate) struct Clock {
    slowest: Duration,
}

impl Clock {
    /// Does an access, which must end in time.
    pub(crate) fn bound<T>(&mut self, what: &str, access: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let answer = access();
        let took = started.elapsed();
        assert!(took < LONGEST, "{what} took {took:?}");
        self.slowest = self.slowest.max(took);
        answer
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Calls `one` with seed after seed: for FUZZ_SECONDS (1), from FUZZ_SEED (0), or FUZZ_COUNT of them.
///
/// The seed in work is kept in a file, so that it is known after a process that died of it.
pub(crate) fn fuzz(target: &str, mut one: impl FnMut(&mut Random, &mut Clock)) {
    hear_of_panics();
    let seconds = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1));
    let (first, most) = (number("FUZZ_SEED").unwrap_or(0), number("FUZZ_COUNT").unwrap_or(u64::MAX));
    let note = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}.seed"));
    let kept = File::create(&note).unwrap();
    let at = Arc::new(AtomicU64::new(0));
    watch(target, first, &at);
    let mut clock = Clock { slowest: Duration::ZERO };
    let (started, mut done, mut slowest) = (Instant::now(), 0, (Duration::ZERO, first));
    while done < most && (done == 0 || started.elapsed() < seconds) {
        let seed = first.wrapping_add(done);
        kept.write_all_at(format!("{seed:020}").as_bytes(), 0).unwrap();
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            one(&mut Random::new(seed), &mut clock);
            assert_eq!(PANICS.load(Ordering::Acquire), 0, "a device's thread panicked");
        }));
        if let Err(panic) = result {
            eprintln!("{}", again(target, seed));
            resume_unwind(panic);
        }
        slowest = slowest.max((began.elapsed(), seed));
        done += 1;
        at.store(done, Ordering::Release);
    }
    at.store(u64::MAX, Ordering::Release);
    let _ = fs::remove_file(note);
    println!(
        "fuzz {target}: {done} seeds from {first} in {:.0?}; the slowest access took {:.1?}, the slowest seed ({}) {:.1?}",
        started.elapsed(),
        clock.slowest,
        slowest.1,
        slowest.0
    );
}

fn again(target: &str, seed: u64) -> String {
    format!("fuzz {target}: seed {seed}; again: FUZZ_SEED={seed} cargo lab fuzz {target} --count 1")
}

/// Ends the process when a seed does not end.
fn watch(target: &str, first: u64, at: &Arc<AtomicU64>) {
    let (target, at) = (target.to_owned(), Arc::clone(at));
    std::thread::spawn(move || {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            match at.load(Ordering::Acquire) {
                u64::MAX => return,
                now if now != seen => (seen, since) = (now, Instant::now()),
                now if since.elapsed() > ENDLESS => {
                    eprintln!("{} (it does not end)", again(&target, first.wrapping_add(now)));
                    std::process::abort();
                }
                _ => {}
            }
        }
    });
}

fn hear_of_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_a_device = std::thread::current().name().is_some_and(|name| name.starts_with("virtio-"));
            if of_a_device {
                PANICS.fetch_add(1, Ordering::AcqRel);
            }
            before(panic);
        }));
    });
}
