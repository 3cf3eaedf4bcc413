//! Why a command did not do what it was asked for.

use super::check;
use super::exit::{Exit, complain};
use crate::config::Diagnostic;

/// Why.
pub(super) enum Failure {
    /// The file, or what it asks of this host.
    Input(Vec<Diagnostic>),
    /// The same, where it is not about a line.
    Refused(anyhow::Error),
    /// The host, or us.
    Fault(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(error)
    }
}

/// How a command ends, once what there is to complain about is said.
pub(super) fn ended(result: Result<Exit, Failure>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(Failure::Input(problems)) => {
            check::complain(&problems);
            Exit::BadInput
        }
        Err(Failure::Refused(error)) => {
            complain(&error);
            Exit::BadInput
        }
        Err(Failure::Fault(error)) => {
            complain(&error);
            Exit::Fault
        }
    }
}
