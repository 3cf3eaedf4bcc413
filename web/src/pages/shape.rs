//! Numbers as a person reads them.

use std::borrow::Borrow;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Bytes, in the largest unit that leaves a number of at least 1: `1.5 GiB`.
pub(crate) fn bytes(bytes: impl Borrow<u64>) -> String {
    let bytes = *bytes.borrow();
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut whole = bytes;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    let tenth = rest * 10 / 1024;
    if whole >= 100 || tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") }
}

/// A count, with a thin gap between thousands.
pub(crate) fn count(count: impl Borrow<u64>) -> String {
    let count = *count.borrow();
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count a second, shortly: `1.2 k`.
pub(crate) fn rate(rate: impl Borrow<u64>) -> String {
    let rate = *rate.borrow();
    match rate {
        0..10_000 => count(rate),
        10_000..10_000_000 => format!("{} k", count(rate / 1000)),
        _ => format!("{} M", count(rate / 1_000_000)),
    }
}

/// Seconds, in its two largest units: `3 d 4 h`.
pub(crate) fn duration(seconds: impl Borrow<u64>) -> String {
    let seconds = *seconds.borrow();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Minutes and seconds that are left: `1:05`.
pub(crate) fn left(seconds: impl Borrow<u64>) -> String {
    let seconds = *seconds.borrow();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// A time as RFC 3339 has it, in UTC.
pub(crate) fn stamp(at: impl Borrow<u64>) -> String {
    let at = *at.borrow();
    let (days, second) = (at / 86_400, at % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// A time in UTC as a person reads it. A script makes it local.
pub(crate) fn time(at: impl Borrow<u64>) -> String {
    let at = *at.borrow();
    let stamp = stamp(at);
    let mut parts = stamp.trim_end_matches('Z').split('T');
    format!("{} {} UTC", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Year, month and day of a number of days since 1970 (H. Hinnant, `civil_from_days`, for days after 1970).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (3 << 29, "1.5 GiB"),
            (700 << 20, "700 MiB"),
            (u64::MAX, "16383 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(999), "999");
        assert_eq!(rate(12_345), "12 k");
        for (seconds, text) in [
            (5, "5 s"),
            (65, "1 min"),
            (3661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
            (u64::MAX, "213503982334601 d 7 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(left(65), "1:05");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(stamp(at), text);
        }
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert!(stamp(u64::MAX).len() > 19);
    }
}
