//! What a guest's keeper and its machine tell each other.
//!
//! The machine says names of the guest's file, and nothing else that the keeper acts on: no path, no number.

use serde::{Deserialize, Serialize};
use vmm::spec::ConsoleDevice;
use vmm::{Outcome, VmSpec};

use crate::guest::parts::{Boot, CardPart, Disk, Functions, New, VsockPart};
use crate::jail::Place;

/// From the keeper.
#[derive(Serialize, Deserialize)]
pub(super) enum Tell {
    /// First: lock yourself up, and see whether the disks can be used.
    Prepare(Box<Prepare>),
    /// Then: build the machine and run it.
    Start(Box<Start>),
    /// A socket that listens, or why there is none.
    Listener(Result<Place, String>),
    /// A device that was asked for.
    Device(Box<Result<New, String>>),
    /// A device was given back.
    Done(Result<(), String>),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Prepare {
    /// How often `-v` was said.
    pub(super) verbose: u8,
    /// The user to become.
    pub(super) user: Option<u32>,
    /// The lock by which nobody else becomes that.
    pub(super) held: Option<Place>,
    /// How much memory may be locked.
    pub(super) memlock: Option<u64>,
    pub(super) boot: Boot,
    pub(super) disks: Vec<Disk>,
    pub(super) vsock: Option<VsockPart>,
    /// What to build meanwhile, where that does not depend on what the host is going to give.
    pub(super) spec: Option<VmSpec>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    /// What to build, where that was not said before.
    pub(super) spec: Option<VmSpec>,
    pub(super) functions: Option<Functions>,
    pub(super) cards: Vec<CardPart>,
    pub(super) rng: bool,
    pub(super) console: ConsoleDevice,
    /// Whether standard input and output are the console's, and then whether that is a raw terminal.
    pub(super) terminal: Option<bool>,
    pub(super) log: Option<Log>,
}

/// The console's log.
#[derive(Serialize, Deserialize)]
pub(super) struct Log {
    pub(super) file: Place,
    /// Bytes of a file.
    pub(super) limit: u64,
    /// By which the next file is asked for when one is full.
    pub(super) wire: Place,
}

/// From the machine. An answer comes to all but the first and the last.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Say {
    /// The disks were looked at: what is wrong with which, by its place.
    Prepared(Vec<(usize, Vec<String>)>),
    /// The guest runs, and can be controlled.
    Listen,
    /// Open what the file has under this name.
    Open(String),
    /// This one is out of the guest.
    GiveBack(String),
    /// The guest has ended.
    Ended(Ended),
}

/// How.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ended {
    PowerOff,
    Reset,
    Stopped,
    Crash(String),
    Trouble(String),
    DeviceError {
        device: String,
        what: String,
    },
    /// The kernel cannot be started; an error and its causes.
    Kernel(Vec<String>),
    /// Nor can the firmware.
    Firmware(Vec<String>),
    /// The host failed, or the machine.
    Fault(Vec<String>),
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::PowerOff => Self::PowerOff,
            Outcome::Reset => Self::Reset,
            Outcome::Stopped => Self::Stopped,
            Outcome::Crash(crash) => Self::Crash(crash.to_string()),
            Outcome::Trouble { what } => Self::Trouble(what.to_owned()),
            Outcome::DeviceError { device, what } => Self::DeviceError { device, what },
        }
    }
}

/// An error and its causes, for the wire.
pub(super) fn chain(error: &anyhow::Error) -> Vec<String> {
    error.chain().map(ToString::to_string).collect()
}

/// The same as an error again.
pub(super) fn unchain(chain: Vec<String>) -> anyhow::Error {
    let mut causes = chain.into_iter().rev();
    let last = causes.next().unwrap_or_else(|| "It is not said why".to_owned());
    causes.fold(anyhow::anyhow!(last), anyhow::Error::context)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_arrives_with_its_causes() {
        let error = std::fs::File::open("/nowhere").context("Opening it").unwrap_err();
        let came = unchain(chain(&error));
        assert_eq!(format!("{came:#}"), format!("{error:#}"));
        assert_eq!(came.to_string(), "Opening it");
        assert_eq!(unchain(Vec::new()).to_string(), "It is not said why");
    }
}
