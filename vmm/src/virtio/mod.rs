//! Paravirtual devices (virtio 1.2) as functions of the guest's PCI hierarchy.
//!
//! [`VirtioDevice`] is what a device is; [`VirtioFunction`] (`pci`) is how the guest's driver reaches it; [`Ring`] walks a
//! virtqueue; [`Interrupts`] carry what the device says; a [`Worker`] is the thread that serves it.
//!
//! Invariants:
//! - a device never calls its bus back; what it says to the guest goes through [`Interrupts`] alone;
//! - whatever a driver puts into a ring, a device touches nothing but guest RAM, in bounded time: a ring that breaks the
//!   rules ends with the device asking for a reset ([`Interrupts::fail`]), and nothing else;
//! - after a reset has returned, no worker runs and nothing of guest memory is held.

pub mod blk;
pub mod console;
mod device;
mod interrupts;
pub mod net;
mod pci;
mod ring;
pub mod rng;
pub mod scsi;
#[cfg(test)]
mod testing;
mod vhost;
pub mod vsock;
mod worker;

pub use device::{ActivateError, Activation, ActiveQueue, Class, Hears, MediumChange, VirtioDevice, feature};
pub use interrupts::{Interrupts, QueueInterrupt};
pub use pci::{Error, VirtioFunction};
pub use ring::{Broken, Buffer, Chain, Memory, Ring, RingLayout};
pub use worker::{Stop, Wake, Worker};
