//! What goes over the wire: one request, one message, each a line of JSON.
//!
//! Who adds an operation adds a variant here and the arm that does it in `machine::requests`. A field that may be missing
//! has a default; one that changes its meaning raises [`VERSION`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Raised when a client of before would misunderstand.
pub const VERSION: u32 = 1;
/// Of a request, in bytes, with the line feed.
pub const LONGEST_LINE: usize = 64 << 10;

/// What is asked. `"pause"`, `{"link": {"nic": "lan", "up": false}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the machine is and does: [`Message::State`].
    State,
    /// Stops processors and virtio devices between two steps. Functions given through VFIO go on with what they were told
    /// to do: their DMA is theirs.
    Pause,
    /// Lets a paused machine go on.
    Resume,
    /// Resets the machine as the guest can itself. One that is paused stays so, at its start.
    Reset,
    /// Presses the power button: a guest that listens shuts down.
    PowerButton,
    /// Presses the power button, and ends the machine where it has not ended after this time.
    Stop {
        /// In milliseconds; 0 ends it at once.
        timeout_ms: u64,
    },
    /// At the next start of the machine alone, firmware begins with this device. UEFI only.
    BootOnce {
        /// Its name in the guest's file; `null` takes an earlier wish back.
        device: Option<String>,
    },
    /// Plugs the cable of a network card in, or pulls it.
    Link {
        /// The card's name in the guest's file.
        nic: String,
        /// Whether it is plugged in.
        up: bool,
    },
    /// Puts another medium into a CD drive, or takes the one that is there out. The image comes with the request, opened for
    /// reading: as a descriptor beside its bytes (`SCM_RIGHTS`).
    Medium {
        /// The drive's name in the guest's file.
        disk: String,
        /// Absolute path of the raw image, for messages; `null` leaves the drive open and empty.
        path: Option<PathBuf>,
        /// Also where the guest has locked the drive.
        #[serde(default)]
        force: bool,
    },
    /// Plugs in what the guest's file has under this name: [`Message::Done`], or [`Message::Plugged`].
    Add {
        /// Its key there, or `nic lan`, `disk root`, `pci gpu` where several have one.
        device: String,
        /// How long the guest may take to turn its slot on, in milliseconds.
        timeout_ms: u64,
    },
    /// Takes a device out of the guest and gives it back to the host.
    Remove {
        /// As for [`Request::Add`].
        device: String,
        /// Without asking the guest.
        #[serde(default)]
        force: bool,
        /// How long the guest may take to turn its slot off, in milliseconds.
        timeout_ms: u64,
    },
    /// What has been counted: [`Message::Stats`].
    Stats,
    /// The guest's console on this connection, for the rest of it.
    Console(Attach),
}

/// How to be attached to the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attach {
    /// What is sent is typed. One at a time may.
    #[serde(default)]
    pub write: bool,
    /// Take the keyboard from who has it; that connection is closed.
    #[serde(default)]
    pub take: bool,
    /// Begin with what was said of late, as much as is kept.
    #[serde(default)]
    pub recent: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The first line of each connection.
    Hello(Greeting),
    /// It is done; for [`Request::Console`]: what follows are bytes.
    Done,
    /// To [`Request::Add`]: the device is in its slot, and the guest has not turned that on in time.
    Plugged,
    /// To [`Request::State`].
    State(Status),
    /// To [`Request::Stats`].
    Stats(Statistics),
    /// It is not done.
    Error(Refusal),
    /// The machine has ended; the process is about to give back what it held, and ends then.
    Ended(Ended),
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Greeting {
    /// [`VERSION`].
    pub protocol: u32,
    /// The guest's name.
    pub vm: String,
    /// Version of Throughway.
    pub version: String,
}

/// Whether a machine's processors run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// They run.
    Running,
    /// They do not, until they are told to.
    Paused,
    /// They run, and the power button was pressed for a stop that has a time limit.
    Stopping,
}

/// What the machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What its processors do.
    pub state: RunState,
    /// For how long, in milliseconds.
    pub since_ms: u64,
    /// How long ago the machine was switched on, in milliseconds.
    pub uptime_ms: u64,
    /// How often it was reset since.
    pub resets: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// What firmware begins with at the next start, where that was asked for.
    #[serde(default)]
    pub boot_once: Option<String>,
    /// Connections whose keyboard is the guest's: 0 or 1.
    pub console_writers: u32,
    /// Connections that read the console.
    pub console_readers: u32,
    /// What sits behind its root ports, in their order.
    pub devices: Vec<Device>,
}

/// A device of the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    /// `nic lan`, `disk root`; of a host function its address.
    pub name: String,
    /// What serves it, in a few words; empty for a host function.
    pub report: String,
    /// What it has counted, by name. Of a card that vhost serves, nothing: the host's link has the packets.
    pub counters: BTreeMap<String, u64>,
    /// Whether its cable is plugged in; `null` for what is no network card.
    #[serde(default)]
    pub link: Option<bool>,
    /// Interrupts that Throughway itself has raised; those of vhost and of host functions pass it by.
    pub interrupts: u64,
    /// The kernel raises interrupts for it (vhost), and nobody counts those.
    #[serde(default)]
    pub interrupts_in_kernel: bool,
    /// It is a function of the host's.
    pub passthrough: bool,
}

