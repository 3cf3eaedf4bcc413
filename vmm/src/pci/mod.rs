//! The guest's PCI Express: functions, config space, root ports, the BAR planner and the host bridge.

pub mod config_space;
pub mod device;
pub mod host_bridge;
pub(crate) mod msix;
pub mod place;
pub mod planner;
pub mod root;
pub mod root_port;
mod slot;
pub mod watchdog;

pub use config_space::{ConfigSpace, Header, Identity, LayoutError};
pub use device::{BarKind, BarSpec, ConfigEffect, PciDevice, Window};
pub use place::{Devfn, Place};
pub use planner::{Plan, PlanError, Request, Space, Spare, Windows, plan};
pub use root::{AddError, Root};
pub use root_port::{PortInterrupt, RootPort, SlotState};
pub use watchdog::Watchdog;
