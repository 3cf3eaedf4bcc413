//! The Intel 6300ESB's watchdog (Intel 6300ESB I/O Controller Hub, 300641, chapter 15), which Linux drives by its module
//! `i6300esb`.
//!
//! ```text
//!   off --ENABLE--> stage 1 --time--> stage 2 --time--> the machine's policy, and off
//!    ^                 ^  |              |
//!    +--ENABLE clear---+--+--- RELOAD ---+     (a stage that ends in free-running mode begins anew)
//! ```
//!
//! Registers behind the BAR are written after 0x80 and 0x86 were written to the reload register, one write each time.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::{BarKind, BarSpec, ConfigEffect, ConfigSpace, Header, Identity, LayoutError, PciDevice, Window};
use crate::Action;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x25ab,
    revision: 0,
    class: 0x08_8000,
    subsystem: Some((0x1af4, 0x1100)),
};
const BAR_SIZE: u64 = 16;

/// WDT configuration (15.1.15): interrupt type, the clock's scale, and whether stage 2 may reset.
const CONFIG: u16 = 0x60;
const CONFIG_FAST: u16 = 1 << 2;
const CONFIG_NO_REBOOT: u16 = 1 << 5;
/// WDT lock (15.1.16).
const LOCK: u16 = 0x68;
const LOCKED: u8 = 1 << 0;
const ENABLE: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;

/// Registers behind the BAR (15.2): both stages' preload values, and reload.
const PRELOAD_1: u64 = 0x00;
const PRELOAD_2: u64 = 0x04;
const RELOAD: u64 = 0x0c;
/// Bits of a preload value.
const PRELOAD_MASK: u32 = 0xf_ffff;
/// Reload register: start stage 1 anew; a one clears what says that time ran out.
const RELOAD_NOW: u16 = 1 << 8;
const TIMED_OUT: u16 = 1 << 9;
/// What the driver knows it by, beside it.
const TIMED_OUT_BEFORE: u16 = 1 << 12;

/// The PCI clock of 33 MHz, divided by 2^15, or by 2^5 where the fast scale is chosen.
const TICK: Duration = Duration::from_nanos(30);
/// No stage is shorter: the guest cannot keep its owner busy.
const SHORTEST: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    First,
    Second,
}

/// How far the unlocking sequence has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unlocking {
    No,
    First,
    Done,
}

struct State {
    space: ConfigSpace,
    timer: TimerFd,
    preload: [u32; 2],
    unlocking: Unlocking,
    /// Which stage runs, and its end.
    running: Option<(Stage, Instant)>,
    /// Time ran out before the last reset of the machine.
    timed_out: bool,
}

/// The device.
pub struct Watchdog {
    state: Mutex<State>,
    timer: std::os::fd::RawFd,
}

/// The watchdog cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// Its configuration space contradicts itself.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host has no timer for it.
    #[error("Making the timer of the watchdog: {0}")]
    Timer(std::io::Error),
}

