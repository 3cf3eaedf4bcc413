//! The BAR planner: an address for each BAR, windows and bus numbers for each root port.
//!
//! A pure function, so that it can be run dry before a guest boots. [`Plan::program`] then writes the outcome into the
//! hierarchy as firmware would.
//!
//! How it places: the BARs behind one port lie side by side in the port's windows, the largest first, so that each is
//! aligned to its size and none leaves a gap; the ports' windows go first-fit, the most aligned first. 64-bit prefetchable
//! BARs go above 4 GiB. All others go below, as the other window of a bridge has 32 bits only; when they do not fit, the
//! largest 64-bit ones go to the prefetchable window, which PCIe permits (PCIe 7.5.1.2.1, implementation note).

mod pack;
mod program;
mod space;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

pub use space::{Space, Windows};

use super::{BarKind, BarSpec, Devfn, Place, Root};
use pack::{Block, Item, Owner, Placements};
use space::Free;

/// A bridge's memory windows come in these steps (PCIe 7.5.1.3.8).
const MEMORY_GRANULE: u64 = 1 << 20;
/// A bridge's I/O windows come in these steps (PCIe 7.5.1.3.6).
const IO_GRANULE: u64 = 1 << 12;
/// Each memory BAR gets pages of its own, so that it can be mapped into the guest.
const PAGE: u64 = 1 << 12;

/// What wants a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where it may be.
    pub space: Space,
    /// Root ports, with something behind them or not.
    pub ports: Vec<Devfn>,
    /// Functions with base address registers.
    pub functions: Vec<Function>,
    /// What each port's windows hold at least, where there is room for all: what is plugged in later must fit.
    pub spare: Spare,
}

/// Sizes of windows in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// Below 4 GiB.
    pub memory: u64,
    /// Above 4 GiB.
    pub prefetchable: u64,
}

impl Spare {
    /// What Linux and UEFI firmware set aside below 4 GiB for an empty slot; above, where there is plenty, more.
    pub const USUAL: Self = Self { memory: 2 << 20, prefetchable: 64 << 20 };
}

impl Request {
    /// All that a hierarchy has.
    pub fn of(root: &Root, space: Space) -> Self {
        let (mut ports, mut functions) = (Vec::new(), Vec::new());
        for (place, device) in root.devices() {
            if let (Place::Root(port), Some(_)) = (place, device.bridge_buses()) {
                ports.push(port);
            }
            functions.push(Function { place, label: device.label().into(), bars: device.bars() });
        }
        Self { space, ports, functions, spare: Spare::default() }
    }
}

/// A function with base address registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it sits.
    pub place: Place,
    /// For errors: `0000:65:10.2`.
    pub label: String,
    /// Its base address registers.
    pub bars: Vec<BarSpec>,
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The windows of the whole hierarchy, for the host bridge's `_CRS`.
    pub windows: Windows,
    /// Each root port, by device number.
    pub bridges: Vec<Bridge>,
    /// Each BAR, by place and index.
    pub bars: Vec<Placed>,
}

impl Plan {
    /// I/O BARs that are left without an address: the few I/O windows are taken. A PCIe function works without them
    /// (PCIe 1.3.2.2), so this is no error.
    pub fn unplaced(&self) -> impl Iterator<Item = &Placed> {
        self.bars.iter().filter(|placed| placed.address.is_none())
    }
}

/// A root port's numbers and windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The port.
    pub port: Devfn,
    /// Its secondary bus, and the subordinate one: there are no switches.
    pub bus: u8,
    /// Its I/O window, in steps of 4 KiB.
    pub io: Option<Range<u64>>,
    /// Its memory window below 4 GiB, in steps of 1 MiB.
    pub memory: Option<Range<u64>>,
    /// Its prefetchable window, in steps of 1 MiB.
    pub prefetchable: Option<Range<u64>>,
}

/// A BAR and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The function.
    pub place: Place,
    /// The function's label.
    pub label: String,
    /// The register.
    pub bar: BarSpec,
    /// Its first address or port; none for an I/O BAR that found no room.
    pub address: Option<u64>,
}

