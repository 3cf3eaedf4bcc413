//! The guest machine: KVM, memory, vCPUs, boot, ACPI, PCIe and passthrough.
//!
//! Q35-shaped, threads and epoll only. [`spec::VmSpec`] says what to build, [`machine::Machine`] builds and runs it,
//! [`outcome::Outcome`] says how it ended.
//!
//! Rooms: `vm` (the KVM handle: memory slots and interrupt routes), `memory` (guest RAM), `layout` (the address map),
//! `vcpu`, `cpuid`, `boot` (direct boot), `firmware` (boot by UEFI: flash, fw_cfg), `acpi`, `legacy` (the chipset's small
//! devices), `pci` (config space, root ports, BAR planner), `passthrough` (one host function in a guest slot), `disk`
//! (images on the host), `virtio` (devices of our own), `control` (the socket by which a machine is controlled), `threads`
//! and `own` (for whoever locks the process up), `machine` (puts it all together).

pub mod acpi;
pub mod action;
pub mod boot;
pub mod bus;
pub mod control;
pub mod cpuid;
pub mod disk;
pub mod firmware;
pub mod layout;
pub mod legacy;
pub mod machine;
pub mod mailbox;
pub mod memory;
pub mod outcome;
pub mod own;
pub mod passthrough;
pub mod pci;
pub mod spec;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod threads;
pub mod vcpu;
pub mod virtio;
pub mod vm;

pub use action::Action;
pub use machine::{Begun, Machine};
pub use outcome::{Crash, Outcome};
pub use spec::VmSpec;
