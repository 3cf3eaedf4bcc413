//! The admin API of the real daemon, with small guests on this machine's /dev/kvm, by a client of a few lines: each route, what
//! goes wrong with a clear message and nothing lost, and strangers who want to be a burden.
//!
//! Without /dev/kvm each test says so and passes; with `REQUIRE=kvm` (or `all`) it fails.

#[allow(dead_code, reason = "shared with the suite daemon, which has more to do with it")]
#[path = "../daemon/appliance.rs"]
mod appliance;
mod burden;
mod changes;
mod client;
mod config;
mod guests;
#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;
mod images;
#[allow(dead_code, reason = "as above")]
#[path = "../kvm/machine.rs"]
mod machine;
mod reading;
