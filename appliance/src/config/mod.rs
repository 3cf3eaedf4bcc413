//! The appliance file: read, checked, and every problem found at once.

mod diagnostic;
mod document;
mod host;
mod position;
mod size;
#[cfg(test)]
mod tests;
mod types;
mod validate;

pub use diagnostic::{Diagnostic, Severity};
pub use document::{Document, load, read};
pub use host::{CpuList, Host, Management, Need, Seconds};
pub use size::Size;
pub use types::*;
pub(crate) use validate::{pair, range};
