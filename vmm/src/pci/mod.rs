//! The guest's PCI Express: functions, config space, root ports, the BAR planner and the host bridge.

pub mod device;

pub use device::{BarKind, BarSpec, ConfigEffect, PciDevice, Window};
