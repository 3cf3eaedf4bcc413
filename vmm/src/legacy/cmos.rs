//! The real-time clock and its battery-backed memory (MC146818), read from the host's clock in UTC.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Action;
use crate::bus::BusDevice;
use crate::layout::LOW_RAM_END;

/// Status A: 32.768 kHz time base, 1.024 kHz rate, no update in progress.
const STATUS_A: u8 = 0x26;
/// Status B: 24 hours, BCD.
const STATUS_B: u8 = 0x02;
/// Status D: the battery is good.
const STATUS_D: u8 = 0x80;

struct State {
    index: u8,
    memory: [u8; 128],
    /// What the guest set the clock to, as seconds ahead of the host.
    offset: i64,
}

/// Index port 0x70 and data port 0x71.
pub struct Cmos {
    state: Mutex<State>,
}

impl Cmos {
    /// The clock of a machine with `ram` bytes of memory, whose sizes go where firmware looks for them.
    pub fn new(ram: u64) -> Self {
        let mut memory = [0_u8; 128];
        let low = ram.min(LOW_RAM_END);
        let words: [(usize, u64); 4] = [
            (0x15, 640),                                              // base memory, KiB
            (0x17, (low.saturating_sub(1 << 20) >> 10).min(0xffff)),  // above 1 MiB, KiB
            (0x30, (low.saturating_sub(1 << 20) >> 10).min(0xffff)),  // the same once more
            (0x34, (low.saturating_sub(16 << 20) >> 16).min(0xffff)), // above 16 MiB, 64 KiB units
        ];
        for (at, value) in words {
            put(&mut memory, at, value, 2);
        }
        put(&mut memory, 0x5b, (ram - low) >> 16, 3); // above 4 GiB, 64 KiB units
        Self { state: Mutex::new(State { index: 0, memory, offset: 0 }) }
    }
}

/// Little-endian, as many bytes as asked for.
fn put(memory: &mut [u8; 128], at: usize, value: u64, bytes: usize) {
    for (slot, byte) in memory.iter_mut().skip(at).zip(value.to_le_bytes()).take(bytes) {
        *slot = byte;
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let (1, [byte]) = (offset, data) {
            *byte = state.read(host_seconds());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            (0, [index]) => state.index = index & 0x7f,
            (1, [value]) => state.write(*value, host_seconds()),
            _ => {}
        }
        Action::None
    }
}

fn host_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}

impl State {
    fn read(&self, now: i64) -> u8 {
        let time = Time::at(now.saturating_add(self.offset));
        match self.index {
            0x0a => STATUS_A,
            0x0b => STATUS_B,
            0x0c => 0,
            0x0d => STATUS_D,
            index => match time.field(index) {
                Some(value) => bcd(value),
                None => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
            },
        }
    }

    fn write(&mut self, value: u8, now: i64) {
        let mut time = Time::at(now.saturating_add(self.offset));
        if time.set(self.index, binary(value)) {
            self.offset = time.seconds().saturating_sub(now);
        } else if !(0x0a..=0x0d).contains(&self.index)
            && let Some(byte) = self.memory.get_mut(usize::from(self.index))
        {
            *byte = value;
        }
    }
}

fn bcd(value: i64) -> u8 {
    u8::try_from(value.rem_euclid(100) / 10 * 16 + value.rem_euclid(10)).unwrap_or(0)
}

fn binary(value: u8) -> i64 {
    i64::from(value >> 4) * 10 + i64::from(value & 0x0f)
}

/// A date and time of the proleptic Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Time {
    year: i64,
    month: i64,
    day: i64,
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Time {
    /// By the count of days in 400-year eras that begin in March.
    fn at(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days.saturating_add(719_468);
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * march_month + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7) + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    fn seconds(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((self.month + 9) % 12) + 2) / 5 + self.day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        (era * 146_097 + of_era - 719_468) * 86_400 + self.hour * 3600 + self.minute * 60 + self.second
    }

    fn field(self, index: u8) -> Option<i64> {
        Some(match index {
            0x00 => self.second,
            0x02 => self.minute,
            0x04 => self.hour,
            0x06 => self.weekday,
            0x07 => self.day,
            0x08 => self.month,
            0x09 => self.year.rem_euclid(100),
            0x32 => self.year.div_euclid(100),
            _ => return None,
        })
    }

    /// True if the register is one of the clock's; the weekday follows from the date.
    fn set(&mut self, index: u8, value: i64) -> bool {
        match index {
            0x00 => self.second = value,
            0x02 => self.minute = value,
            0x04 => self.hour = value,
            0x06 => {}
            0x07 => self.day = value,
            0x08 => self.month = value,
            0x09 => self.year = self.year.div_euclid(100) * 100 + value,
            0x32 => self.year = value * 100 + self.year.rem_euclid(100),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn register(state: &mut State, index: u8, now: i64) -> u8 {
        state.index = index;
        state.read(now)
    }

    fn state() -> State {
        State { index: 0, memory: [0; 128], offset: 0 }
    }

    #[test]
    fn a_known_moment_reads_in_bcd() {
        // 2026-11-21 04:05:06 UTC, a Saturday.
        let fields = [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| register(&mut state(), index, 1_795_233_906));
        assert_eq!(fields, [0x20, 0x26, 0x11, 0x21, 7, 0x04, 0x05, 0x06]);
    }

    #[test]
    fn the_guest_may_set_its_own_clock() {
        let mut state = state();
        state.index = 9;
        state.write(0x30, 1_795_233_906);
        assert_eq!(register(&mut state, 9, 1_795_233_907), 0x30);
        assert_eq!(register(&mut state, 0, 1_795_233_907), 0x07);
    }

    #[test]
    fn memory_sizes_are_where_firmware_looks() {
        let cmos = Cmos::new(5 << 30);
        let state = cmos.state.into_inner().unwrap();
        assert_eq!(state.memory[0x34..0x36], 0x7f00_u16.to_le_bytes());
        assert_eq!(state.memory[0x5b..0x5e], [0x00, 0xc0, 0x00]);
    }

    proptest! {
        #[test]
        fn every_second_reads_back(seconds in -62_000_000_000_i64..250_000_000_000) {
            prop_assert_eq!(Time::at(seconds).seconds(), seconds);
        }

        #[test]
        fn no_write_can_panic(writes: Vec<(u8, u8)>, now: i32) {
            let mut state = state();
            for (index, value) in writes {
                state.index = index & 0x7f;
                state.write(value, i64::from(now));
                state.read(i64::from(now));
            }
        }
    }
}
