//! Rings as drivers fill them, honest ones and others.

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::super::testing::{INDIRECT, LAYOUT, NEXT, WRITE, describe, publish, used};
use super::*;

const RAM: usize = 1 << 20;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

fn ring(memory: &Memory) -> Ring {
    Ring::new(3, LAYOUT, false, memory).unwrap()
}

#[test]
fn a_request_is_read_and_written_in_order() {
    let memory = memory();
    let mut ring = ring(&memory);
    memory.write_slice(b"hello", GuestAddress(0x8000)).unwrap();
    memory.write_slice(b" world", GuestAddress(0x9000)).unwrap();
    describe(&memory, LAYOUT.descriptors, 5, 0x8000, 5, NEXT, 1);
    describe(&memory, LAYOUT.descriptors, 1, 0x9000, 6, NEXT, 2);
    describe(&memory, LAYOUT.descriptors, 2, 0xa000, 2, NEXT | WRITE, 7);
    describe(&memory, LAYOUT.descriptors, 7, 0xb000, 4, WRITE, 0);
    publish(&memory, LAYOUT, 5);

    let chain = ring.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable_length(), chain.writable_length()), (5, 11, 6));
    let mut text = [0; 16];
    assert_eq!(chain.read(&memory, 3, &mut text), 8);
    assert_eq!(&text[..8], b"lo world");
    assert_eq!(chain.write(&memory, 1, b"abcdefgh"), 5);
    let mut bytes = [0; 4];
    memory.read_slice(&mut bytes, GuestAddress(0xb000)).unwrap();
    assert_eq!(&bytes, b"bcde");
    assert!(ring.pop(&memory).unwrap().is_none());
    assert!(!ring.needs_interrupt(&memory).unwrap(), "nothing is completed");

    ring.complete(&memory, chain.head, 6).unwrap();
    assert!(ring.needs_interrupt(&memory).unwrap());
    assert!(!ring.needs_interrupt(&memory).unwrap(), "of that it was told");
    assert_eq!(used(&memory, LAYOUT), [(5, 6)]);
}

#[test]
fn what_was_put_back_comes_again() {
    let memory = memory();
    let mut ring = ring(&memory);
    describe(&memory, LAYOUT.descriptors, 0, 0x8000, 5, 0, 0);
    publish(&memory, LAYOUT, 0);
    let first = ring.pop(&memory).unwrap();
    ring.unpop();
    assert_eq!(ring.pop(&memory).unwrap(), first);
}

#[test]
fn a_table_of_descriptors_is_followed_and_nested_ones_are_not() {
    let memory = memory();
    let mut ring = ring(&memory);
    describe(&memory, LAYOUT.descriptors, 0, 0x5000, 32, INDIRECT, 0);
    describe(&memory, 0x5000, 0, 0x8000, 8, NEXT, 1);
    describe(&memory, 0x5000, 1, 0x9000, 8, WRITE, 0);
    publish(&memory, LAYOUT, 0);
    let chain = ring.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 1));

    describe(&memory, 0x5000, 1, 0x5000, 32, INDIRECT, 0);
    publish(&memory, LAYOUT, 0);
    assert_eq!(ring.pop(&memory), Err(Broken::Chain { queue: 3, head: 0 }));
}

