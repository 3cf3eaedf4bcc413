//! A driver's side of a split ring, for tests: it can be told to lie.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{Memory, RingLayout};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// One ring of 16 entries at fixed places.
pub(super) const LAYOUT: RingLayout =
    RingLayout { size: 16, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

/// Writes one descriptor to the table at `table`.
pub(super) fn describe(
    memory: &Memory,
    table: u64,
    index: u16,
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
) {
    let at = GuestAddress(table + 16 * u64::from(index));
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    memory.write_slice(&bytes, at).unwrap();
}

/// Makes one more head available.
pub(super) fn publish(memory: &Memory, layout: RingLayout, head: u16) {
    let index: u16 = memory.read_obj(GuestAddress(layout.available + 2)).unwrap();
    let slot = layout.available + 4 + 2 * u64::from(index % layout.size);
    memory.write_obj(head, GuestAddress(slot)).unwrap();
    memory.write_obj(index.wrapping_add(1), GuestAddress(layout.available + 2)).unwrap();
}

/// What was used so far: heads and lengths.
pub(super) fn used(memory: &Memory, layout: RingLayout) -> Vec<(u32, u32)> {
    let count: u16 = memory.read_obj(GuestAddress(layout.used + 2)).unwrap();
    let entry = |at: u16| {
        let at = layout.used + 4 + 8 * u64::from(at % layout.size);
        (memory.read_obj(GuestAddress(at)).unwrap(), memory.read_obj(GuestAddress(at + 4)).unwrap())
    };
    (0..count).map(entry).collect()
}

/// Whether `what` comes true within twenty seconds, on however busy a machine.
pub(super) fn eventually(what: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}
