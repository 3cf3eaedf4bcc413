//! `throughway run` as a whole on this machine's /dev/kvm, with a guest that is compiled here: `guest/`.
//!
//! Without /dev/kvm each test says so and passes; with `REQUIRE=kvm` (or `all`) it fails. What the guest does keeps to
//! what a KVM without hardware virtualization runs, too.

mod chipset;
mod console;
mod control;
mod crashes;
mod ends;
mod faults;
mod garbage;
mod hotplug;
mod hvc;
mod image;
mod input;
mod machine;
mod memory;
mod passthrough;
mod pci;
mod processors;
mod statistics;
mod terminal;
mod trouble;
