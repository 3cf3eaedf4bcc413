//! The memory map that both boot protocols hand to the kernel (ACPI 6.5, 15, "System Address Map Interfaces").

use crate::layout;

/// End of conventional memory: the last KiB below 640 KiB is the extended BIOS data area's on a PC.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Where extended memory starts.
const EXTENDED_START: u64 = 0x10_0000;

/// What a range of the map is; the numbers are those of E820 and of PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not RAM to be used: firmware areas (ACPI tables among them) and ECAM.
    Reserved = 2,
}

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First guest physical address.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// The map of a machine with `ram_size` bytes of RAM: ascending, without overlaps.
///
/// ECAM is in it because Linux trusts MCFG only where the range is reserved here or by an ACPI device.
pub fn map(ram_size: u64) -> Vec<Range> {
    let low_end = ram_size.min(layout::LOW_RAM_END);
    let ranges = [
        (0, CONVENTIONAL_END.min(low_end), Kind::Ram),
        (CONVENTIONAL_END, EXTENDED_START, Kind::Reserved),
        (EXTENDED_START, low_end, Kind::Ram),
        (layout::ECAM_START, layout::ECAM_START + layout::ECAM_SIZE, Kind::Reserved),
        (layout::HIGH_RAM_START, layout::HIGH_RAM_START.saturating_add(ram_size - low_end), Kind::Ram),
    ];
    ranges
        .into_iter()
        .filter(|(start, end, _)| start < end)
        .map(|(start, end, kind)| Range { start, size: end - start, kind })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ram_beyond_two_gib_goes_on_at_four() {
        let ram: Vec<_> =
            map(3 << 30).into_iter().filter(|r| r.kind == Kind::Ram).map(|r| (r.start, r.size)).collect();
        assert_eq!(ram, [(0, 0x9_fc00), (0x10_0000, (2 << 30) - 0x10_0000), (4 << 30, 1 << 30)]);
    }

    proptest! {
        #[test]
        fn it_ascends_and_names_all_ram_but_the_firmware_area(size in 0x10_0000_u64..1 << 50) {
            let map = map(size);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let ram: u64 = map.iter().filter(|r| r.kind == Kind::Ram).map(|r| r.size).sum();
            prop_assert_eq!(ram, size - (EXTENDED_START - CONVENTIONAL_END));
            prop_assert!(map.iter().any(|r| r.start == layout::ECAM_START && r.kind == Kind::Reserved));
        }
    }
}
