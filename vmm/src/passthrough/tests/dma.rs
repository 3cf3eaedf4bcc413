//! Guest RAM for devices.

use vfio::PciFunction;
use vfio::fake::{Call, Fake};

use super::super::{Error, map_guest_ram};
use crate::memory::GuestRam;
use crate::spec::MemorySpec;

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&MemorySpec { size, hugepages: None, prefault: false }).unwrap()
}

#[test]
fn all_of_it_is_mapped_in_whole_gibibytes_and_taken_back() {
    let fake = Fake::new();
    let memory = ram((3 << 30) + (1 << 20));
    map_guest_ram(&memory, &[fake.address_space()]).unwrap();
    let (gib, mib) = (1 << 30, 1 << 20);
    let pieces = [(0, gib), (gib, gib), (4 * gib, gib), (5 * gib, mib)];
    assert_eq!(fake.calls(), pieces.map(|(at, size)| Call::DmaMap(at, size)));
    drop(memory);
    assert_eq!(fake.calls(), pieces.map(|(at, size)| Call::DmaUnmap(at, size)));
}

#[test]
fn addresses_that_the_iommu_does_not_take_are_named() {
    let fake = Fake::new().iova(&[0..=0xfedf_ffff, 0xfef0_0000..=0xfc_ffff_ffff]);
    let fits = ram(3 << 30);
    map_guest_ram(&fits, &[fake.address_space()]).unwrap();
    fake.calls();
    fake.space().allow(&[0..=0xfedf_ffff]);
    let error = map_guest_ram(&fits, &[fake.address_space()]).unwrap_err();
    assert!(matches!(error, Error::Iova { .. }));
    let text = error.to_string();
    assert!(text.contains("0x100000000-0x13fffffff") && text.contains("0x0-0xfedfffff"), "{text}");
    assert_eq!(fake.calls(), [], "nothing is mapped before the check");
}
