//! What has to be done to the host so that a guest can start. Pure: from the file and a snapshot, no I/O.

mod adopt;
mod card;
mod device;
mod leave_out;
mod management;
mod nic;
mod pool;
#[cfg(test)]
mod tests;
mod text;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netconfig::nat::Nat;
use netconfig::{Difference, EswitchMode, LinkKind, LinkSettings, MacAddress, VfAttributes, VfState};
use serde::Serialize;
use vfio::PciAddress;
use vfio::bind::VFIO_PCI;
use vfio::inventory::Function;

pub use self::adopt::{Trait, candidate, compare, references};
pub(crate) use self::card::link_name;
pub use self::leave_out::{leave_out, path_of};
use self::management::Management;
pub(crate) use self::management::carries_the_administrator;
pub(crate) use self::text::vf_fields;
use self::text::{changes, vf_changes};
pub use self::whole::{HostPlan, Planned, release, whole};
use crate::apply::Undo;
use crate::config::{Config, GroupScope, Need, Size, Vm};
use crate::host::HostState;

/// A function, now or once its PF has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// One that is there.
    Function(PciAddress),
    /// VF `vf` of a PF: it is found when it is needed.
    Vf {
        /// The PF.
        pf: PciAddress,
        /// Its index.
        vf: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => write!(f, "{address}"),
            Self::Vf { pf, vf } => write!(f, "VF {vf} of {pf}"),
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A PF's interface is brought up: some cards reset their VFs when it comes up later.
    BringUp {
        /// The PF.
        pf: PciAddress,
        /// Its interface.
        interface: String,
    },
    /// Whether the host's own drivers take VFs as they are made.
    Autoprobe {
        /// The PF.
        pf: PciAddress,
        /// On or off.
        on: bool,
    },
    /// How many VFs there are.
    Resize {
        /// The PF.
        pf: PciAddress,
        /// Now.
        from: u16,
        /// Then.
        to: u16,
    },
    /// A VF's attributes.
    SetVf {
        /// The PF.
        pf: PciAddress,
        /// The PF's interface.
        interface: String,
        /// The VF.
        vf: u16,
        /// What it has, where that is known.
        from: Option<VfState>,
        /// What it gets.
        attributes: VfAttributes,
    },
    /// Lending to vfio-pci.
    Lend(Target),
    /// A guest's end on a network: a tap or macvtap, as long as the guest runs.
    Card {
        /// The link.
        link: String,
        /// Its settings.
        to: Box<LinkSettings>,
    },
    /// How many huge pages are set aside.
    Hugepages {
        /// Of which size.
        size: Size,
        /// Now.
        from: u64,
        /// Then.
        to: u64,
    },
    /// How a card's switch is run.
    Eswitch {
        /// The PF.
        pf: PciAddress,
        /// Now; none where the driver does not say.
        from: Option<EswitchMode>,
        /// Then.
        to: EswitchMode,
    },
    /// A link's settings.
    Link {
        /// The link.
        name: String,
        /// Now; none where it is not there.
        from: Option<Box<LinkSettings>>,
        /// Then; none where it goes.
        to: Option<Box<LinkSettings>>,
    },
    /// What makes a bridge a NAT network.
    Nat {
        /// The bridge.
        name: String,
        /// Now; none where it is none.
        from: Option<Box<Nat>>,
        /// Then.
        to: Option<Box<Nat>>,
        /// What of it is not as it was made.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        differences: Vec<Difference>,
    },
    /// Whether the box asks for an address on a link by DHCP.
    Dhcp {
        /// The link.
        link: String,
        /// Now.
        from: bool,
        /// Then.
        to: bool,
    },
    /// A card is told of guests on the bridge that its interface is a port of, so that its VFs reach them.
    Forward {
        /// The card's interface.
        link: String,
        /// The bridge.
        bridge: String,
        /// Addresses that it is not told of yet.
        macs: BTreeSet<MacAddress>,
    },
    /// Something that was changed once goes back to what it was.
    Release(Undo),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BringUp { pf, interface } => write!(f, "{pf}: bring {interface} up"),
            Self::Autoprobe { pf, on } => write!(f, "{pf}: drivers-autoprobe -> {on}"),
            Self::Resize { pf, from, to } => write!(f, "{pf}: num-vfs {from} -> {to}"),
            Self::SetVf { pf, vf, from, attributes, .. } => {
                write!(f, "{pf}: VF {vf}:{}", vf_changes(from.as_ref(), attributes))
            }
            Self::Card { link, to } => {
                let on = to.controller.as_ref().map_or(String::new(), |bridge| format!(" on {bridge}"));
                write!(f, "{link}: make {}{on}, while the guest runs", to.kind)
            }
            Self::Lend(target) => write!(f, "{target}: driver -> {VFIO_PCI}"),
            Self::Hugepages { size, from, to } => write!(f, "huge pages of {size}: {from} -> {to}"),
            Self::Eswitch { pf, from, to } => {
                let from = from.map_or("unknown".to_owned(), |from| from.to_string());
                write!(f, "{pf}: eswitch-mode {from} -> {to}")
            }
            Self::Link { name, from, to } => match (from, to) {
                (None, Some(to)) => write!(f, "{name}: make {}{}", to.kind, changes(None, to)),
                (Some(from), Some(to))
                    if std::mem::discriminant(&from.kind) == std::mem::discriminant(&to.kind) =>
                {
                    write!(f, "{name}:{}", changes(Some(from), to))
                }
                (Some(from), Some(to)) => {
                    write!(f, "{name}: {} -> {}{}", from.kind, to.kind, changes(None, to))
                }
                (_, None) => write!(f, "{name}: remove"),
            },
            Self::Nat { name, from: None, .. } => write!(f, "{name}: make it a NAT network"),
            Self::Nat { name, to: None, .. } => write!(f, "{name}: make it no NAT network"),
            Self::Nat { name, differences, .. } if !differences.is_empty() => {
                write!(f, "{name}: the NAT network's")?;
                differences.iter().enumerate().try_for_each(|(at, Difference { field, wanted, actual })| {
                    write!(f, "{} {field} {actual} -> {wanted}", if at == 0 { "" } else { "," })
                })
            }
            Self::Nat { name, .. } => write!(f, "{name}: change the NAT network"),
            Self::Dhcp { link, from, to } => {
                let on = |on: &bool| if *on { "on" } else { "off" };
                write!(f, "{link}: dhcp4 {} -> {}", on(from), on(to))
            }
            Self::Forward { link, bridge, macs } => {
                let macs: Vec<String> = macs.iter().map(|mac| format!("+{mac}")).collect();
                write!(f, "{link}: fdb {} (on {bridge}, for VFs of {link})", macs.join(" "))
            }
            Self::Release(undo) => write!(f, "{undo}"),
        }
    }
}

