//! `cargo lab bench vf`: Throughway and QEMU as the VMM of the same guest with the same VF, in the box.

use std::time::Duration;

use anyhow::Result;

use super::boxed::{self, Bench};

pub use super::boxed::Options;

const BENCH: Bench = Bench {
    name: "bench-vf",
    setup: Duration::ZERO,
    round: Duration::from_secs(400),
    debian: false,
    what: &[
        ("start", "start to user space, s", 100.0, 1),
        ("out", "TCP out of the guest to another port, Mbit/s", 1.0, 0),
        ("in", "TCP into the guest from another port, Mbit/s", 1.0, 0),
        ("pf-out", "TCP out of the guest to its PF, Mbit/s", 1.0, 0),
        ("pf-in", "TCP into the guest from its PF, Mbit/s", 1.0, 0),
        ("udp-out", "UDP out of the guest to another port, arrived, Mbit/s", 1.0, 0),
        ("ping-min", "ping, shortest, ms", 1.0, 2),
        ("ping-avg", "ping, mean, ms", 1.0, 2),
        ("memory", "memory beside the guest's at its peak, KiB", 1.0, 0),
    ],
};

/// Measures, prints a table, and returns whether every round went well.
pub fn run(options: &Options) -> Result<bool> {
    boxed::run(&BENCH, options)
}
