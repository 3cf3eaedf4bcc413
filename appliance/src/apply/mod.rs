//! Doing what a plan says: each step's undo is on disk before the step is done, and what was done is read back.

mod claim;
mod guest;
mod history;
mod keep;
mod ledger;
mod steps;
mod transaction;
mod undo;

pub use claim::{Claim, Holder};
pub use guest::{Applied, apply, restore};
pub use history::{History, Record, State, current, originals};
pub use ledger::{Ledger, Lock};
pub use steps::Journal;
pub use transaction::{Event, Outcome, Transaction, revert, revert_the_dead};
pub use undo::Undo;
