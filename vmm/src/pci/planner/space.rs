//! Where BARs may be: what guest RAM, the processor and the IOMMU leave.

use std::ops::{Range, RangeInclusive};

use crate::layout;

/// What limits the addresses of BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// One past the last guest RAM, wherever that is.
    pub ram_end: u64,
    /// The guest's physical address width in bits (CPUID 0x80000008, EAX 7:0).
    pub phys_bits: u8,
    /// What the IOMMU can map (`IoAddressSpace::iova_ranges`): BARs of other functions are DMA targets too. `None`
    /// without an IOMMU.
    pub iova: Option<Vec<RangeInclusive<u64>>>,
}

/// The windows of the whole hierarchy, as the host bridge's `_CRS` offers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB.
    pub mmio32: Range<u64>,
    /// Above guest RAM, where there is room at all.
    pub mmio64: Option<Range<u64>>,
    /// I/O ports.
    pub pio: Range<u16>,
}

/// What KVM can map with four levels of page tables.
const MOST_PHYS_BITS: u8 = 48;
/// From this width on there is a hole for HyperTransport (AMD IOMMU specification 48882, 2.1.2).
const HYPERTRANSPORT_BITS: u8 = 40;
/// The 64-bit window begins at a multiple of this.
const START_ALIGNMENT: u64 = 1 << 30;

impl Space {
    pub(super) fn mmio32_window(&self) -> Range<u64> {
        layout::MMIO32_START..layout::MMIO32_END
    }

    /// What of the 32-bit window may be used, ascending.
    pub(super) fn mmio32(&self) -> Vec<Range<u64>> {
        self.reachable(self.mmio32_window())
    }

    /// Ranges above 4 GiB and guest RAM, ascending.
    pub(crate) fn mmio64(&self) -> Vec<Range<u64>> {
        let bits = self.phys_bits.min(MOST_PHYS_BITS);
        let end = 1_u64.checked_shl(bits.into()).unwrap_or(0);
        let start = self.ram_end.max(layout::HIGH_RAM_START).checked_next_multiple_of(START_ALIGNMENT);
        let Some(all) = start.map(|start| start..end).filter(|all| all.start < all.end) else {
            return Vec::new();
        };
        if self.phys_bits < HYPERTRANSPORT_BITS {
            return self.reachable(all);
        }
        let hole = layout::HYPERTRANSPORT_HOLE;
        let below = all.start..all.end.min(hole.start);
        let above = all.start.max(hole.end)..all.end;
        [below, above].into_iter().flat_map(|range| self.reachable(range)).collect()
    }

    pub(super) fn io(&self) -> Range<u64> {
        layout::PIO_WINDOW.start.into()..layout::PIO_WINDOW.end.into()
    }

    /// The parts of a range that the IOMMU can map.
    fn reachable(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let Some(iova) = &self.iova else {
            return Some(range).into_iter().filter(|range| !range.is_empty()).collect();
        };
        let mut parts: Vec<_> = iova
            .iter()
            .map(|part| range.start.max(*part.start())..range.end.min(part.end().saturating_add(1)))
            .filter(|part| part.start < part.end)
            .collect();
        parts.sort_unstable_by_key(|part| part.start);
        parts
    }
}

/// Ranges that are free still.
pub(super) struct Free(Vec<Range<u64>>);

impl Free {
    pub(super) fn new(ranges: Vec<Range<u64>>) -> Self {
        Self(ranges)
    }

    /// Takes `size` bytes that begin or end at a multiple of `alignment` (a power of two), whichever ends lower, in the
    /// first range that has them. True for those that end so.
    ///
    /// Two blocks of 256 GiB and a little then need no alignment gap between them: one has its little part in front.
    pub(super) fn take(&mut self, size: u64, alignment: u64) -> Option<(Range<u64>, bool)> {
        let fit = |range: &Range<u64>| {
            let start = range.start.checked_next_multiple_of(alignment);
            let forward = start.and_then(|start| Some(start..start.checked_add(size)?));
            let end = range.start.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
            let backward = end.and_then(|end| Some(end.checked_sub(size)?..end));
            [(forward, false), (backward, true)]
                .into_iter()
                .filter_map(|(taken, mirrored)| {
                    Some((taken.filter(|taken| taken.end <= range.end)?, mirrored))
                })
                .min_by_key(|(taken, mirrored)| (taken.end, *mirrored))
        };
        let (index, (taken, mirrored)) =
            self.0.iter().enumerate().find_map(|(index, range)| Some((index, fit(range)?)))?;
        let whole = self.0.remove(index);
        let rest = [whole.start..taken.start, taken.end..whole.end];
        self.0.splice(index..index, rest.into_iter().filter(|range| range.start < range.end));
        Some((taken, mirrored))
    }
}
