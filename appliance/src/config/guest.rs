//! What the file may say of a guest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use netconfig::VfAttributes;
use netconfig::section::PortVlan;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{CpuList, Seconds, Size};

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vm {
    /// `throughway daemon` starts it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub autostart: bool,
    /// Whether `throughway daemon` starts it again when it has ended.
    #[serde(default, skip_serializing_if = "Restart::is_usual")]
    pub restart: Restart,
    /// Guests that must run before the daemon starts this one; they end after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// How long the daemon waits before it starts this one, once all that it depends on run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_delay: Option<Seconds>,
    /// How long it may take to shut down after the daemon has pressed its power button, before the plug is pulled: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Seconds>,
    /// Processors: a number, or their topology.
    #[serde(default)]
    pub cpus: Cpus,
    /// Memory: a size, or more about it.
    pub memory: Memory,
    /// What it starts.
    pub boot: Boot,
    /// Network cards, by name.
    #[serde(default)]
    pub nics: BTreeMap<String, Nic>,
    /// Disks, by name: in the order of their names the guest finds them.
    #[serde(default)]
    pub disks: BTreeMap<String, Disk>,
    /// Whole PCI functions, by the guest's name for them.
    #[serde(default)]
    pub pci: BTreeMap<String, Passthrough>,
    /// It has a virtio source of entropy, fed by the host's random number generator.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rng: bool,
    /// What the console of `throughway run` is in the guest.
    #[serde(default, skip_serializing_if = "GuestConsole::is_serial")]
    pub console: GuestConsole,
    /// It has a socket to the host (vsock(7)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// Root ports with nothing behind them, for devices that are plugged in while it runs: `throughway vm add`. A device
    /// that is removed leaves its port to another.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 30))]
    pub hotplug_ports: u8,
    /// What a guest reset does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// What an error that a device reports does.
    #[serde(default)]
    pub on_device_error: OnDeviceError,
    /// It has a pvpanic port, by which its kernel tells of a panic, and what that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_panic: Option<OnTrouble>,
    /// It has a watchdog (i6300esb), and what it does when the guest has not reloaded it in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<OnTrouble>,
}

/// Whether a guest that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays off.
    #[serde(alias = "never")]
    No,
    /// When it crashed, or its process was killed or failed.
    #[default]
    OnFailure,
    /// Also when it powered itself off.
    Always,
}

impl Restart {
    fn is_usual(&self) -> bool {
        *self == Self::OnFailure
    }
}

/// Processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Cpus {
    /// As many sockets' worth as there are, one core each a thread.
    Count(u32),
    /// A topology.
    Topology(CpuTopology),
}

/// By hand, so that what is wrong within a topology is told at its place.
impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Cpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of processors, such as 4, or {count: 4, threads: 2}")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Cpus, E> {
                let count = u32::try_from(count);
                count.map(Cpus::Count).map_err(|_| E::custom("This is no number of processors"))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cpus, A::Error> {
                CpuTopology::deserialize(MapAccessDeserializer::new(map)).map(Cpus::Topology)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Default for Cpus {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// A topology: `count` vCPUs as `sockets` of equal size with `threads` to a core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CpuTopology {
    /// All vCPUs.
    pub count: u32,
    /// Sockets.
    #[serde(default = "one")]
    pub sockets: u32,
    /// Threads a core, 1 or 2.
    #[serde(default = "one")]
    pub threads: u32,
    /// The host's processors that they run on: one each where there are as many, else any of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<CpuList>,
}

fn one() -> u32 {
    1
}

impl Cpus {
    /// As a topology.
    pub fn topology(&self) -> CpuTopology {
        match self {
            Self::Count(count) => CpuTopology { count: *count, sockets: 1, threads: 1, cpuset: None },
            Self::Topology(topology) => topology.clone(),
        }
    }

    /// The host's processors that they run on.
    pub fn cpuset(&self) -> Option<&CpuList> {
        match self {
            Self::Count(_) => None,
            Self::Topology(topology) => topology.cpuset.as_ref(),
        }
    }
}

/// Memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "write a size, such as 8GiB, or {size: 8GiB, hugepages: 1GiB}")]
pub enum Memory {
    /// Of ordinary pages.
    Size(Size),
    /// More about it.
    Detail(MemoryDetail),
}

/// More about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryDetail {
    /// How much.
    pub size: Size,
    /// Size of the huge pages that back it: 2MiB or 1GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<Size>,
    /// Touch all of it before the guest starts.
    #[serde(default)]
    pub prefault: bool,
    /// Where it lies: on a NUMA node by its number, or `auto`: near the processors of `cpuset`, else near the guest's devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa: Option<MemoryNuma>,
    /// Ask the kernel for transparent huge pages.
    #[serde(default, skip_serializing_if = "is_false")]
    pub transparent_hugepages: bool,
}

/// Where a guest's memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "write auto, or the number of a NUMA node")]
pub enum MemoryNuma {
    /// By what the guest has.
    Near(NearNuma),
    /// On this node, and on no other.
    Node(u32),
}

