//! What the file may say. Each key has the name that the field uses for the thing.

use std::collections::BTreeMap;

use netconfig::section::NetworkSection;
use netconfig::{EswitchMode, MacAddress, VfAttributes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Management, Vm, Web};

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
    /// The admin interface.
    #[serde(default)]
    pub web: Web,
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
