//! PCI functions of the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a guest can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it is.
    Ready,
    /// After something is done first.
    PossibleAfter,
    /// Not at all.
    Impossible,
}

/// One of the causes of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// What this cause alone comes to.
    pub weight: Verdict,
    /// The cause.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceUse {
    /// The host does, as said: `vda is mounted at /`.
    Host(String),
    /// A guest that runs.
    Guest(String),
}

/// What a PF says of its VFs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Sriov {
    /// How many there can be.
    pub total: u16,
    /// How many there are.
    pub present: u16,
}

/// One attribute of a VF: as the file asks for it, and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct VfAttribute {
    /// The key of the file: `mac-address`, `vlan-id`, `spoof-check`.
    pub key: String,
    /// What the file says; none where it says nothing.
    pub requested: Option<String>,
    /// What the card's driver says; none where it knows no such thing.
    pub actual: Option<String>,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    /// `0000:01:00.0`.
    pub address: String,
    /// Vendor and device, by the PCI database.
    pub name: String,
    /// The class in words: `Ethernet controller`.
    pub kind: Option<String>,
    /// Vendor and device id: `8086:1520`.
    pub id: String,
    /// The bridge or root port above it.
    pub parent: Option<String>,
    /// It is a bridge or root port itself: nothing to give away.
    pub bridge: bool,
    /// The host's driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Its NUMA node.
    pub numa_node: Option<u16>,
    /// Links of the host that are it.
    pub interfaces: Vec<String>,
    /// Its name in the file that holds.
    pub named: Option<String>,
    /// Whether a guest can have it.
    pub verdict: Verdict,
    /// Why, the gravest first.
    pub reasons: Vec<Reason>,
    /// Who has it.
    pub uses: Vec<DeviceUse>,
    /// Of a PF.
    pub sriov: Option<Sriov>,
    /// Of a VF: its PF's address.
    pub physical_function: Option<String>,
    /// Of a VF: its index.
    pub vf_index: Option<u16>,
    /// Of a VF: its attributes.
    pub vf_attributes: Vec<VfAttribute>,
}
