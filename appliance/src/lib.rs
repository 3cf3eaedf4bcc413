//! The composition root: the appliance file, the plan, applying it, and the command line.
//!
//! The way of the data: file -> [`config::Config`] -> [`plan::Plan`] -> host state -> `vmm::VmSpec` -> guest.

mod admin;
pub mod apply;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod drift;
pub mod explain;
mod faults;
pub mod guest;
pub mod host;
pub mod jail;
pub mod plan;
pub mod variables;
pub mod watch;
