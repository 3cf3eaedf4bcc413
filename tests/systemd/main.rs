//! The units of `appliance/systemd` under a real systemd, with small guests on this machine's /dev/kvm: it boots, restarts the
//! daemon, loses it, watches it, and ends.
//!
//! Needs root, /dev/kvm, systemd (Debian's package) and a control group hierarchy of version 2. Without them each test says so and
//! passes; with `REQUIRE=systemd` (or `all`) it fails.

mod host;
#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;
mod units;