impl Watchdog {
    /// One that is off.
    pub fn new() -> Result<Self, WatchdogError> {
        let mut space = ConfigSpace::new(Header::Endpoint, IDENTITY);
        let kind = BarKind::Memory32 { prefetchable: false };
        space.add_bar(BarSpec { index: 0, kind, size: BAR_SIZE })?;
        space.define_u16(CONFIG, 0, 0x3 | CONFIG_FAST | CONFIG_NO_REBOOT);
        space.define_u8(LOCK, 0, LOCKED | ENABLE | FREE_RUNNING);
        let failed = |error: vmm_sys_util::errno::Error| {
            WatchdogError::Timer(std::io::Error::from_raw_os_error(error.errno()))
        };
        let timer = TimerFd::new().map_err(failed)?;
        let fd = timer.as_raw_fd();
        let state = State {
            space,
            timer,
            preload: [PRELOAD_MASK; 2],
            unlocking: Unlocking::No,
            running: None,
            timed_out: false,
        };
        Ok(Self { state: Mutex::new(state), timer: fd })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn start(&mut self, stage: Stage) {
        let [first, second] = self.preload;
        let preload = if stage == Stage::First { first } else { second };
        let shift = if self.space.u16(CONFIG) & CONFIG_FAST != 0 { 5 } else { 15 };
        // 20 bits and 15 more.
        let time = TICK.saturating_mul(1 << shift).saturating_mul(preload).max(SHORTEST);
        self.arm(stage, time);
    }

    fn arm(&mut self, stage: Stage, time: Duration) {
        self.running = Instant::now().checked_add(time).map(|end| (stage, end));
        if let Err(error) = self.timer.reset(time, None) {
            tracing::error!("The watchdog's timer: {error}; it will not bark");
        }
    }

    fn stop(&mut self) {
        self.running = None;
        if let Err(error) = self.timer.clear() {
            tracing::error!("Stopping the watchdog's timer: {error}");
        }
    }

    /// The timer's descriptor is readable: perhaps for a stage that has been started anew since.
    fn expired(&mut self) -> Action {
        let Some((stage, end)) = self.running else {
            self.stop();
            return Action::None;
        };
        let left = end.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            self.arm(stage, left);
            return Action::None;
        }
        let free_running = self.space.u8(LOCK) & FREE_RUNNING != 0;
        match stage {
            // The interrupt that the real one may raise here Linux turns off.
            Stage::First => self.start(Stage::Second),
            Stage::Second if free_running || self.space.u16(CONFIG) & CONFIG_NO_REBOOT != 0 => {
                self.start(Stage::First);
            }
            Stage::Second => {
                self.power_on();
                self.timed_out = true;
                return Action::WatchdogExpired;
            }
        }
        Action::None
    }

    /// All but whether time ran out, which the next start is to find.
    fn power_on(&mut self) {
        self.stop();
        self.preload = [PRELOAD_MASK; 2];
        self.unlocking = Unlocking::No;
        self.space.set(LOCK, &[0]);
        self.space.set_u16(CONFIG, 0);
    }

    fn reload(&mut self, value: u16) {
        self.unlocking = match (self.unlocking, value) {
            (Unlocking::Done, _) => {
                if value & RELOAD_NOW != 0 && self.running.is_some() {
                    self.start(Stage::First);
                }
                if value & TIMED_OUT != 0 {
                    self.timed_out = false;
                }
                Unlocking::No
            }
            (Unlocking::First, 0x86) => Unlocking::Done,
            (_, 0x80) => Unlocking::First,
            _ => Unlocking::No,
        };
    }
}

impl PciDevice for Watchdog {
    fn label(&self) -> &str {
        "watchdog"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        let mut state = self.lock();
        let before = state.space.u8(LOCK);
        let effect = state.space.write(offset, data);
        if before & LOCKED != 0 {
            state.space.set(LOCK, &[before]);
        }
        let now = state.space.u8(LOCK);
        match (before & ENABLE != 0, now & ENABLE != 0) {
            (false, true) => state.start(Stage::First),
            (true, false) => state.stop(),
            _ => {}
        }
        effect
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.lock().space.bars()
    }

    fn windows(&self) -> Vec<Window> {
        self.lock().space.windows()
    }

    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let status = if self.lock().timed_out { TIMED_OUT | TIMED_OUT_BEFORE } else { 0 };
        if let (RELOAD, [low, high, ..]) = (offset, data) {
            [*low, *high] = status.to_le_bytes();
        }
    }

    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) -> Action {
        let mut state = self.lock();
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(slot, byte)| *slot = *byte);
        let value = u32::from_le_bytes(bytes);
        match offset {
            RELOAD => state.reload(u16::from_le_bytes([bytes[0], bytes[1]])),
            PRELOAD_1 | PRELOAD_2 if state.unlocking == Unlocking::Done => {
                let [first, second] = &mut state.preload;
                *(if offset == PRELOAD_1 { first } else { second }) = value & PRELOAD_MASK;
                state.unlocking = Unlocking::No;
            }
            _ => {}
        }
        Action::None
    }

    fn reset(&self) -> Result<(), String> {
        let mut state = self.lock();
        state.power_on();
        state.space.reset();
        Ok(())
    }

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        // SAFETY: the descriptor is that of the timer in `self.state`, which lives as long as the borrow.
        vec![(unsafe { BorrowedFd::borrow_raw(self.timer) }, 0)]
    }

    fn ready(&self, _: u64) -> Action {
        self.lock().expired()
    }
}

#[cfg(test)]
mod tests;
