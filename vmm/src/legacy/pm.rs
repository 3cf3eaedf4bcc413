//! The power management block of the chipset: PM1 event and control, the PM timer, GPE0 (ACPI 6.5, 4.8.3 and 4.8.4).

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::Action;
use crate::acpi::SLEEP_TYPE_S5;
use crate::bus::BusDevice;

/// Length of the block in ports, as an ICH9 has it.
pub const PM_BLOCK_SIZE: u16 = 0x80;

/// PM1 status and enable: the power button.
const PWRBTN: u16 = 1 << 8;
/// PM1 status bits that are cleared by writing a one.
const PM1_STATUS: u16 = 1 | 1 << 4 | 1 << 5 | PWRBTN | 1 << 9 | 1 << 10 | 1 << 15;
/// PM1 enable bits that stick.
const PM1_ENABLE: u16 = 1 | 1 << 5 | PWRBTN | 1 << 9 | 1 << 10;
/// PM1 control: ACPI mode.
const SCI_EN: u16 = 1;
/// PM1 control: enter the sleep state in bits 12:10.
const SLP_EN: u16 = 1 << 13;
/// The sleep type that OVMF powers off with, without a look at the tables.
const FIRMWARE_OFF: u8 = 0;
/// Frequency of the PM timer in Hz.
const TIMER_HZ: u128 = 3_579_545;
/// It counts 24 bits.
const TIMER_MASK: u128 = 0xff_ffff;

struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe: [u8; 16],
}

impl State {
    const POWER_ON: Self = Self { status: 0, enable: 0, control: SCI_EN, gpe: [0; 16] };

    fn sci(&self) -> bool {
        self.status & self.enable != 0
    }

    fn byte(&self, offset: u64, since: Instant) -> u8 {
        let timer = (since.elapsed().as_nanos().saturating_mul(TIMER_HZ) / 1_000_000_000) & TIMER_MASK;
        let of = |value: &[u8], at: u64| {
            usize::try_from(at).ok().and_then(|at| value.get(at)).copied().unwrap_or(0)
        };
        match offset {
            0..2 => of(&self.status.to_le_bytes(), offset),
            2..4 => of(&self.enable.to_le_bytes(), offset - 2),
            4..6 => of(&self.control.to_le_bytes(), offset - 4),
            8..12 => of(&timer.to_le_bytes(), offset - 8),
            0x20..0x30 => of(&self.gpe, offset - 0x20),
            _ => 0,
        }
    }

    fn set_byte(&mut self, offset: u64, value: u8) {
        let shift = 8 * (offset & 1);
        let (bits, mask) = (u16::from(value) << shift, 0xff_u16 << shift);
        match offset {
            0..2 => self.status &= !(bits & PM1_STATUS),
            2..4 => self.enable = (self.enable & !mask | bits) & PM1_ENABLE,
            4..6 => self.control = (self.control & !mask | bits) & !SLP_EN | SCI_EN,
            // The first half is status, the second enable.
            0x20..0x28 => self.gpe_byte(offset, |old| old & !value),
            0x28..0x30 => self.gpe_byte(offset, |_| value),
            _ => {}
        }
    }

    fn gpe_byte(&mut self, offset: u64, change: impl Fn(u8) -> u8) {
        let at = usize::try_from(offset - 0x20).ok();
        if let Some(byte) = at.and_then(|at| self.gpe.get_mut(at)) {
            *byte = change(*byte);
        }
    }
}

/// Drives a level-triggered interrupt line.
pub type Line = Box<dyn Fn(bool) + Send + Sync>;

/// The block, at PMBASE.
pub struct PowerManagement {
    state: Mutex<State>,
    started: Instant,
    sci: Line,
}

impl PowerManagement {
    /// With the line of the SCI.
    pub fn new(sci: Line) -> Self {
        Self { state: Mutex::new(State::POWER_ON), started: Instant::now(), sci }
    }

    /// The power button was pressed: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.status |= PWRBTN;
        (self.sci)(state.sci());
    }

    /// Back to power-on.
    pub fn reset(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::POWER_ON;
        (self.sci)(false);
    }
}

impl BusDevice for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (offset..).zip(data) {
            *byte = state.byte(at, self.started);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut action = Action::None;
        for (at, byte) in (offset..).zip(data) {
            state.set_byte(at, *byte);
            let sleeps = at == 5 && u16::from(*byte) << 8 & SLP_EN != 0;
            if sleeps && [SLEEP_TYPE_S5, FIRMWARE_OFF].contains(&(byte >> 2 & 7)) {
                action = Action::PowerOff;
            }
        }
        (self.sci)(state.sci());
        action
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn with_line() -> (PowerManagement, Arc<AtomicBool>) {
        let line = Arc::new(AtomicBool::new(false));
        let driven = Arc::clone(&line);
        (PowerManagement::new(Box::new(move |level| driven.store(level, Ordering::Relaxed))), line)
    }

    #[test]
    fn sleeping_in_s5_powers_off_and_other_states_do_not() {
        let (pm, _) = with_line();
        let off = u16::from(SLEEP_TYPE_S5) << 10 | SLP_EN;
        assert_eq!(pm.write(4, &off.to_le_bytes()), Action::PowerOff);
        assert_eq!(pm.write(4, &SLP_EN.to_le_bytes()), Action::PowerOff, "as firmware does");
        assert_eq!(pm.write(4, &(off & !SLP_EN).to_le_bytes()), Action::None);
        let other = u16::from((SLEEP_TYPE_S5 + 1) & 7) << 10 | SLP_EN;
        assert_eq!(pm.write(4, &other.to_le_bytes()), Action::None);
    }

    #[test]
    fn the_power_button_raises_the_sci_until_the_guest_clears_it() {
        let (pm, line) = with_line();
        pm.press_power_button();
        assert!(!line.load(Ordering::Relaxed), "not enabled yet");
        let _ = pm.write(2, &PWRBTN.to_le_bytes());
        assert!(line.load(Ordering::Relaxed));
        let _ = pm.write(0, &PWRBTN.to_le_bytes());
        assert!(!line.load(Ordering::Relaxed));
    }

    #[test]
    fn the_timer_runs_and_acpi_mode_stays_on() {
        let (pm, _) = with_line();
        let read = |offset, bytes: &mut [u8]| pm.read(offset, bytes);
        let (mut first, mut second, mut control) = ([0; 4], [0; 4], [0; 2]);
        read(8, &mut first);
        std::thread::sleep(std::time::Duration::from_millis(2));
        read(8, &mut second);
        assert_ne!(first, second);
        let _ = pm.write(4, &[0, 0]);
        read(4, &mut control);
        assert_eq!(u16::from_le_bytes(control) & SCI_EN, SCI_EN);
    }

    proptest! {
        #[test]
        fn no_access_can_panic(accesses: Vec<(u8, [u8; 4])>) {
            let (pm, _) = with_line();
            for (offset, bytes) in accesses {
                let _ = pm.write(u64::from(offset), &bytes);
                pm.read(u64::from(offset), &mut [0; 8]);
            }
        }
    }
}