/// There is no way to place everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A BAR does not fit.
    #[error(
        "BAR {index} of {label} ({}) finds no place in {room}; give the guest less memory or fewer devices",
        Size(*size)
    )]
    NoRoom {
        /// The function.
        label: String,
        /// The register.
        index: u8,
        /// Its size in bytes.
        size: u64,
        /// Where it was to go.
        room: Room,
    },
    /// A BAR that cannot be, as a broken device may have it.
    #[error("BAR {index} of {label} has {size:#x} bytes, which is no power of two")]
    Malformed {
        /// The function.
        label: String,
        /// The register.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// Bus numbers are used up.
    #[error("{0} root ports are too many: there are 255 bus numbers for them")]
    Buses(usize),
}

/// An address space that was too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// Below 4 GiB.
    Memory32(Range<u64>),
    /// Above guest RAM.
    Memory64 {
        /// What the processor and the IOMMU leave.
        ranges: Vec<Range<u64>>,
        /// The width of guest physical addresses, in bits.
        phys_bits: u8,
    },
}

impl fmt::Display for Room {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory32(range) => {
                write!(out, "the 32-bit window {:#x} to {:#x} beside the others", range.start, range.end)
            }
            Self::Memory64 { ranges, phys_bits } if ranges.is_empty() => {
                write!(
                    out,
                    "64-bit addresses: guest memory reaches to where those of processor ({phys_bits} bits) and IOMMU end"
                )
            }
            Self::Memory64 { ranges, phys_bits } => {
                write!(out, "the 64-bit addresses that guest memory, processor and IOMMU leave (")?;
                for (index, range) in ranges.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(out, "{comma}{:#x} to {:#x}", range.start, range.end)?;
                }
                write!(out, "; this host maps {phys_bits} bits of a guest's addresses)")
            }
        }
    }
}

/// Bytes, for a person.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(out, "{} {unit}", self.0 >> shift),
            None => write!(out, "{} bytes", self.0),
        }
    }
}

/// Which of the three kinds of window a BAR goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Io,
    Memory,
    Prefetchable,
}

/// Finds a place for everything, the same for the same request always.
pub fn plan(request: &Request) -> Result<Plan, PlanError> {
    if request.spare == Spare::default() {
        return plan_exactly(request);
    }
    plan_exactly(request).or_else(|_| plan_exactly(&Request { spare: Spare::default(), ..request.clone() }))
}

fn plan_exactly(request: &Request) -> Result<Plan, PlanError> {
    let mut ports = request.ports.clone();
    ports.sort_unstable();
    ports.dedup();
    let mut functions: Vec<&Function> = request.functions.iter().collect();
    functions.sort_by_key(|function| function.place);
    for function in &functions {
        refuse_malformed(function)?;
    }

    let high = request.space.mmio64();
    let mut items = items(&functions, !high.is_empty());
    let io = pack::place(blocks(request, &items, Kind::Io), &mut Free::new(vec![request.space.io()])).0;
    let memory = place_memory(request, &functions, &mut items)?;
    let (prefetchable, mmio64) = place_prefetchable(request, &functions, &items, high)?;

    let mut bridges = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let bus = u8::try_from(index + 1).map_err(|_| PlanError::Buses(ports.len()))?;
        let window = |placed: &Placements| placed.blocks.get(&Owner::Port(*port)).cloned();
        bridges.push(Bridge {
            port: *port,
            bus,
            io: window(&io),
            memory: window(&memory),
            prefetchable: window(&prefetchable),
        });
    }
    let address = |key: &(usize, u8)| {
        [&io, &memory, &prefetchable].into_iter().find_map(|placed| placed.items.get(key).copied())
    };
    let mut bars = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        for bar in &function.bars {
            let (place, label) = (function.place, function.label.clone());
            bars.push(Placed { place, label, bar: *bar, address: address(&(index, bar.index)) });
        }
    }
    bars.sort_by_key(|placed| (placed.place, placed.bar.index));
    let windows = Windows { mmio32: request.space.mmio32_window(), mmio64, pio: crate::layout::PIO_WINDOW };
    Ok(Plan { windows, bridges, bars })
}

