//! `throughway daemon` with small guests on this machine's /dev/kvm: it is killed, they are killed, and all is as it should be.
//!
//! Without /dev/kvm each test says so and passes; with `REQUIRE=kvm` (or `all`) it fails.

mod appliance;
mod file;
#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;
mod killed;
#[allow(dead_code, reason = "as above")]
#[path = "../kvm/machine.rs"]
mod machine;
mod order;
mod policy;
mod quiet;
