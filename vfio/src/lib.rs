//! The host's PCI functions: inventory, identity, binding, SR-IOV, reset, and access to one function.
//!
//! The way in is by noun: [`address::PciAddress`] names a function, [`function::PciFunction`] is one that can be
//! handed to a guest, whoever serves it (the kernel, a vfio-user socket, or a fake in a test).

pub mod address;
pub mod bind;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod function;
pub mod in_use;
pub mod inventory;
pub mod isolation;
pub mod kernel;
#[cfg(any(test, feature = "testing"))]
pub mod recorded;
mod resample;
pub mod sriov;
pub mod sysfs;
pub mod uevent;
pub mod user;

pub use address::PciAddress;
pub use function::{
    DmaSource, Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex,
};
pub use sysfs::Sysfs;
