//! What goes over the wire: JSON with keys in kebab-case. Sizes are bytes, times seconds since 1970, unless said otherwise.

mod change;
mod device;
mod edit;
mod event;
mod guest;
mod host;
mod network;

pub use change::{
    AuditEntry, Change, ChangeState, Checked, Config, Diagnostic, Drift, Planned, Severity, Step,
};
pub use device::{Device, DeviceUse, Reason, Sriov, Verdict, VfAttribute};
pub use edit::{Defined, DefinedDisk, DefinedNic, Definition, Edit};
pub use event::Event;
pub use guest::{Guest, GuestDevice, GuestState, GuestStats, Image, Log};
pub use host::{Doctor, Finding, Health, Overview};
pub use network::{Network, NetworkKind, Port};
