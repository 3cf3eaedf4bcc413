//! How a guest has ended, as it is noted for who comes later.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};

/// How (docs/decisions/0006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// It never began: the file, or what it asks of this host, has a problem.
    Refused,
    /// The host failed, or Throughway did.
    Fault,
    /// It reset, and its file says `on-reset: exit`.
    Reset,
    /// It crashed its processor, or was stopped for a panic or by its watchdog.
    Crash,
    /// A device failed, and its file says `on-device-error: stop`.
    DeviceError,
    /// It was stopped from outside.
    Stopped,
    /// Its process was killed by a signal, or is gone without a word.
    Killed,
}

impl End {
    /// Of a process of ours.
    pub fn of(status: ExitStatus) -> Self {
        match status.code() {
            _ if status.signal().is_some() => Self::Killed,
            Some(0) => Self::PowerOff,
            Some(1 | 2) => Self::Refused,
            Some(4) => Self::Reset,
            Some(5) => Self::Crash,
            Some(6) => Self::DeviceError,
            Some(7) => Self::Stopped,
            _ => Self::Fault,
        }
    }

    /// Neither the guest nor a person wanted it.
    pub fn is_failure(self) -> bool {
        match self {
            Self::PowerOff | Self::Reset | Self::Stopped => false,
            Self::Refused | Self::Fault | Self::Crash | Self::DeviceError | Self::Killed => true,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "it powered off",
            Self::Refused => "it could not be started",
            Self::Fault => "the host or Throughway failed",
            Self::Reset => "it reset, and its file says `on-reset: exit`",
            Self::Crash => "it crashed",
            Self::DeviceError => "a device failed, and its file says `on-device-error: stop`",
            Self::Stopped => "it was stopped from outside",
            Self::Killed => "its process was killed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_signals_are_told_apart() {
        let code = |code: i32| End::of(ExitStatus::from_raw(code << 8));
        assert_eq!(
            [0, 1, 3, 4, 5, 6, 7, 101].map(code),
            [
                End::PowerOff,
                End::Refused,
                End::Fault,
                End::Reset,
                End::Crash,
                End::DeviceError,
                End::Stopped,
                End::Fault
            ]
        );
        assert_eq!(End::of(ExitStatus::from_raw(9)), End::Killed);
    }
}
