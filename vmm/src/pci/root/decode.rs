//! Which windows are in the address spaces now, and keeping them so while guests move them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{PciDevice, Place};
use crate::Action;
use crate::bus::{Bus, BusDevice};
use crate::layout;
use crate::pci::Window;

/// One BAR on a bus.
struct Bar {
    device: Arc<dyn PciDevice>,
    bar: u8,
}

impl BusDevice for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read_bar(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.device.write_bar(self.bar, offset, data)
    }
}

struct Claim {
    window: Window,
    device: Arc<dyn PciDevice>,
}

type Claims = BTreeMap<(Place, u8), Claim>;

#[derive(Default)]
struct State {
    reserved: Vec<Range<u64>>,
    /// On the bus.
    active: Claims,
    /// Wanted, but somebody else was there first. They come in when he has gone.
    waiting: Claims,
}

pub(super) struct Decoder {
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    state: Mutex<State>,
}

impl Decoder {
    pub(super) fn new(mmio: Arc<Bus>, pio: Arc<Bus>) -> Self {
        let reserved = vec![0..layout::MMIO32_START, layout::IOAPIC..layout::HIGH_RAM_START];
        Self { mmio, pio, state: Mutex::new(State { reserved, ..State::default() }) }
    }

    pub(super) fn buses(&self) -> (&Arc<Bus>, &Arc<Bus>) {
        (&self.mmio, &self.pio)
    }

    pub(super) fn reserve(&self, range: Range<u64>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reserved.push(range);
    }

    /// Asks the function what it decodes and brings its bus in line. `seated` says, with our lock held, whether the
    /// function is part of the hierarchy still.
    pub(super) fn refresh(&self, place: Place, device: &Arc<dyn PciDevice>, seated: impl FnOnce() -> bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !seated() {
            return;
        }
        let wanted: BTreeMap<u8, Window> =
            device.windows().into_iter().map(|window| (window.bar, window)).collect();
        let left = self.leave(&mut state, place, |window| wanted.get(&window.bar) == Some(window));
        for window in wanted.into_values() {
            if !state.active.contains_key(&(place, window.bar)) {
                self.enter(&mut state, place, Claim { window, device: Arc::clone(device) });
            }
        }
        if left {
            self.retry(&mut state);
        }
    }

    /// Takes all windows of a function away.
    pub(super) fn forget(&self, place: Place) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leave(&mut state, place, |_| false) {
            self.retry(&mut state);
        }
    }

    /// Takes away what a function no longer decodes; true if there was something.
    fn leave(&self, state: &mut State, place: Place, keep: impl Fn(&Window) -> bool) -> bool {
        let mine = |key: &(Place, u8)| key.0 == place;
        state.waiting.retain(|key, _| !mine(key));
        let gone: Vec<_> = state
            .active
            .iter()
            .filter(|(key, claim)| mine(key) && !keep(&claim.window))
            .map(|(key, _)| *key)
            .collect();
        for key in &gone {
            if let Some(Claim { window, device }) = state.active.remove(key) {
                device.window_moved(window.bar, None);
                self.bus(&window).remove(window.base);
            }
        }
        !gone.is_empty()
    }

    fn enter(&self, state: &mut State, place: Place, claim: Claim) {
        let Claim { window, device } = &claim;
        let key = (place, window.bar);
        let bar = Arc::new(Bar { device: Arc::clone(device), bar: window.bar });
        let allowed = window.io || !state.reserved.iter().any(|range| meets(range, window));
        if allowed && self.bus(window).insert(window.base, window.size, bar).is_ok() {
            device.window_moved(window.bar, Some(window.base));
            state.active.insert(key, claim);
        } else {
            tracing::debug!(
                "{}: BAR {} is not decoded at {:#x} ({:#x} bytes): something else is there",
                device.label(),
                window.bar,
                window.base,
                window.size
            );
            state.waiting.insert(key, claim);
        }
    }

    fn retry(&self, state: &mut State) {
        for ((place, _), claim) in std::mem::take(&mut state.waiting) {
            self.enter(state, place, claim);
        }
    }

    fn bus(&self, window: &Window) -> &Bus {
        if window.io { &self.pio } else { &self.mmio }
    }
}

fn meets(range: &Range<u64>, window: &Window) -> bool {
    window.base < range.end && window.base.saturating_add(window.size) > range.start
}
