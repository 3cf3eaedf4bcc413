//! The box.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Change, Drift, Guest};

/// The box in a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Overview {
    /// Its name.
    pub host: String,
    /// Throughway's version.
    pub version: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Seconds since it was started.
    pub uptime: u64,
    /// Processors.
    pub processors: u32,
    /// How many of them have had work in the last minute (the load).
    pub load: String,
    /// Memory.
    pub memory: u64,
    /// Memory that programs and guests could still have.
    pub memory_available: u64,
    /// All guests.
    pub guests: Vec<Guest>,
    /// Where the host is not as the file says; none where that is not known.
    pub drift: Option<Vec<Drift>>,
    /// The change that is being done, or waits to be confirmed.
    pub change: Option<Change>,
    /// What is wrong with devices of guests, in words.
    pub device_faults: Vec<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, with a drawback.
    Fair,
    /// It will not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How it is.
    pub health: Health,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// What the box itself is fit for, as `throughway doctor --json` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Doctor {
    /// All of it.
    pub findings: Vec<Finding>,
    /// What to add to the kernel's command line, where something is missing there.
    pub add_to_cmdline: Option<String>,
}