/// What has been counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statistics {
    /// KVM's counters of the machine, by KVM's names; empty where this kernel has none.
    pub vm: BTreeMap<String, u64>,
    /// By index.
    pub vcpus: Vec<VcpuStatistics>,
    /// As in [`Status::devices`].
    pub devices: Vec<Device>,
    /// Processor time of this process, the guest's included, in milliseconds.
    #[serde(default)]
    pub cpu_ms: u64,
    /// Guest RAM that stays in place because functions of the host may read and write it at any time, in bytes.
    #[serde(default)]
    pub mapped: u64,
    /// What the kernel has counted as pinned, in bytes (`VmPin`): by iommufd.
    pub pinned: u64,
    /// What it has counted as locked (`VmLck`): by VFIO groups.
    pub locked: u64,
    /// Memory of this process that is in RAM, guest RAM included, in bytes (`VmRSS`).
    pub resident: u64,
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VcpuStatistics {
    /// KVM's counters by KVM's names: `exits`, `io_exits`, `mmio_exits`, `halt_exits` and so on. Empty where this kernel has
    /// none.
    pub kvm: BTreeMap<String, u64>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// Which kind of reason.
    pub kind: RefusalKind,
    /// For a person: what and why, and what to do.
    pub message: String,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The request cannot be understood. Nothing was done.
    Malformed,
    /// It does not fit this machine, or not now. Nothing was done.
    Refused,
    /// It was tried, and the host said no. What was changed is put back.
    Failed,
}

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The guest powered off.
    PowerOff,
    /// It reset, and was to end with that.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// It crashed its processor.
    Crash,
    /// A device failed.
    DeviceError,
    /// Its kernel panicked or its watchdog ran out.
    Trouble,
    /// Throughway or the host failed.
    Fault,
}

impl Message {
    /// For `map_err` and `match` alike.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Error(Refusal { kind: RefusalKind::Refused, message: message.into() })
    }

    /// Where the host said no.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Error(Refusal { kind: RefusalKind::Failed, message: message.into() })
    }

    /// With its line feed.
    pub fn line(&self) -> Vec<u8> {
        // Strings, numbers and maps by strings: all of that has JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// A request out of its line, with or without line feed.
///
/// # Errors
/// What to answer.
pub fn parse(line: &[u8]) -> Result<Request, Message> {
    serde_json::from_slice(line).map_err(|error| {
        let message = format!("This is no request that protocol {VERSION} has: {error}");
        Message::Error(Refusal { kind: RefusalKind::Malformed, message })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::State),
            Just(Request::Pause),
            Just(Request::Resume),
            Just(Request::Reset),
            Just(Request::PowerButton),
            Just(Request::Stats),
            any::<u64>().prop_map(|timeout_ms| Request::Stop { timeout_ms }),
            any::<Option<String>>().prop_map(|device| Request::BootOnce { device }),
            (any::<String>(), any::<bool>()).prop_map(|(nic, up)| Request::Link { nic, up }),
            (any::<String>(), any::<Option<String>>(), any::<bool>()).prop_map(|(disk, path, force)| {
                Request::Medium { disk, path: path.map(PathBuf::from), force }
            }),
            (any::<String>(), any::<u64>())
                .prop_map(|(device, timeout_ms)| Request::Add { device, timeout_ms }),
            (any::<String>(), any::<bool>(), any::<u64>())
                .prop_map(|(device, force, timeout_ms)| Request::Remove { device, force, timeout_ms }),
            any::<[bool; 3]>().prop_map(|[write, take, recent]| Request::Console(Attach {
                write,
                take,
                recent
            })),
        ]
    }

    #[test]
    fn the_words_on_the_wire_are_these() {
        for (line, request) in [
            ("\"state\"", Request::State),
            ("\"power-button\"\n", Request::PowerButton),
            ("{\"stop\":{\"timeout-ms\":5000}}", Request::Stop { timeout_ms: 5000 }),
            ("{\"link\":{\"nic\":\"lan\",\"up\":false}}", Request::Link { nic: "lan".into(), up: false }),
            (
                "{\"remove\":{\"device\":\"wan\",\"timeout-ms\":30000}}",
                Request::Remove { device: "wan".into(), force: false, timeout_ms: 30_000 },
            ),
            (
                "{\"medium\":{\"disk\":\"cd\",\"path\":null}}",
                Request::Medium { disk: "cd".into(), path: None, force: false },
            ),
            ("{\"console\":{}}", Request::Console(Attach::default())),
            ("{\"boot-once\":{\"device\":null}}", Request::BootOnce { device: None }),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(request), "{line}");
        }
        assert_eq!(Message::Done.line(), b"\"done\"\n");
        let refused = Message::refused("No.").line();
        assert_eq!(refused, b"{\"error\":{\"kind\":\"refused\",\"message\":\"No.\"}}\n");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in [
            "",
            "{}",
            "\"explode\"",
            "{\"stop\":{}}",
            "{\"stop\":{\"timeout-ms\":-1}}",
            "{\"stop\":{\"timeout-ms\":1,\"more\":2}}",
            "{\"link\":{\"nic\":\"lan\",\"up\":false}} trailing",
            "\"state\"\"state\"",
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(Message::Error(_))), "{line}");
        }
        let deep = "[".repeat(LONGEST_LINE);
        assert!(parse(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_line_can_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }

        #[test]
        fn every_request_arrives_as_it_was(request in requests()) {
            let line = serde_json::to_vec(&request).unwrap();
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(parse(&line), Ok(request));
        }

        #[test]
        fn a_request_that_was_damaged_is_a_request_or_refused(
            request in requests(), at: prop::sample::Index, byte: u8
        ) {
            let mut line = serde_json::to_vec(&request).unwrap();
            let at = at.index(line.len());
            line[at] = byte;
            let _ = parse(&line);
        }
    }
}
