//! Disk images beside QEMU's own tools, and disks of guests that end badly.
//!
//! Needs `qemu-img` and `qemu-io` (Debian's qemu-utils). Without them each test says so and passes; with `REQUIRE=disk`
//! (or `all`) it fails.

#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;
mod images;
mod killed;
mod locks;
#[allow(dead_code, reason = "as above")]
#[path = "../kvm/machine.rs"]
mod machine;
mod requests;
mod tools;
