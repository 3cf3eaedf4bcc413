//! `cargo lab bench uefi`: the installed Debian, started by OVMF, under Throughway and under QEMU: both run at once, and their
//! VF and virtio-net cards are measured in turns.

use std::time::Duration;

use anyhow::Result;

use super::boxed::{self, Bench};

pub use super::boxed::Options;

const BENCH: Bench = Bench {
    name: "bench-uefi",
    setup: Duration::from_secs(900),
    round: Duration::from_secs(240),
    debian: true,
    what: &[
        ("start", "start to the login, s", 100.0, 0),
        ("vf-out", "VF, UDP out of the guest, Mbit/s", 1.0, 0),
        ("vf-in", "VF, TCP into the guest, Mbit/s", 1.0, 0),
        ("lan-out", "bridge, TCP out of the guest, Mbit/s", 1.0, 0),
        ("lan-in", "bridge, TCP into the guest, Mbit/s", 1.0, 0),
        ("dmz-out", "macvtap, TCP out of the guest, Mbit/s", 1.0, 0),
        ("dmz-in", "macvtap, TCP into the guest, Mbit/s", 1.0, 0),
    ],
};

/// Measures, prints a table, and returns whether every round went well.
pub fn run(options: &Options) -> Result<bool> {
    boxed::run(&BENCH, options)
}
