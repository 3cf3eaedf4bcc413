//! Whether a guest that has ended is started again, and when.

use std::time::Duration;

use crate::config::Restart;
use crate::control::End;

/// How fast guests that fail are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Before the first start after a failure; twice as long before each further one.
    pub first: Duration,
    /// Never longer.
    pub longest: Duration,
    /// A guest that ran for so long has not failed at once: it begins anew with `first`.
    pub settled: Duration,
    /// After so many failures in a row it stays off.
    pub limit: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            settled: Duration::from_secs(600),
            limit: 12,
        }
    }
}

/// What becomes of a guest that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays off: that is what its file says.
    Stays,
    /// It is started again after this time.
    After(Duration),
    /// It stays off: it failed too often.
    GivenUp,
}

/// How often a guest ended shortly after it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Judges an end after the guest `ran` for so long.
    pub fn judge(&mut self, policy: Restart, end: End, ran: Duration, pace: &Pace) -> Verdict {
        if !restarts(policy, end) {
            self.failures = 0;
            return Verdict::Stays;
        }
        if ran >= pace.settled {
            self.failures = 0;
        }
        if self.failures >= pace.limit {
            return Verdict::GivenUp;
        }
        // Doubled so often it is longer than any limit.
        let factor = 1_u32.checked_shl(self.failures.min(31)).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        Verdict::After(pace.first.saturating_mul(factor).min(pace.longest))
    }

    /// Ends in a row that were too early.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A guest whose file wants it off when a device fails is not started with that device again.
fn restarts(policy: Restart, end: End) -> bool {
    match policy {
        _ if end == End::DeviceError => false,
        Restart::No => false,
        Restart::OnFailure => end.is_failure(),
        Restart::Always => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENDS: [End; 8] = [
        End::PowerOff,
        End::Refused,
        End::Fault,
        End::Reset,
        End::Crash,
        End::DeviceError,
        End::Stopped,
        End::Killed,
    ];

    #[test]
    fn the_file_says_which_ends_are_taken_back() {
        let started = |policy: Restart| ENDS.map(|end| restarts(policy, end));
        assert_eq!(started(Restart::No), [false; 8]);
        assert_eq!(started(Restart::OnFailure), [false, true, true, false, true, false, false, true]);
        assert_eq!(started(Restart::Always), [true, true, true, true, true, false, true, true]);
    }

    #[test]
    fn each_failure_in_a_row_waits_longer_until_it_is_given_up() {
        let pace = Pace { limit: 4, longest: Duration::from_secs(5), ..Pace::default() };
        let mut backoff = Backoff::default();
        let mut judge = |ran| backoff.judge(Restart::OnFailure, End::Crash, Duration::from_secs(ran), &pace);
        let after = |seconds| Verdict::After(Duration::from_secs(seconds));
        assert_eq!([judge(0), judge(1), judge(2)], [after(1), after(2), after(4)]);
        assert_eq!([judge(599), judge(0)], [after(5), Verdict::GivenUp]);
        assert_eq!([judge(600), judge(0)], [after(1), after(2)], "that one has run");
    }

    #[test]
    fn an_end_that_was_wanted_is_no_failure() {
        let mut backoff = Backoff { failures: 3 };
        let judged = backoff.judge(Restart::OnFailure, End::PowerOff, Duration::ZERO, &Pace::default());
        assert_eq!((judged, backoff.failures()), (Verdict::Stays, 0));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_longest(failures in 0_u32..100, first in 0_u64..1 << 40) {
            let pace = Pace { first: Duration::from_millis(first), limit: u32::MAX, ..Pace::default() };
            let mut backoff = Backoff { failures };
            match backoff.judge(Restart::Always, End::Crash, Duration::ZERO, &pace) {
                Verdict::After(wait) => prop_assert!(wait <= pace.longest),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
