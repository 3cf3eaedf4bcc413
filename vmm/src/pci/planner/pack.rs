//! Packing BARs into windows, and windows into the free ranges.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use super::Free;
use crate::pci::Devfn;

/// Whose window a BAR lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A root port's.
    Port(Devfn),
    /// None: the function is on bus 0.
    Function(Devfn),
}

/// A BAR: the function's index in the request and the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: (usize, u8),
    pub(super) owner: Owner,
    /// A power of two.
    pub(super) size: u64,
    /// It has 64 bits and may go above 4 GiB.
    pub(super) movable: bool,
}

/// BARs that lie side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    owner: Owner,
    /// The largest first; each lies next to the one before, upwards or downwards.
    pub(super) items: Vec<Item>,
    /// A power of two.
    alignment: u64,
    /// `None` when it is more than 64 bits hold.
    size: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Placements {
    pub(super) items: BTreeMap<(usize, u8), u64>,
    pub(super) blocks: BTreeMap<Owner, Range<u64>>,
}

/// One block for each owner, and for each of `ports`, of `least` bytes or more where it is a port's.
pub(super) fn blocks(
    items: impl Iterator<Item = Item>,
    granule: u64,
    least: u64,
    ports: &[Devfn],
) -> Vec<Block> {
    let empty = ports.iter().map(|port| (Owner::Port(*port), Vec::new()));
    let mut owners: BTreeMap<Owner, Vec<Item>> = empty.collect();
    for item in items {
        owners.entry(item.owner).or_default().push(item);
    }
    let block = |(owner, mut items): (Owner, Vec<Item>)| {
        items.sort_by_key(|item| (Reverse(item.size), item.key));
        let (granule, least) = if matches!(owner, Owner::Port(_)) { (granule, least) } else { (1, 0) };
        let alignment = items.first().map_or(granule, |item| item.size.max(granule));
        let sum = items.iter().try_fold(0_u64, |sum, item| sum.checked_add(item.size));
        let size = sum.and_then(|sum| sum.max(least).checked_next_multiple_of(granule));
        Block { owner, items, alignment, size }
    };
    owners.into_iter().map(block).collect()
}

/// Places blocks, the most aligned and the largest first. Those that fit are in the answer, and the first that does not.
pub(super) fn place(mut blocks: Vec<Block>, free: &mut Free) -> (Placements, Option<Block>) {
    blocks.sort_by_key(|block| (Reverse(block.alignment), Reverse(block.size), block.owner));
    let (mut placed, mut failed) = (Placements::default(), None);
    for block in blocks {
        let range = block.size.and_then(|size| free.take(size, block.alignment));
        let Some((range, mirrored)) = range else {
            failed = failed.or(Some(block));
            continue;
        };
        let mut edge = if mirrored { range.end } else { range.start };
        for item in &block.items {
            let next = if mirrored { edge.saturating_sub(item.size) } else { edge.saturating_add(item.size) };
            placed.items.insert(item.key, edge.min(next));
            edge = next;
        }
        placed.blocks.insert(block.owner, range);
    }
    (placed, failed)
}
