//! The appliance file: read, checked, and every problem found at once.

mod diagnostic;
mod document;
mod edit;
mod guest;
mod host;
mod mac;
mod order;
mod position;
mod size;
#[cfg(test)]
mod tests;
mod types;
mod validate;

pub use diagnostic::{Diagnostic, Severity, together};
pub use document::{Document, load, load_all, read};
pub use edit::Named;
pub use guest::*;
pub use host::{CpuList, Host, Listen, Management, Need, Seconds, Web};
pub(crate) use mac::derived_mac;
pub use order::{Loop, start_order};
pub use size::Size;
pub use types::*;
pub(crate) use validate::{pair, range};
