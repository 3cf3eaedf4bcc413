//! The attributes of virtual functions: what may be asked for, what there is, and how the two compare.

mod attributes;
mod message;
mod report;
mod state;

pub use attributes::{LinkMode, VfAttributes, VlanProtocol};
pub(crate) use message::{Request, requests, restore_requests};
pub use report::{Attribute, Report, Verdict};
pub use state::VfState;
pub(crate) use state::of_link;
