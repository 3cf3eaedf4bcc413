//! The guest's PCI Express: functions, config space, root ports, the BAR planner and the host bridge.

pub mod config_space;
pub mod device;

pub use config_space::{ConfigSpace, Header, Identity, LayoutError};
pub use device::{BarKind, BarSpec, ConfigEffect, PciDevice, Window};