/// What one slot of the guest gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotPlan {
    /// The guest's name for it.
    pub name: String,
    /// Its functions, function 0 first.
    pub functions: Vec<Target>,
}

/// A virtio-net card of the guest, and its link on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Card {
    /// The guest's name for it.
    pub name: String,
    /// The link.
    pub link: String,
    /// What the link is: a tap or a macvtap.
    pub kind: LinkKind,
    /// The guest's MAC address.
    pub mac_address: MacAddress,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Pairs of queues.
    pub queues: u16,
}

/// All that is to be done, in order, and what the guest then gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// Changes of the host.
    pub steps: Vec<Step>,
    /// The guest's slots.
    pub slots: Vec<SlotPlan>,
    /// The guest's virtio-net cards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
}

/// Why it cannot be done. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// Where in the file it stands: keys from the top.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Plans the start of one guest, or says everything that is in the way.
pub fn plan(config: &Config, host: &HostState, name: &str, vm: &Vm) -> Result<Plan, Vec<Refusal>> {
    let mut planner = Planner::new(config, host, name);
    planner.memory(vm);
    if let Some((kind, key)) = wants_functions(vm) {
        planner.iommu(&["vms", name, kind, key]);
    }
    planner.pci(vm);
    planner.nics(vm);
    planner.cards(vm);
    if planner.refusals.is_empty() { Ok(planner.plan) } else { Err(planner.refusals) }
}

