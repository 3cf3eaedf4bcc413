//! Doing what a plan says: each step's undo is on disk before the step is done, and what was done is read back.

mod claim;
mod ledger;
mod steps;

pub use claim::{Claim, Holder, Undo};
pub use ledger::Ledger;
pub use steps::{Applied, apply, restore};
