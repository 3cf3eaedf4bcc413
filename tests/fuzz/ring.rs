//! The virtqueue by itself.

use throughway_vmm::virtio::{Ring, RingLayout};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Driver, address};
use super::session::fuzz;

#[test]
fn virtqueue() {
    let ram = Driver::ram();
    let memory = ram.memory();
    fuzz("virtqueue", |random, clock| {
        let size = if random.once_in(16) { random.u16() } else { 1 << random.below(9) };
        let mut place =
            |mask: u64| if random.once_in(8) { address(random) } else { random.below(0x4000) & mask };
        let layout = RingLayout { size, descriptors: place(!15), available: place(!1), used: place(!3) };
        let event_idx = random.once_in(2);
        let Ok(mut ring) = Ring::new(0, layout, event_idx, memory) else { return };
        let _ = memory.write_obj(0_u16, GuestAddress(layout.available + 2));
        for index in 0..u64::from(size.min(64)) {
            // Addresses and lengths that are right more often than not, so that chains get long.
            let mut words = [address(random), random.next() & 0xfff];
            words[1] |= u64::from(random.pick(&[0_u16, 1, 1, 2, 3, 4])) << 32;
            words[1] |= (random.next() % u64::from(size)) << 48;
            if random.once_in(8) {
                words[1] = random.next();
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let _ = memory.write_slice(&bytes, GuestAddress(layout.descriptors + 16 * index));
            let head = u16::try_from(random.next() % u64::from(size)).unwrap();
            let _ = memory.write_obj(head, GuestAddress(layout.available + 4 + 2 * index));
        }
        let index = if random.once_in(4) { random.u16() } else { u16::try_from(random.below(65)).unwrap() };
        let _ = memory.write_obj(index, GuestAddress(layout.available + 2));
        for _ in 0..32 {
            let taken = clock.bound("Taking a request", || ring.pop(memory));
            let Ok(Some(chain)) = taken else { break };
            assert!(chain.readable().len() + chain.writable().len() <= 1024);
            let mut data = [0; 300];
            let skip = random.number();
            chain.read(memory, skip, &mut data);
            chain.write(memory, skip, &data);
            let _ = ring.complete(memory, chain.head, random.u32());
            let _ = ring.needs_interrupt(memory);
            let _ = ring.disable_kicks(memory);
            let _ = ring.enable_kicks(memory);
            if random.once_in(8) {
                ring.unpop();
            }
        }
    });
}