fn refuse_malformed(function: &Function) -> Result<(), PlanError> {
    match function.bars.iter().find(|bar| !bar.size.is_power_of_two() || bar.size > 1 << 62) {
        Some(bar) => {
            Err(PlanError::Malformed { label: function.label.clone(), index: bar.index, size: bar.size })
        }
        None => Ok(()),
    }
}

/// Every BAR with the kind of window it goes to first.
fn items(functions: &[&Function], has_high: bool) -> BTreeMap<(usize, u8), (Kind, Item)> {
    let mut items = BTreeMap::new();
    for (index, function) in functions.iter().enumerate() {
        let owner = match function.place {
            Place::Root(devfn) => Owner::Function(devfn),
            Place::Behind { port, .. } => Owner::Port(port),
        };
        for bar in &function.bars {
            let key = (index, bar.index);
            let (kind, size) = match bar.kind {
                BarKind::Io => (Kind::Io, bar.size),
                BarKind::Memory64 { prefetchable: true } if has_high => {
                    (Kind::Prefetchable, bar.size.max(PAGE))
                }
                _ => (Kind::Memory, bar.size.max(PAGE)),
            };
            let movable = has_high && matches!(bar.kind, BarKind::Memory64 { .. });
            items.insert(key, (kind, Item { key, owner, size, movable }));
        }
    }
    items
}

fn blocks(request: &Request, items: &BTreeMap<(usize, u8), (Kind, Item)>, kind: Kind) -> Vec<Block> {
    let (granule, least) = match kind {
        Kind::Io => (IO_GRANULE, 0),
        Kind::Memory => (MEMORY_GRANULE, request.spare.memory),
        Kind::Prefetchable => (MEMORY_GRANULE, request.spare.prefetchable),
    };
    let mine = items.values().filter(|(other, _)| *other == kind).map(|(_, item)| *item);
    let ports: &[Devfn] = if least > 0 { &request.ports } else { &[] };
    pack::blocks(mine, granule, least, ports)
}

/// Places what goes below 4 GiB; what does not fit and may, is made to go above.
fn place_memory(
    request: &Request,
    functions: &[&Function],
    items: &mut BTreeMap<(usize, u8), (Kind, Item)>,
) -> Result<Placements, PlanError> {
    loop {
        let mut free = Free::new(request.space.mmio32());
        let (placed, failed) = pack::place(blocks(request, items, Kind::Memory), &mut free);
        let Some(failed) = failed else { return Ok(placed) };
        let largest = items
            .values_mut()
            .filter(|(kind, item)| *kind == Kind::Memory && item.movable)
            .max_by_key(|(_, item)| (item.size, std::cmp::Reverse(item.key)));
        match largest {
            Some((kind, _)) => *kind = Kind::Prefetchable,
            None => return Err(no_room(functions, &failed, Room::Memory32(request.space.mmio32_window()))),
        }
    }
}

/// Places what goes above 4 GiB, in the first range that has room for all; the answer holds that range.
fn place_prefetchable(
    request: &Request,
    functions: &[&Function],
    items: &BTreeMap<(usize, u8), (Kind, Item)>,
    ranges: Vec<Range<u64>>,
) -> Result<(Placements, Option<Range<u64>>), PlanError> {
    let mut failure = None;
    for range in &ranges {
        let mut free = Free::new(vec![range.clone()]);
        let (placed, failed) = pack::place(blocks(request, items, Kind::Prefetchable), &mut free);
        match failed {
            None => return Ok((placed, Some(range.clone()))),
            Some(failed) => failure = Some(failed),
        }
    }
    match failure {
        Some(failed) => {
            let room = Room::Memory64 { ranges, phys_bits: request.space.phys_bits };
            Err(no_room(functions, &failed, room))
        }
        None => Ok((Placements::default(), None)),
    }
}

/// Names the largest BAR of the block that found no room.
fn no_room(functions: &[&Function], failed: &Block, room: Room) -> PlanError {
    let largest = failed.items.first().map_or((0, 0), |item| item.key);
    let function = functions.get(largest.0);
    let bar = function.and_then(|function| function.bars.iter().find(|bar| bar.index == largest.1));
    PlanError::NoRoom {
        label: function.map(|function| function.label.clone()).unwrap_or_default(),
        index: largest.1,
        size: bar.map_or(0, |bar| bar.size),
        room,
    }
}
