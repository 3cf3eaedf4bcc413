//! A driver of a virtio function that knows the rules and keeps them when it likes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use throughway_vmm::memory::GuestRam;
use throughway_vmm::pci::PciDevice;
use throughway_vmm::testing::walled;
use throughway_vmm::virtio::{Memory, VirtioDevice, VirtioFunction};
use throughway_vmm::vm::Vm;
use vm_memory::{Bytes, GuestAddress};

use super::random::Random;
use super::session::Clock;

/// Where guest RAM is: two parts, so that there is an end in the middle too.
pub(crate) const RAM: [(u64, u64); 2] = [(0, 0x20_0000), (0x1_0000_0000, 0x10_0000)];

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Parts of the BAR, as the function's capabilities name them.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;

/// What a well-meaning driver would put into a queue.
#[derive(Default)]
pub(crate) struct Request {
    /// What the device reads, buffer by buffer.
    pub(crate) readable: Vec<Vec<u8>>,
    /// Lengths of what it writes.
    pub(crate) writable: Vec<u32>,
}

/// Makes requests for a queue.
pub(crate) type Requests<'a> = &'a dyn Fn(&mut Random, u16) -> Request;

/// The test's machine, or `None` where there is no KVM, with the reason printed.
pub(crate) fn vm() -> Option<Arc<Vm>> {
    match Vm::new() {
        Ok(vm) => {
            vm.create_interrupt_controllers().unwrap();
            Some(Arc::new(vm))
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// An address in RAM, at its ends, or anywhere.
pub(crate) fn address(random: &mut Random) -> u64 {
    let (start, length) = random.pick(&RAM);
    match random.below(8) {
        0 => (start + length).wrapping_sub(random.below(64)),
        1 => start.wrapping_add(random.below(32)),
        2 => random.number(),
        _ => start + random.below(length),
    }
}

/// A ring as the driver has laid it out.
#[derive(Clone, Copy, Default)]
struct Layout {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// A function and its driver.
pub(crate) struct Driver {
    // First: its workers end before what they use goes.
    function: VirtioFunction,
    ram: Arc<GuestRam>,
    queues: u16,
    layouts: Vec<Layout>,
}

impl Driver {
    pub(crate) fn new(vm: &Arc<Vm>, ram: &Arc<GuestRam>, device: Box<dyn VirtioDevice>) -> Self {
        let queues = u16::try_from(device.queue_sizes().len()).unwrap();
        let function = VirtioFunction::new(vm, ram, "fuzzed", device, 17).unwrap();
        Self { function, ram: Arc::clone(ram), queues, layouts: vec![Layout::default(); queues.into()] }
    }

    /// Memory as all drivers have it.
    pub(crate) fn ram() -> Arc<GuestRam> {
        Arc::new(walled(&RAM).unwrap())
    }

    /// Says what the device has counted, so that one sees that it was made to work.
    pub(crate) fn report(&self, target: &str) {
        if let Some(report) = self.function.report() {
            println!("fuzz {target}: the last device: {report}");
        }
    }

    fn memory(&self) -> &Memory {
        self.ram.memory()
    }

    fn write(&self, clock: &mut Clock, at: u64, data: &[u8]) {
        clock.bound("A write to the function", || drop(self.function.write_bar(0, at, data)));
    }

    fn read(&self, clock: &mut Clock, at: u64, length: usize) -> u64 {
        let mut data = [0xff; 8];
        clock.bound("A read of the function", || self.function.read_bar(0, at, &mut data[..length]));
        u64::from_le_bytes(data) & u64::MAX >> (64 - 8 * length)
    }

    /// A driver's life: it sets the device up, asks, disturbs, and resets it.
    pub(crate) fn live(&mut self, random: &mut Random, clock: &mut Clock, requests: Requests) {
        self.set_up(random, clock, requests);
        for _ in 0..random.below(24) {
            self.step(random, clock, requests);
        }
        // As a rule the device is let do what it was asked.
        if !random.once_in(4) {
            self.wait(Duration::from_millis(1 + random.below(2)));
        }
        self.write(clock, COMMON + 20, &[0]);
        if random.once_in(16) {
            clock.bound("A reset of the function", || self.function.reset().unwrap());
        }
        assert_eq!(self.read(clock, COMMON + 20, 1), 0, "status after a reset");
    }

    fn set_up(&mut self, random: &mut Random, clock: &mut Clock, requests: Requests) {
        self.write(clock, COMMON + 20, &[0]);
        self.write(clock, COMMON + 20, &[3]);
        let mut features = 0;
        for half in 0..2_u8 {
            self.write(clock, COMMON, &[half, 0, 0, 0]);
            features |= self.read(clock, COMMON + 4, 4) << (32 * half);
        }
        if random.once_in(3) {
            features &= random.next() | 1 << 32;
        }
        if random.once_in(32) {
            features ^= random.number();
        }
        for (half, bytes) in (0_u8..).zip(features.to_le_bytes().chunks(4)) {
            self.write(clock, COMMON + 8, &[half, 0, 0, 0]);
            self.write(clock, COMMON + 12, bytes);
        }
        self.write(clock, COMMON + 20, &[11]);
        for queue in 0..self.queues {
            if !random.once_in(24) {
                self.set_queue_up(random, clock, queue);
                for _ in 0..random.below(6) {
                    let request = requests(random, queue);
                    self.ask(random, queue, &request);
                }
            }
        }
        self.write(clock, COMMON + 20, &[15]);
    }

    fn set_queue_up(&mut self, random: &mut Random, clock: &mut Clock, queue: u16) {
        self.write(clock, COMMON + 22, &queue.to_le_bytes());
        let most = u16::try_from(self.read(clock, COMMON + 24, 2)).unwrap();
        let bits = u64::from(most.checked_ilog2().unwrap_or(0)) + 1;
        let mut layout = Layout {
            size: 1 << random.below(bits),
            descriptors: random.below(0x1_0000) << 4,
            available: random.below(0x8_0000) << 1 | 2,
            used: random.below(0x4_0000) << 2,
        };
        if random.once_in(32) {
            layout.size = random.u16();
        }
        for place in [&mut layout.descriptors, &mut layout.available, &mut layout.used] {
            if random.once_in(48) {
                *place = address(random);
            }
        }
        // The rings are as a driver's are, before it lies.
        for (at, length) in [(layout.available, 4), (layout.used, 4)] {
            let _ = self.memory().write_slice(&[0; 4][..length], GuestAddress(at));
        }
        self.write(clock, COMMON + 24, &layout.size.to_le_bytes());
        self.write(clock, COMMON + 26, &random.pick(&[queue, queue + 1, 0xffff]).to_le_bytes());
        for (at, place) in [(32, layout.descriptors), (40, layout.available), (48, layout.used)] {
            let [low, high] = [place & 0xffff_ffff, place >> 32].map(|half| half.to_le_bytes());
            self.write(clock, COMMON + at, &low[..4]);
            self.write(clock, COMMON + at + 4, &high[..4]);
        }
        self.write(clock, COMMON + 28, &[1, 0]);
        if let Some(known) = self.layouts.get_mut(usize::from(queue)) {
            *known = layout;
        }
    }

    /// Puts a request into a queue: as it should be, or with something in its chain changed.
    fn ask(&self, random: &mut Random, queue: u16, request: &Request) {
        let Some(layout) = self.layouts.get(usize::from(queue)).filter(|layout| layout.size > 0) else {
            return;
        };
        let buffers = request.readable.len() + request.writable.len();
        let indirect = random.once_in(4);
        let table = if indirect { random.below(0x1_0000) << 4 } else { layout.descriptors };
        let entries = if indirect { u16::try_from(buffers.max(1)).unwrap() } else { layout.size };
        let first = u16::try_from(random.below(u64::from(entries))).unwrap();
        let entry = |index: usize| (first + u16::try_from(index).unwrap()) % entries;
        let lengths = request.readable.iter().map(|bytes| u32::try_from(bytes.len()).unwrap());
        let all =
            lengths.map(|length| (length, 0)).chain(request.writable.iter().map(|length| (*length, WRITE)));
        for (index, (length, write)) in all.enumerate() {
            let mut place = random.below(0x1f_0000);
            if let Some(bytes) = request.readable.get(index) {
                let _ = self.memory().write_slice(bytes, GuestAddress(place));
            }
            let more = if index + 1 < buffers { NEXT } else { 0 };
            let (mut length, mut flags, mut next) = (length, write | more, entry(index + 1));
            match random.below(64) {
                0 => place = address(random),
                1 => length = random.u32(),
                2 => flags = random.u16(),
                3 => next = random.u16(),
                4 => flags ^= WRITE,
                5 => flags |= NEXT,
                _ => {}
            }
            self.describe(table, entry(index), (place, length, flags, next));
        }
        let mut head = entry(0);
        if indirect {
            let length = if random.once_in(16) { random.u32() } else { 16 * u32::from(entries) };
            head = u16::try_from(random.below(u64::from(layout.size))).unwrap();
            self.describe(layout.descriptors, head, (table, length, INDIRECT, 0));
        }
        if random.once_in(64) {
            head = random.u16();
        }
        self.publish(random, layout, head);
    }

    fn describe(&self, table: u64, index: u16, (place, length, flags, next): (u64, u32, u16, u16)) {
        let bytes =
            [&place.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        let at = table.wrapping_add(16 * u64::from(index));
        let _ = self.memory().write_slice(&bytes.concat(), GuestAddress(at));
    }

    fn publish(&self, random: &mut Random, layout: &Layout, head: u16) {
        let index_at = GuestAddress(layout.available.wrapping_add(2));
        let Ok(index) = self.memory().read_obj::<u16>(index_at) else { return };
        let slot = layout.available.wrapping_add(4 + 2 * u64::from(index % layout.size));
        let _ = self.memory().write_obj(head, GuestAddress(slot));
        let next = if random.once_in(64) { random.u16() } else { index.wrapping_add(1) };
        let _ = self.memory().write_obj(next, index_at);
    }

    /// One thing that a driver may do at any time.
    fn step(&mut self, random: &mut Random, clock: &mut Clock, requests: Requests) {
        let queue = u16::try_from(random.below(u64::from(self.queues))).unwrap();
        match random.below(16) {
            0..6 => {
                for _ in 0..random.below(4) {
                    let request = requests(random, queue);
                    self.ask(random, queue, &request);
                }
                self.write(clock, NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
            }
            6 => self.scribble(random, queue),
            7 => {
                let at =
                    random.pick(&[COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING, 0x6000]) + random.below(80);
                let length = random.pick(&[1, 2, 4, 8]);
                let data = random.bytes(length);
                self.write(clock, at, &data);
            }
            8 => {
                let at =
                    random.pick(&[COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING, 0x6000]) + random.below(80);
                let length = random.pick(&[1, 2, 4, 8]);
                self.read(clock, at, length);
            }
            9 => {
                let at = DEVICE + random.below(64);
                let data = random.bytes(4);
                self.write(clock, at, &data);
                self.read(clock, at, 4);
            }
            // MSI-X on and off, with entries that point anywhere.
            10 | 11 => self.interrupts(random, clock),
            12 => {
                let length = random.pick(&[1_usize, 2, 4]);
                let at = (random.u16() % 0x120) & !(u16::try_from(length).unwrap() - 1);
                let data = random.bytes(length);
                clock.bound("A config write", || drop(self.function.write_config(at, &data)));
                clock.bound("A config read", || self.function.read_config(at, &mut [0; 4][..length]));
            }
            13 => {
                let base = random.pick(&[None, Some(0xc000_0000), Some(0x40_0000_0000)]);
                clock.bound("Moving the BAR", || self.function.window_moved(0, base));
            }
            14 => self.wait(Duration::from_micros(random.below(500))),
            _ => drop(self.function.report()),
        }
    }

    fn interrupts(&self, random: &mut Random, clock: &mut Clock) {
        for at in 0x34..0x100_u16 {
            let mut id = [0; 4];
            if at % 4 == 0 {
                self.function.read_config(at, &mut id);
            }
            if id[0] == 0x11 {
                let control = random.pick(&[0x8000_u16, 0x8000, 0xc000, 0]);
                clock.bound("A config write", || {
                    drop(self.function.write_config(at + 2, &control.to_le_bytes()))
                });
            }
        }
        let vector = random.below(6);
        let anywhere = random.u32();
        let entry = [random.pick(&[0xfee0_0000, 0xfee0_1000, anywhere]), 0, random.u32(), random.u32() & 1];
        for (at, word) in (0..).zip(entry) {
            self.write(clock, TABLE + 16 * vector + 4 * at, &word.to_le_bytes());
        }
    }

    /// Changes rings and tables while the device may be at them.
    fn scribble(&self, random: &mut Random, queue: u16) {
        let Some(layout) = self.layouts.get(usize::from(queue)) else { return };
        for _ in 0..random.below(16) {
            let near = random.pick(&[layout.descriptors, layout.available, layout.used]);
            let at = near.wrapping_add(random.below(16 * u64::from(layout.size.max(1))));
            let bytes = random.number().to_le_bytes();
            let length = random.pick(&[1, 2, 4, 8]);
            let _ = self.memory().write_slice(&bytes[..length], GuestAddress(at));
        }
    }

    /// Until the device has used something, and no longer.
    fn wait(&self, at_most: Duration) {
        let used = |layout: &Layout| self.memory().read_obj::<u16>(GuestAddress(layout.used.wrapping_add(2)));
        let before: Vec<_> = self.layouts.iter().map(|layout| used(layout).ok()).collect();
        let began = Instant::now();
        while began.elapsed() < at_most {
            if self.layouts.iter().zip(&before).any(|(layout, before)| used(layout).ok() != *before) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
