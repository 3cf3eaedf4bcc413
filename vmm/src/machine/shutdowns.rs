//! Processors that shut down after a triple fault, and whether the board may still help.

use std::time::{Duration, Instant};

/// So many in so much time are no accident.
const MOST: usize = 3;
const WITHIN: Duration = Duration::from_secs(60);

/// The last shutdowns of a guest's processors.
#[derive(Debug, Default)]
pub(super) struct Shutdowns {
    at: Vec<Instant>,
}

impl Shutdowns {
    /// Notes one. Whether a reset may help: not at the third within a minute, as the guest then faults at each start.
    pub(super) fn may_reset(&mut self, now: Instant) -> bool {
        self.at.retain(|at| now.saturating_duration_since(*at) < WITHIN);
        self.at.push(now);
        self.at.len() < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_within_a_minute_is_the_last() {
        let (mut shutdowns, start) = (Shutdowns::default(), Instant::now());
        let mut after = |seconds| shutdowns.may_reset(start + Duration::from_secs(seconds));
        assert!(after(0));
        assert!(after(50));
        assert!(after(61), "the first is forgotten");
        assert!(!after(62));
        assert!(!after(63));
        assert!(after(200));
    }
}
