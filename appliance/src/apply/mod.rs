//! Doing what a plan says: each step's undo is on disk before the step is done, and what was done is read back.

mod claim;
mod guest;
mod history;
mod keep;
mod ledger;
mod restart;
mod sightings;
mod steps;
mod taps;
mod transaction;
mod undo;

use std::path::Path;

use netconfig::dhcp::DhcpClients;
use netconfig::nat::Nats;
use vfio::Sysfs;

/// What steps are done to.
pub struct Host {
    /// PCI functions.
    pub sysfs: Sysfs,
    /// NAT networks, which are written down in the state folder.
    pub nats: Nats,
    /// The box's own DHCP clients, whose process numbers are in the state folder.
    pub dhcp: DhcpClients,
    /// What devices were when they were last seen.
    pub sightings: Sightings,
    /// Taps that steps have made and left open.
    pub taps: Taps,
}

impl Host {
    /// This host, with what is written down below a state folder.
    pub fn at(state: &Path) -> Self {
        Self {
            sysfs: Sysfs::default(),
            nats: Nats::new(state.join("nat")),
            dhcp: DhcpClients::new(state.join("dhcp")),
            sightings: Sightings::at(state),
            taps: Taps::default(),
        }
    }
}

pub use claim::{Claim, Holder, keeps};
pub use guest::{Applied, apply, extend, give_back, restore};
pub(crate) use history::now;
pub use history::{History, Record, State, as_done, current, originals};
pub(crate) use keep::write_whole;
pub(crate) use ledger::file_name;
pub use ledger::{Ledger, Lock};
pub use restart::after_restart;
pub(crate) use restart::{boot as this_boot, is_this_boot};
pub use sightings::{Seen, Sighting, Sightings};
pub use steps::{Journal, backwards};
pub use taps::Taps;
pub use transaction::{Event, Outcome, Transaction, revert, revert_the_dead};
pub use undo::Undo;
