//! Guests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// It has no process, and is to have none.
    Off,
    /// It starts once others run, or after its delay.
    Waiting,
    /// It has a process, and does not answer yet.
    Starting,
    /// It runs.
    Running,
    /// Its processors are held.
    Paused,
    /// It was told to end.
    Stopping,
    /// It failed, and is started again after a while.
    BackingOff,
}

/// A guest: of the file that holds, or one that somebody started from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: GuestState,
    /// More of that, for a person: what it waits for, how it ended, why.
    pub detail: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// How long ago it was switched on, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest RAM.
    pub memory: u64,
    /// It is started with the box.
    pub autostart: bool,
    /// It is in the file that holds.
    pub in_file: bool,
    /// The file has changed since it was started.
    pub changed: bool,
    /// Failures in a row.
    pub failures: u32,
    /// What it has, by the file where it does not run.
    pub devices: Vec<GuestDevice>,
}

/// A device of a guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct GuestDevice {
    /// `nic lan`, `disk root`, `pci gpu`; of a function of the host's its address.
    pub name: String,
    /// What serves it, in a few words.
    pub report: String,
    /// Whether its cable is plugged in, of a network card.
    pub link: Option<bool>,
    /// It is a function of the host's.
    pub passthrough: bool,
}

/// What was counted of a guest that runs, since it was switched on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct GuestStats {
    /// Processor time that its process has used, in milliseconds.
    pub cpu_ms: u64,
    /// Memory of its process that is in RAM, guest RAM included.
    pub resident: u64,
    /// Guest RAM that is pinned for functions of the host's.
    pub pinned: u64,
    /// Exits by cause, over all vCPUs: KVM's names.
    pub exits: BTreeMap<String, u64>,
    /// Interrupts by device.
    pub interrupts: BTreeMap<String, u64>,
    /// Other counters by device: bytes and packets, requests.
    pub counters: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A disk image or an installer in the folder of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Its file name.
    pub name: String,
    /// Where it is, as the file would name it.
    pub path: String,
    /// Bytes that it takes on disk.
    pub allocated: u64,
    /// Bytes that it is long.
    pub length: u64,
    /// Guests of the file that have it.
    pub guests: Vec<String>,
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Log {
    /// Oldest first, without line ends.
    pub lines: Vec<String>,
    /// There are more before them.
    pub more: bool,
}
