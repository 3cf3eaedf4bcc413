//! What the file may say. Each key has the name that the field uses for the thing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use netconfig::section::{NetworkSection, PortVlan};
use netconfig::{EswitchMode, MacAddress, VfAttributes};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{CpuList, Host, Management, Size};

/// One appliance file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Version of the file's format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// How the administrator gets in.
    #[serde(default)]
    pub management: Management,
    /// What the box must have.
    #[serde(default)]
    pub host: Host,
    /// Stable names for the host's PCI functions.
    #[serde(default)]
    pub devices: BTreeMap<String, Device>,
    /// Virtual functions, by a name from `devices`.
    #[serde(default)]
    pub sriov: BTreeMap<String, Sriov>,
    /// "Any free VF of these".
    #[serde(default)]
    pub pools: BTreeMap<String, Pool>,
    /// Links of the host, by name.
    #[serde(default)]
    pub networks: BTreeMap<String, NetworkSection>,
    /// Guests.
    #[serde(default)]
    pub vms: BTreeMap<String, Vm>,
}

/// One PCI function of the host, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Device {
    /// How it is recognized: all that is given must hold, and only one function may fit.
    #[serde(rename = "match")]
    pub matches: Match,
    /// What to do when the function at the place is another one than described.
    #[serde(default)]
    pub on_mismatch: OnMismatch,
    /// What of its IOMMU group goes along.
    #[serde(default)]
    pub group: GroupScope,
}

/// How a function is recognized.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Match {
    /// Its address, DDDD:BB:DD.F. Addresses move when cards are added: `path` or an identity is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Devices and functions from the root on, `00:01.0/00.0`: where it is plugged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Vendor and device, `10de:2204`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Subsystem vendor and device, `1043:87b3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem_id: Option<String>,
    /// The MAC address that is burnt in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permanent_mac: Option<MacAddress>,
    /// The device's serial number, as `lspci -v` prints it (`00-1b-21-ff-ff-a7-5c-30`), or a disk's that its NVMe controller
    /// tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// What a mismatch does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnMismatch {
    /// Nothing is done.
    #[default]
    Refuse,
    /// It is done, and said.
    Warn,
}

/// What of an IOMMU group goes along with a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupScope {
    /// The function alone.
    #[default]
    Single,
    /// All of the group but bridges.
    AllEndpoints,
}

/// Virtual functions of one physical function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sriov {
    /// How many.
    #[serde(alias = "total-vfs", alias = "numVfs", alias = "virtual-function-count")]
    pub num_vfs: u16,
    /// How the card's switch between its port and its VFs is run.
    #[serde(alias = "embedded-switch-mode", skip_serializing_if = "Option::is_none")]
    pub eswitch_mode: Option<EswitchMode>,
    /// Whether the host's own drivers take the VFs as they are made.
    #[serde(default)]
    pub drivers_autoprobe: bool,
    /// When the number changes while a VF is in use.
    #[serde(default)]
    pub on_resize: OnResize,
    /// What every VF gets that says nothing else.
    #[serde(default)]
    pub vf_defaults: VfAttributes,
    /// Single VFs.
    #[serde(default)]
    pub vfs: Vec<Vf>,
}

/// What a change of the number does to VFs in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnResize {
    /// It is refused.
    #[default]
    RefuseIfInUse,
}

/// One VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Vf {
    /// Its index, from 0.
    pub id: u16,
    /// Its attributes.
    #[serde(flatten)]
    pub attributes: VfAttributes,
}

/// A set of VFs that guests are given any free one of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pool {
    /// Physical functions, by their names in `devices`.
    pub pf: Vec<String>,
    /// Indices, `1-7` or `3`; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vf_range: Option<String>,
    /// Whether a guest's VF must be on the guest's own NUMA node: that of the devices which the file gives it by name.
    #[serde(default)]
    pub numa: PoolNuma,
    /// Where a guest's VF gets its MAC address from when neither the guest nor the VF says one.
    #[serde(default)]
    pub mac_address: PoolMac,
}

/// What a guest's NUMA node means for the VF that it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolNuma {
    /// Only a VF of that node is given.
    Require,
    /// One of that node, where one is free and the node is known.
    #[default]
    Prefer,
    /// Nothing.
    Ignore,
}

/// Where a MAC address comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMac {
    /// From the names of guest and nic: the same at every start.
    #[default]
    Derived,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vm {
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
    /// What it is. It is never guessed.
    #[serde(default)]
    pub format: DiskFormat,
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
