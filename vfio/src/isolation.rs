//! What keeps functions apart, or fails to: Access Control Services on the way from the root (PCI Express Base 6.0, 6.12).
//!
//! The kernel decides what shares an IOMMU group (`pci_device_group` and `pci_acs_enabled` in its sources). Here its reason is
//! found again, so that a person can be told which bridge it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;
use crate::{PciAddress, Sysfs};

/// What a function is on its link (PCI Express Base 6.0, 7.5.3.2, Device/Port Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An endpoint behind a port.
    Endpoint,
    /// An endpoint inside the root complex.
    IntegratedEndpoint,
    /// A port of the root complex.
    RootPort,
    /// A switch's port towards the root.
    UpstreamPort,
    /// A switch's port away from the root.
    DownstreamPort,
    /// A bridge to a conventional PCI bus: what is behind it uses its requester ID.
    ConventionalBridge,
    /// A conventional function, or a kind that isolates nothing.
    Other,
}

/// What config space says about one function's part in isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Isolation {
    /// What it is.
    pub kind: Kind,
    /// Its slot has several functions.
    pub multifunction: bool,
    /// ACS capability and control register, where it has them (7.7.11).
    pub acs: Option<Acs>,
}

/// The two registers of ACS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Acs {
    /// What it can do.
    pub capability: u16,
    /// What is switched on.
    pub control: u16,
}

/// ID of Access Control Services.
const ACS: u32 = 0x0d;

/// Source validation, request redirection, completion redirection, upstream forwarding: what the kernel asks for before it parts
/// groups (REQ_ACS_FLAGS).
const NEEDED: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// How a function lets others through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gap {
    /// It has no ACS at all.
    Absent,
    /// It has, but not all that is needed is switched on.
    Off,
    /// It is a bridge to a conventional bus, which cannot.
    Conventional,
}

impl Isolation {
    /// Reads it from config space. None where the function is gone, or for a process that may read only the first 64 bytes.
    pub fn read(sysfs: &Sysfs, address: PciAddress) -> Option<Self> {
        let folder = sysfs.device(address);
        let config = File::open(folder.join("config")).ok()?;
        let mut found = Self::parse(|at, data| config.read_exact_at(data, at).ok())?;
        // Only function 0 must say so (PCI Local Bus 3.0, 6.2.1). A VF's number says nothing: it is a device of its own.
        found.multifunction |= address.function > 0 && !folder.join("physfn").is_symlink();
        Some(found)
    }

    /// `bytes` fills its second argument from an offset into config space, in bytes.
    fn parse(bytes: impl Fn(u64, &mut [u8]) -> Option<()>) -> Option<Self> {
        let byte = |at: u64| {
            let mut data = [0];
            bytes(at, &mut data).map(|()| data[0])
        };
        let word = |at: u64| {
            let mut data = [0; 2];
            bytes(at, &mut data).map(|()| u16::from_le_bytes(data))
        };
        let multifunction = byte(0x0e)? & 0x80 != 0;
        let Some(express) = capability(&byte, word(0x06)?)? else {
            return Some(Self { kind: Kind::Other, multifunction, acs: None });
        };
        let kind = match word(express.checked_add(2)?)? >> 4 & 0xf {
            0 | 1 => Kind::Endpoint,
            4 => Kind::RootPort,
            5 => Kind::UpstreamPort,
            6 => Kind::DownstreamPort,
            7 => Kind::ConventionalBridge,
            9 => Kind::IntegratedEndpoint,
            _ => Kind::Other,
        };
        let double = |at: u64| {
            let mut data = [0; 4];
            bytes(at, &mut data).map(|()| u32::from_le_bytes(data))
        };
        let acs = extended(&double, ACS).and_then(|at| {
            Some(Acs { capability: word(at.checked_add(4)?)?, control: word(at.checked_add(6)?)? })
        });
        Some(Self { kind, multifunction, acs })
    }

    /// A port or a bridge: what is below it goes through it.
    pub fn is_port(&self) -> bool {
        matches!(
            self.kind,
            Kind::RootPort | Kind::UpstreamPort | Kind::DownstreamPort | Kind::ConventionalBridge
        )
    }

    /// How it lets others through; none where it keeps them apart, or has nothing to keep apart.
    pub fn gap(&self) -> Option<Gap> {
        match self.kind {
            Kind::ConventionalBridge => Some(Gap::Conventional),
            Kind::RootPort | Kind::DownstreamPort => self.acs_gap(),
            _ if self.multifunction => self.acs_gap(),
            _ => None,
        }
    }

    /// A control that is not implemented is not needed.
    fn acs_gap(&self) -> Option<Gap> {
        match self.acs {
            None => Some(Gap::Absent),
            Some(acs) if !acs.control & acs.capability & NEEDED != 0 => Some(Gap::Off),
            Some(_) => None,
        }
    }
}

/// Where the PCI Express capability is. The outer none: config space cannot be read that far.
fn capability(byte: &impl Fn(u64) -> Option<u8>, status: u16) -> Option<Option<u64>> {
    if status & 1 << 4 == 0 {
        return Some(None);
    }
    let mut at = byte(0x34)? & !3;
    // No chain is longer than there is room for.
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        let here = u64::from(at);
        if byte(here)? == 0x10 {
            return Some(Some(here));
        }
        at = byte(here + 1)? & !3;
    }
    Some(None)
}

