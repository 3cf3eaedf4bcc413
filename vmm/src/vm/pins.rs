//! Level-triggered pins that devices of ours share: a pin is asserted while any of its owners asserts it.

use std::collections::{BTreeMap, BTreeSet};

/// Who asserts what.
#[derive(Default)]
pub(super) struct Pins(BTreeMap<u32, BTreeSet<u64>>);

impl Pins {
    /// Notes what `owner` does with the pin of `gsi`; the answer is the pin's new level where it changes.
    pub(super) fn set(&mut self, gsi: u32, owner: u64, asserted: bool) -> Option<bool> {
        let owners = self.0.entry(gsi).or_default();
        let before = !owners.is_empty();
        if asserted {
            owners.insert(owner)
        } else {
            owners.remove(&owner)
        };
        let after = !owners.is_empty();
        (before != after).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_falls_when_the_last_owner_lets_go() {
        let mut pins = Pins::default();
        assert_eq!(pins.set(16, 1, true), Some(true));
        assert_eq!(pins.set(16, 2, true), None);
        assert_eq!(pins.set(17, 2, false), None);
        assert_eq!(pins.set(16, 1, false), None);
        assert_eq!(pins.set(16, 2, false), Some(false));
    }
}
