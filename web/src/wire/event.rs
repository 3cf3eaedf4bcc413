//! What happens, as server-sent events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Change, Guest};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "event", content = "data")]
pub enum Event {
    /// A guest is in another state, or there is a new one.
    Guest(Guest),
    /// A guest is no more.
    GuestGone(String),
    /// A change began, or became something else.
    Change(Change),
    /// A step of a change, or a word about it: its number, and a line for a person.
    Progress {
        /// The change's number; 0 while it has none.
        change: u64,
        /// The line.
        line: String,
    },
    /// The file on disk is another one: its tag.
    Config(String),
}