/// Where the extended capability `id` is (7.6.3).
pub(crate) fn extended(double: &impl Fn(u64) -> Option<u32>, id: u32) -> Option<u64> {
    let mut at = 0x100;
    for _ in 0..480 {
        let header = double(at)?;
        if header & 0xffff == id {
            return Some(at);
        }
        at = u64::from(header >> 20) & !3;
        if header == u32::MAX || at < 0x100 {
            return None;
        }
    }
    None
}

/// Why functions share a group with the one that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A port lets them reach each other.
    Port {
        /// The port.
        port: PciAddress,
        /// How.
        gap: Gap,
    },
    /// They are functions of one device that does not keep its functions apart. Named by its first function.
    Functions(PciAddress),
    /// Config space, all of which was read, does not show it: the kernel knows something about one of these devices (a quirk, such
    /// as one that sends with the requester ID of another).
    Kernel,
    /// Config space could not be read.
    Unknown,
}

/// What keeps nothing apart on the way to a function by its registers, though the kernel has parted the groups there: ports that
/// the function does not share a group with, and other functions of its device.
///
/// The kernel has its reasons: it knows that a device keeps apart without ACS, or has it in a way of its own
/// (`pci_dev_acs_enabled` in its quirks), or it was told to believe so (`pcie_acs_override`, which no released kernel has).
pub fn parted_although(
    inventory: &Inventory,
    isolation: &BTreeMap<PciAddress, Isolation>,
    address: PciAddress,
) -> Vec<Cause> {
    let group = |address: PciAddress| inventory.function(address).and_then(|function| function.iommu_group);
    let apart = |one: PciAddress, other: PciAddress| {
        group(one).zip(group(other)).is_some_and(|(one, other)| one != other)
    };
    let gap = |address: PciAddress| isolation.get(&address).and_then(|it| Some((it, it.gap()?)));
    let chain = from_root(inventory, address);
    let above = chain.split_last().map_or(&[][..], |(_, above)| above);
    let mut found = Vec::new();
    // What any port on the way lets through joins the port right above (the walk upstream in `pci_device_group`).
    if above.last().is_some_and(|port| apart(*port, address)) {
        let open = above.iter().filter_map(|port| {
            let (it, gap) = gap(*port)?;
            it.is_port().then_some(Cause::Port { port: *port, gap })
        });
        found.extend(open);
    }
    let open = |one: PciAddress| gap(one).is_some_and(|(it, _)| it.multifunction && !it.is_port());
    let beside = |other: &PciAddress| {
        let slot = |it: PciAddress| (it.domain, it.bus, it.device);
        slot(*other) == slot(address) && *other != address && open(*other) && apart(*other, address)
    };
    if open(address) && isolation.keys().any(beside) {
        found.push(Cause::Functions(PciAddress { function: 0, ..address }));
    }
    found
}

/// The causes, each with the functions it joins to `address`. Empty for a function that has its group for itself.
pub fn causes(
    inventory: &Inventory,
    isolation: &BTreeMap<PciAddress, Isolation>,
    address: PciAddress,
) -> BTreeMap<Cause, Vec<PciAddress>> {
    let mut found = BTreeMap::<Cause, Vec<PciAddress>>::new();
    let chain = from_root(inventory, address);
    let members = inventory.group_of(address).into_iter().flat_map(|group| &group.members);
    for member in members.map(|member| member.address).filter(|member| *member != address) {
        for cause in between(isolation, &chain, &from_root(inventory, member)) {
            found.entry(cause).or_default().push(member);
        }
    }
    found
}

/// The bridges on the way to a function, the function itself last.
pub fn from_root(inventory: &Inventory, address: PciAddress) -> Vec<PciAddress> {
    let mut chain = vec![address];
    let mut at = address;
    // Bounded: a tree has no loops, a damaged recording may.
    while let Some(parent) = inventory.function(at).and_then(|function| function.parent)
        && !chain.contains(&parent)
    {
        chain.push(parent);
        at = parent;
    }
    chain.reverse();
    chain
}

fn between(
    isolation: &BTreeMap<PciAddress, Isolation>,
    one: &[PciAddress],
    other: &[PciAddress],
) -> Vec<Cause> {
    let common = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let port = |address: &PciAddress| {
        let it = isolation.get(address).filter(|it| it.is_port())?;
        Some(Cause::Port { port: *address, gap: it.gap()? })
    };
    let (shared, below) = one.split_at(common);
    let beside = other.get(common..).unwrap_or(&[]);
    let mut causes: Vec<Cause> = below.iter().chain(beside).filter_map(port).collect();
    // One of them is a bridge above the other: it is itself what should keep them apart.
    if below.is_empty() || beside.is_empty() {
        causes.extend(shared.last().and_then(port));
    }
    if let (Some(a), Some(b)) = (below.first(), beside.first())
        && (a.domain, a.bus, a.device) == (b.domain, b.bus, b.device)
        && [a, b].iter().all(|end| isolation.get(end).is_some_and(|it| !it.is_port() && it.gap().is_some()))
    {
        causes.push(Cause::Functions(PciAddress { function: 0, ..*a }));
    }
    // What joins both with the same port joins them with each other, whatever else does.
    let above = shared.iter().rev().find_map(port);
    causes.extend(above.filter(|above| !causes.contains(above)));
    if causes.is_empty() {
        let all_read = one.iter().chain(other).all(|step| isolation.contains_key(step));
        causes.push(if all_read { Cause::Kernel } else { Cause::Unknown });
    }
    causes
}

#[cfg(test)]
mod tests;
