//! The host's links over netlink: VF attributes, requested, accepted and read back.
//!
//! [`Network`] is the way in; `blocking` runs one of its calls where there is no runtime.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod devlink;
pub mod dhcp;
pub mod difference;
pub mod direct;
mod exchange;
pub mod link;
pub mod mac;
pub mod merge;
pub mod nat;
mod network;
pub mod owner;
mod realize;
mod refusal;
pub mod routes;
pub mod section;
pub mod settings;
mod snapshot;
pub mod tap;
mod tool;
pub mod traffic;
pub mod vf;
pub mod watch;
mod way;

pub use difference::{Difference, differences};
pub use link::Link;
pub use mac::MacAddress;
pub use nat::{DhcpRange, Nat, NatError, Nats};
pub use network::{Error, Network};
pub use owner::Owner;
pub use refusal::Refusal;
pub use routes::KeptRoute;
pub use settings::{
    Address, Bond, BondMode, Bridge, EswitchMode, LinkKind, LinkSettings, MacvtapMode, VlanMembership,
};
pub use traffic::Traffic;
pub use vf::{Attribute, LinkMode, Report, Verdict, VfAttributes, VfState, VlanProtocol};