/// The first of a guest's devices that is a function of the host, as its keys in the file. A card on a network is none, and
/// needs no IOMMU.
fn wants_functions(vm: &Vm) -> Option<(&'static str, &str)> {
    let nic = vm.nics.iter().find(|(_, nic)| nic.network.is_none()).map(|(key, _)| ("nics", key));
    let (kind, key) = nic.or_else(|| vm.pci.keys().next().map(|key| ("pci", key)))?;
    Some((kind, key))
}

/// What would keep a function from being given to a guest now, in the words of a plan. Their paths start at the address.
pub fn may_give(config: &Config, host: &HostState, address: PciAddress, scope: GroupScope) -> Vec<Refusal> {
    let name = address.to_string();
    let mut planner = Planner::new(config, host, "");
    planner.iommu(&[&name]);
    planner.give(&[&name], address, scope);
    planner.refusals
}

/// The function that a name of the file's `devices` means.
pub fn find(config: &Config, host: &HostState, name: &str) -> Result<PciAddress, Vec<Refusal>> {
    let mut planner = Planner::new(config, host, "");
    let found = config.devices.get(name).and_then(|device| planner.find(name, device));
    found.map(|function| function.address).ok_or(planner.refusals)
}

struct Planner<'a> {
    config: &'a Config,
    host: &'a HostState,
    vm: &'a str,
    plan: Plan,
    /// What this plan gives away already.
    taken: BTreeSet<Target>,
    /// What the names of the file's devices mean, as far as it was asked for.
    found: BTreeMap<String, Option<&'a Function>>,
    refusals: Vec<Refusal>,
    /// What the administrator comes by.
    management: Management,
}

impl<'a> Planner<'a> {
    fn new(config: &'a Config, host: &'a HostState, vm: &'a str) -> Self {
        let management = Management::of(config, host);
        let (plan, taken, found) = (Plan::default(), BTreeSet::new(), BTreeMap::new());
        Self { config, host, vm, plan, taken, found, refusals: Vec::new(), management }
    }

    fn refuse(&mut self, path: &[&str], message: impl Into<String>, help: Option<&str>) {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        let refusal = Refusal { path, message: message.into(), help: help.map(str::to_owned) };
        // Two nics of one card meet the same trouble: once is enough.
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    fn memory(&mut self, vm: &Vm) {
        let memory = vm.memory.detail();
        // Huge pages are set aside already; the kernel says itself when there are too few.
        if memory.hugepages.is_none() && memory.size.0 > self.host.memory_available {
            let message = format!(
                "The guest wants {} of memory, and the host has {} MiB to give",
                memory.size,
                self.host.memory_available >> 20
            );
            self.refuse(
                &["vms", self.vm, "memory"],
                message,
                Some("give the guest less, or stop something on the host"),
            );
        }
    }

    /// `path` is the first device that a guest wants.
    fn iommu(&mut self, path: &[&str]) {
        let state = &self.host.inventory.iommu;
        if !state.is_on() && self.config.host.iommu == Need::Required {
            let help = "switch VT-d or AMD-Vi on in the firmware, and boot the host with intel_iommu=on (AMD needs no argument)";
            self.refuse(
                path,
                "This host has no IOMMU in use: a device could reach all of its memory",
                Some(help),
            );
        } else if state.interrupt_remapping == Some(false)
            && self.config.host.interrupt_remapping == Need::Required
        {
            let help = "switch interrupt remapping (often with x2APIC) on in the firmware; without it a guest can send any interrupt to the host";
            self.refuse(path, "This host's IOMMU does not remap interrupts", Some(help));
        }
    }
}
