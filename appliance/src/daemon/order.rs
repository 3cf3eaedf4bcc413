//! Which guests may start now, and which may end.

use std::collections::BTreeMap;

use super::guest::{Guest, Off, State};

/// What a guest still waits for, of all that it depends on.
pub(super) fn unmet(guests: &BTreeMap<String, Guest>, name: &str) -> Vec<String> {
    let depends = guests.get(name).and_then(|guest| guest.vm.as_ref()).map(|vm| vm.depends_on.as_slice());
    let is_unmet = |other: &&String| guests.get(*other).is_some_and(|guest| !guest.is_enough());
    depends.unwrap_or_default().iter().filter(is_unmet).cloned().collect()
}

/// Guests that nobody has asked for yet, but that others wait for.
pub(super) fn drawn_in(guests: &BTreeMap<String, Guest>) -> Vec<String> {
    let waiting = guests.iter().filter(|(_, guest)| matches!(guest.state, State::Waiting(_)));
    let unmet = waiting.flat_map(|(name, _)| unmet(guests, name));
    let is_idle =
        |name: &String| guests.get(name).is_some_and(|guest| guest.state == State::Off(Off::NotStarted));
    unmet.filter(is_idle).collect()
}

/// Whether a guest that runs depends on this one.
pub(super) fn is_needed(guests: &BTreeMap<String, Guest>, name: &str) -> bool {
    let needs = |guest: &Guest| {
        let vm = guest.vm.as_ref().filter(|_| guest.state.has_process() && guest.background);
        vm.is_some_and(|vm| vm.depends_on.iter().any(|other| other == name))
    };
    guests.values().any(needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, load_all};
    use crate::control::End;

    fn guests() -> BTreeMap<String, Guest> {
        let text = "version: 1\nvms:\n  a: {memory: 1MiB, boot: {kernel: /k}}\n  b: {memory: 1MiB, boot: {kernel: /k}, depends-on: [a]}\n  c: {memory: 1MiB, boot: {kernel: /k}, depends-on: [b, a, nobody]}\n";
        let config = load_all(&Document { name: "a".into(), text: text.into() }).0.unwrap();
        config.vms.into_iter().map(|(name, vm)| (name, Guest::new(Some(vm)))).collect()
    }

    #[test]
    fn a_guest_waits_for_all_that_it_depends_on_and_draws_them_in() {
        let mut guests = guests();
        let mut set = |name: &str, state| guests.get_mut(name).unwrap().enter(state);
        set("c", State::Waiting(Vec::new()));
        assert_eq!(drawn_in(&guests), ["b", "a"]);
        let mut set = |name: &str, state| guests.get_mut(name).unwrap().enter(state);
        set("a", State::Running(1));
        set("b", State::Off(Off::ByHand));
        assert_eq!(unmet(&guests, "c"), ["b"]);
        assert!(drawn_in(&guests).is_empty(), "somebody does not want it");
        for (end, is_enough) in [(End::PowerOff, true), (End::Crash, false), (End::Stopped, false)] {
            guests.get_mut("b").unwrap().enter(State::Off(Off::Ended(end)));
            assert_eq!(unmet(&guests, "c").is_empty(), is_enough, "{end:?}");
        }
    }

    #[test]
    fn who_is_depended_on_ends_last() {
        let mut guests = guests();
        for name in ["a", "b", "c"] {
            guests.get_mut(name).unwrap().enter(State::Running(1));
        }
        let needed = |guests: &BTreeMap<String, Guest>| ["a", "b", "c"].map(|name| is_needed(guests, name));
        assert_eq!(needed(&guests), [true, true, false]);
        guests.get_mut("c").unwrap().enter(State::Off(Off::ByHand));
        assert_eq!(needed(&guests), [true, false, false]);
    }
}
