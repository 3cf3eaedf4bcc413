use proptest::prelude::*;

use super::*;
use crate::Action;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x1533,
    revision: 3,
    class: 0x02_0000,
    subsystem: Some((0x1af4, 0x1100)),
};

fn endpoint(bars: &[BarSpec]) -> ConfigSpace {
    let mut space = ConfigSpace::new(Header::Endpoint, IDENTITY);
    for bar in bars {
        space.add_bar(*bar).unwrap();
    }
    space
}

fn bar(index: u8, kind: BarKind, size: u64) -> BarSpec {
    BarSpec { index, kind, size }
}

const MEMORY64: BarKind = BarKind::Memory64 { prefetchable: true };
const MEMORY32: BarKind = BarKind::Memory32 { prefetchable: false };

#[test]
fn the_header_says_who_the_function_is() {
    let space = endpoint(&[]);
    assert_eq!(space.u32(0x00), 0x1533_8086);
    assert_eq!(space.u32(0x08), 0x0200_0003);
    assert_eq!(space.u32(0x2c), 0x1100_1af4);
    assert_eq!(space.u8(0x0e), 0);
    assert_eq!(ConfigSpace::new(Header::Bridge, IDENTITY).u8(0x0e), 1);
}

#[test]
fn sizing_a_bar_gives_its_size_and_type() {
    let mut space = endpoint(&[
        bar(0, MEMORY64, 256 << 30),
        bar(2, MEMORY32, 0x4000),
        bar(3, BarKind::Io, 0x20),
        bar(6, MEMORY32, 0x1_0000),
    ]);
    for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        let _ = space.write(register, &[0xff; 4]);
    }
    assert_eq!(space.u32(0x10), 0x0000_000c);
    assert_eq!(space.u32(0x14), 0xffff_ffc0);
    assert_eq!(space.u32(0x18), 0xffff_c000);
    assert_eq!(space.u32(0x1c), 0xffff_ffe1);
    assert_eq!((space.u32(0x20), space.u32(0x24)), (0, 0));
    assert_eq!(space.u32(0x30), 0xffff_0001);
    assert_eq!(space.windows(), []);
}

#[test]
fn a_bar_decodes_when_it_has_an_address_and_the_command_register_says_so() {
    let mut space = endpoint(&[bar(0, MEMORY64, 0x1000), bar(2, BarKind::Io, 0x20)]);
    assert_eq!(space.write(0x10, &0xc000_0000_u32.to_le_bytes()), ConfigEffect::default());
    let _ = space.write(0x14, &[1, 0, 0, 0]);
    let _ = space.write(0x18, &0xc000_u32.to_le_bytes());
    assert_eq!(space.windows(), []);
    assert!(space.write(0x04, &[2]).windows);
    let memory = Window { bar: 0, io: false, base: 0x1_c000_0000, size: 0x1000 };
    assert_eq!(space.windows(), [memory]);
    assert!(space.write(0x04, &[3]).windows);
    let io = Window { bar: 2, io: true, base: 0xc000, size: 0x20 };
    assert_eq!(space.windows(), [memory, io]);
    assert!(!space.write(0x04, &[3, 4]).windows);
}

#[test]
fn the_rom_needs_its_own_enable_bit() {
    let mut space = endpoint(&[bar(6, MEMORY32, 0x1_0000)]);
    let _ = space.write(0x04, &[2]);
    assert!(!space.write(0x30, &0x9000_0000_u32.to_le_bytes()).windows);
    assert!(space.write(0x30, &[1]).windows);
    assert_eq!(space.windows(), [Window { bar: 6, io: false, base: 0x9000_0000, size: 0x1_0000 }]);
}

#[test]
fn bars_that_cannot_be_are_refused() {
    for bad in [
        bar(0, MEMORY32, 0x3000),
        bar(0, MEMORY32, 0),
        bar(0, MEMORY32, 8),
        bar(0, MEMORY32, 1 << 32),
        bar(5, MEMORY64, 0x1000),
        bar(7, MEMORY32, 0x1000),
        bar(6, MEMORY64, 0x1000),
        bar(0, BarKind::Io, 1 << 17),
        bar(255, MEMORY64, 0x1000),
    ] {
        assert!(endpoint(&[]).add_bar(bad).is_err(), "{bad:?}");
    }
    let mut space = endpoint(&[bar(0, MEMORY64, 0x1000)]);
    assert!(space.add_bar(bar(1, MEMORY32, 0x1000)).is_err());
    assert!(ConfigSpace::new(Header::Bridge, IDENTITY).add_bar(bar(2, MEMORY32, 0x1000)).is_err());
}

#[test]
fn capabilities_are_linked_in_order() {
    let mut space = endpoint(&[]);
    assert_eq!(space.u16(0x06) & 0x10, 0);
    let first = space.add_capability(0x01, &[3, 0, 0, 0, 0, 0]).unwrap();
    let second = space.add_capability(0x10, &[0; 58]).unwrap();
    assert_eq!(space.u16(0x06) & 0x10, 0x10);
    assert_eq!((u16::from(space.u8(0x34)), first), (0x40, 0x40));
    assert_eq!((u16::from(space.u8(first + 1)), second), (0x48, 0x48));
    assert_eq!((space.u8(second), space.u8(second + 1)), (0x10, 0));
    assert!(space.add_capability(0x05, &[0; 200]).is_err());

    let first = space.add_extended_capability(0x0003, 1, &[0; 8]).unwrap();
    let second = space.add_extended_capability(0x000d, 1, &[0; 4]).unwrap();
    assert_eq!((first, second), (0x100, 0x10c));
    assert_eq!(space.u32(first), 0x10c1_0003);
    assert_eq!(space.u32(second), 0x0001_000d);
    assert!(space.add_extended_capability(0x000b, 1, &[0; 4000]).is_err());
}

#[test]
fn writes_of_one_clear_what_they_may_and_nothing_else() {
    let mut space = endpoint(&[]);
    space.define_u16(0x80, 0, 0x0f00);
    space.clears_u16(0x80, 0x00ff);
    space.set_u16(0x80, 0x00ff);
    let _ = space.write(0x80, &0xff0f_u16.to_le_bytes());
    assert_eq!(space.u16(0x80), 0x0ff0);
    space.reset();
    assert_eq!(space.u16(0x80), 0);
}

proptest! {
    #[test]
    fn no_write_makes_a_window_that_cannot_be(writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..64)) {
        let mut space = endpoint(&[bar(0, MEMORY64, 1 << 38), bar(2, MEMORY32, 0x8000), bar(5, BarKind::Io, 64), bar(6, MEMORY32, 0x800)]);
        for (offset, data) in writes {
            let before = space.windows();
            let effect = space.write(offset % 0x60, &data);
            prop_assert_eq!(effect.windows, before != space.windows());
            prop_assert_eq!(effect.action, Action::None);
            let _ = space.write(offset, &data);
            for window in space.windows() {
                prop_assert!(window.base != 0 && window.base % window.size == 0);
                prop_assert!(window.base.checked_add(window.size).is_some());
            }
            prop_assert_eq!(space.u32(0), 0x1533_8086);
            let mut data = vec![0; 16];
            space.read(offset, &mut data);
        }
    }
}