#[test]
fn chains_that_break_a_rule_are_errors_not_shorter_chains() {
    type Lie = fn(&Memory);
    let cases: [(Lie, Broken); 7] = [
        (|m| describe(m, 0x1000, 4, 0x8000, 1, NEXT, 4), Broken::Chain { queue: 3, head: 4 }),
        (|m| describe(m, 0x1000, 4, 0x8000, 1, NEXT, 16), Broken::Chain { queue: 3, head: 4 }),
        (|m| describe(m, 0x1000, 4, 0x5000, 17, INDIRECT, 0), Broken::Chain { queue: 3, head: 4 }),
        (|m| describe(m, 0x1000, 4, u64::MAX - 15, 16, INDIRECT, 0), Broken::Chain { queue: 3, head: 4 }),
        (|m| describe(m, 0x1000, 4, 0xf_ffff, 2, 0, 0), Broken::Buffer { queue: 3, head: 4 }),
        (|m| describe(m, 0x1000, 4, u64::MAX, 2, 0, 0), Broken::Buffer { queue: 3, head: 4 }),
        (
            |m| {
                describe(m, 0x1000, 4, 0x8000, 1, NEXT | WRITE, 5);
                describe(m, 0x1000, 5, 0x8000, 1, 0, 0);
            },
            Broken::Order { queue: 3, head: 4 },
        ),
    ];
    for (lie, broken) in cases {
        let memory = memory();
        let mut ring = ring(&memory);
        lie(&memory);
        publish(&memory, LAYOUT, 4);
        assert_eq!(ring.pop(&memory), Err(broken));
    }
}

#[test]
fn heads_and_indices_out_of_range_are_errors() {
    let memory = memory();
    let mut ring = ring(&memory);
    publish(&memory, LAYOUT, 16);
    assert_eq!(ring.pop(&memory), Err(Broken::Chain { queue: 3, head: 16 }));
    memory.write_obj(40_u16, GuestAddress(LAYOUT.available + 2)).unwrap();
    assert_eq!(ring.pop(&memory), Err(Broken::Index { queue: 3 }));
    assert_eq!(ring.complete(&memory, 16, 0), Err(Broken::Index { queue: 3 }));
}

#[test]
fn rings_outside_of_memory_are_refused() {
    let memory = memory();
    for layout in [
        RingLayout { size: 0, ..LAYOUT },
        RingLayout { size: 3, ..LAYOUT },
        RingLayout { descriptors: 0x1001, ..LAYOUT },
        RingLayout { descriptors: 0xf_ff10, ..LAYOUT },
        RingLayout { available: 0x10_0000, ..LAYOUT },
        RingLayout { available: 0, ..LAYOUT },
        RingLayout { used: u64::MAX - 3, ..LAYOUT },
        RingLayout { used: 0xf_fffc, ..LAYOUT },
    ] {
        let refused = Ring::new(3, layout, true, &memory).err();
        assert_eq!(refused, Some(Broken::Layout { queue: 3 }), "{layout:?}");
    }
}

proptest! {
    /// Descriptors, available ring and even the used ring are noise; addresses are near memory often enough to matter.
    #[test]
    fn whatever_is_in_the_ring_buffers_are_in_memory_and_work_is_bounded(
        noise in vec(any::<u8>(), 0x3000..=0x3000_usize),
        tables in vec((0_u16..16, prop_oneof![0_u64..0x1000, 0xf_0000_u64..0x11_0000], 0_u32..0x400, 0_u16..8, 0_u16..17), 0..16),
        index in any::<u16>(),
        event_idx in any::<bool>(),
    ) {
        let memory = memory();
        memory.write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for (at, address, length, flags, next) in tables {
            describe(&memory, LAYOUT.descriptors, at, address, length, flags, next);
        }
        memory.write_obj(index % 32, GuestAddress(LAYOUT.available + 2)).unwrap();
        let mut ring = Ring::new(0, LAYOUT, event_idx, &memory).unwrap();
        for _ in 0..=LAYOUT.size {
            let Ok(Some(chain)) = ring.pop(&memory) else { break };
            prop_assert!(chain.readable().len() + chain.writable().len() <= MOST_BUFFERS);
            for buffer in chain.readable().iter().chain(chain.writable()) {
                prop_assert!(buffer.address.0 + u64::from(buffer.length) <= u64::try_from(RAM).unwrap());
            }
            let mut data = [0; 64];
            chain.read(&memory, 7, &mut data);
            chain.write(&memory, 7, &data);
            let _ = ring.complete(&memory, chain.head, 1);
            let _ = ring.needs_interrupt(&memory);
        }
    }
}
