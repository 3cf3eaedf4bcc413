//! One host function in a guest slot.
//!
//! Its config space is virtual (`config`, `capabilities`, `express`), its BARs are mapped into the guest where they can
//! be (`bars`, `mapping`), its interrupts go by irqfd (`interrupts`, `intx`, `msi`, `msix`, `vector`), what it reports
//! goes to a policy (`events`), and guest RAM is its DMA's (`dma`).
//!
//! Invariants:
//! - a guest's table or message never reaches the hardware's: VFIO owns those;
//! - nothing of a BAR is mapped in the guest while the device does not decode it;
//! - what is taken is let go in the order interrupts, irqfds, slots, mappings, function.

mod bars;
mod capabilities;
mod config;
mod device;
mod dma;
mod error;
mod events;
mod express;
mod interrupts;
mod intx;
mod mapping;
mod msi;
mod msix;

pub use device::{PassthroughDevice, Placement};
pub use dma::{DmaMap, map_guest_ram};
pub use error::Error;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