/// By what the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NearNuma {
    /// Near the processors of `cpuset`, else near the devices; elsewhere where there is no memory left.
    Auto,
}

impl Memory {
    /// In detail.
    pub fn detail(self) -> MemoryDetail {
        match self {
            Self::Size(size) => MemoryDetail {
                size,
                hugepages: None,
                prefault: false,
                numa: None,
                transparent_hugepages: false,
            },
            Self::Detail(detail) => detail,
        }
    }
}

/// What a guest starts: a kernel, or firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Boot {
    /// A kernel: bzImage, or an ELF file with a PVH note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Firmware, which finds by itself what to start: `uefi`, or files of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// What firmware starts from, the first one first: names of this guest's devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
}

/// Firmware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "write uefi, or {code: PATH, vars: PATH}")]
pub enum Firmware {
    /// That of the distribution's package `ovmf`.
    Known(KnownFirmware),
    /// Files of one's own.
    Files(FirmwareFiles),
}

/// Firmware by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KnownFirmware {
    /// /usr/share/OVMF/OVMF_CODE_4M.fd and OVMF_VARS_4M.fd.
    Uefi,
}

/// The two files of a firmware build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FirmwareFiles {
    /// The code.
    pub code: PathBuf,
    /// Variables that a guest begins with. Its own are kept in the state folder.
    pub vars: PathBuf,
}

impl Firmware {
    /// Its files.
    pub fn files(&self) -> FirmwareFiles {
        match self {
            Self::Known(KnownFirmware::Uefi) => FirmwareFiles {
                code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
                vars: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
            },
            Self::Files(files) => files.clone(),
        }
    }
}

/// A network card: virtio-net on a network of the host, or a VF through VFIO, from a pool or a certain one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Nic {
    /// A name from `networks`: a bridge, a NAT network or a macvtap, by a virtio-net card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// On a bridge with `vlan-filtering`: VLANs of the card's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<PortVlan>,
    /// Pairs of queues of a virtio-net card: 1 to 16, and no more than the guest has processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// A name from `pools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// A name from `devices` whose VF `vf` it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pf: Option<String>,
    /// Index of the VF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vf: Option<u16>,
    /// Attributes that this guest's VF gets, before those of the VF and its defaults.
    #[serde(flatten)]
    pub attributes: VfAttributes,
}

/// A disk: an image on the host, as a virtio-blk device, or in the CD drive of a virtio-scsi host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Disk {
    /// The image, or a block device.
    pub path: PathBuf,
    /// What it is; raw where it is not said. It is never guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// What the guest finds it in.
    #[serde(default)]
    pub device: DiskDevice,
    /// The guest cannot write to it; several guests may have it then. A CD is so without being told.
    #[serde(default)]
    pub read_only: bool,
    /// Bypass the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// Folders besides the image's own where its backing files may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing_folders: Vec<PathBuf>,
    /// Queues, each with a thread of its own: 1 to 16. As many as vCPUs where it is not said, and 4 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
}

impl Disk {
    /// Whether the guest can only read it.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.device == DiskDevice::Cdrom
    }
}

/// What the guest finds a disk in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskDevice {
    /// A disk: `/dev/vda`.
    #[default]
    Disk,
    /// A CD drive: `/dev/sr0`, where installers look for their medium.
    Cdrom,
}

/// What an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    #[default]
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// A whole function through VFIO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Passthrough {
    /// A name from `devices`.
    pub device: String,
    /// The guest, and its firmware, sees the expansion ROM: drivers for its start, such as a GPU's for the screen.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rom_bar: bool,
}

fn is_zero(value: &u8) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// What a guest reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The guest starts again.
    #[default]
    Restart,
    /// `throughway run` ends, with an exit code of its own.
    Exit,
}

/// What an error that a device reports does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeviceError {
    /// Resets the guest, and the device with it.
    #[default]
    Reset,
    /// Stops the guest.
    Stop,
    /// Takes the device out of the guest.
    Detach,
    /// Is logged.
    Ignore,
}

/// What trouble of the guest's own does: a panic of its kernel, a watchdog that it did not reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnTrouble {
    /// Is logged, and nothing else.
    #[serde(alias = "none")]
    Log,
    /// Stops its processors where they are, to be looked at.
    Pause,
    /// Resets the guest.
    Reset,
    /// Stops the guest.
    Stop,
}

/// What the console of `throughway run` is in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GuestConsole {
    /// COM1: `ttyS0` to Linux.
    #[default]
    Serial,
    /// A virtio console, `hvc0` to Linux, which is much faster. What comes out of COM1 is shown too.
    Virtio,
}

impl GuestConsole {
    fn is_serial(&self) -> bool {
        *self == Self::Serial
    }
}

/// A socket to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context ID, by which the host's programs reach it: 3 or more, and no other guest's.
    #[schemars(range(min = 3, max = 4_294_967_294_u32))]
    pub cid: u32,
}
