//! How a command ends, as a number that scripts can tell apart (docs/decisions/0006).

use std::io::Write as _;
use std::process::ExitCode;

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It worked.
    Success,
    /// The file, or what it asks of this host, has a problem.
    BadInput,
    /// The host failed, or we did.
    Fault,
    /// The guest reset and was to end with it.
    GuestReset,
    /// The guest crashed its processor, or was stopped for a panic or by its watchdog.
    GuestCrash,
    /// A device failed and the policy is to stop.
    DeviceError,
    /// The guest was stopped from outside.
    Stopped,
    /// `plan`, `status`: there is something to do.
    Pending,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::BadInput => 1,
            // 2 is clap's too, for a wrong command line; `plan` and `status` have it as others' tools do.
            Exit::Pending => 2,
            Exit::Fault => 3,
            Exit::GuestReset => 4,
            Exit::GuestCrash => 5,
            Exit::DeviceError => 6,
            Exit::Stopped => 7,
        })
    }
}

impl Exit {
    /// What another process of ours ended with.
    pub(super) fn from_code(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Success,
            Some(1) => Self::BadInput,
            Some(2) => Self::Pending,
            _ => Self::Fault,
        }
    }

    /// What the process of a guest ended with; none where a signal ended it.
    pub(super) fn from_guest(code: Option<i32>) -> Option<Self> {
        Some(match code? {
            0 => Self::Success,
            1 => Self::BadInput,
            4 => Self::GuestReset,
            5 => Self::GuestCrash,
            6 => Self::DeviceError,
            7 => Self::Stopped,
            _ => Self::Fault,
        })
    }

    /// How the guest has ended, in words.
    pub(super) fn of_guest(self) -> &'static str {
        match self {
            Self::Success => "it powered off",
            Self::GuestReset => "it reset, and its file says `on-reset: exit`",
            Self::GuestCrash => "it crashed its processor",
            Self::DeviceError => "a device failed, and its file says `on-device-error: stop`",
            Self::Stopped => "it was stopped from outside",
            Self::BadInput | Self::Pending | Self::Fault => "it could not be started",
        }
    }
}

/// Says an error on standard error, with its causes on the same line.
pub(super) fn complain(error: &anyhow::Error) {
    // A terminal that is gone is no reason to panic.
    let _ = writeln!(std::io::stderr(), "error: {}", sentence(error));
}

/// The error and its causes, but for those that it has told itself.
pub(super) fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Opening the door: {source}")]
    struct Locked {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::Error::new(Locked { source: std::io::Error::other("no key") });
        assert_eq!(sentence(&error), "Opening the door: no key");
        assert_eq!(sentence(&error.context("Going home")), "Going home: Opening the door: no key");
    }
}
