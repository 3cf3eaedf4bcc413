//! The console with a pipe at each end.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::control::Recent;
use crate::spec::MemorySpec;
use crate::virtio::testing::{LAYOUT, NEXT, WRITE, describe, publish, used};
use crate::virtio::{Ring, RingLayout};
use crate::vm::Signal;

const SENDS: RingLayout = RingLayout { size: 16, descriptors: 0x4000, available: 0x5000, used: 0x6000 };

fn to(reader: Option<OwnedFd>) -> Arc<ConsoleOutput> {
    ConsoleOutput::new(reader, None, &Arc::new(Recent::new().unwrap())).unwrap()
}

struct Test {
    ram: Arc<GuestRam>,
    console: Console,
    /// What is typed, and what is shown.
    typed: Arc<Keyboard>,
    shown: File,
    kicks: Vec<Arc<Signal>>,
    workers: Vec<Worker>,
}

impl Test {
    fn new() -> Self {
        let memory = MemorySpec { size: 1 << 20, hugepages: None, prefault: false };
        let typed = Arc::new(Keyboard::new().unwrap());
        let (shown, output) = rustix::pipe::pipe().unwrap();
        Self {
            ram: Arc::new(GuestRam::new(&memory).unwrap()),
            console: Console::new(Arc::clone(&typed), to(Some(output))).unwrap(),
            typed,
            shown: shown.into(),
            kicks: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// False where there is no KVM.
    fn start(&mut self) -> bool {
        let Some(vm) = crate::passthrough::testing::vm() else { return false };
        let interrupts = Arc::new(Interrupts::new(&vm, "console test", 17, 2, 3).unwrap());
        let queue = |(index, layout): (u16, RingLayout)| {
            let kick = Arc::new(Signal::new().unwrap());
            kick.raise();
            let ring = Ring::new(index, layout, false, self.ram.memory()).unwrap();
            ActiveQueue { index, ring, kick, interrupt: interrupts.of_queue(index) }
        };
        let queues: Vec<_> = [(0, LAYOUT), (1, SENDS)].map(queue).into();
        self.kicks = queues.iter().map(|queue| Arc::clone(&queue.kick)).collect();
        let memory = Arc::clone(&self.ram);
        let activation = Activation { memory, features: feature::VERSION_1, queues, interrupts };
        self.workers = self.console.activate(activation).unwrap();
        true
    }

    fn used(&self, layout: RingLayout, count: usize) -> Vec<(u32, u32)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while used(self.ram.memory(), layout).len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        used(self.ram.memory(), layout)
    }
}

#[test]
fn what_the_guest_sends_is_shown_in_order() {
    let mut test = Test::new();
    let memory = test.ram.memory();
    memory.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
    memory.write_slice(b"world", GuestAddress(0x9000)).unwrap();
    describe(memory, SENDS.descriptors, 0, 0x8000, 6, NEXT, 1);
    describe(memory, SENDS.descriptors, 1, 0x9000, 5, 0, 0);
    publish(memory, SENDS, 0);
    publish(memory, SENDS, 1);
    if !test.start() {
        return;
    }
    let mut shown = [0; 16];
    test.shown.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"hello worldworld");
    assert_eq!(test.used(SENDS, 2), [(0, 0), (1, 0)]);
    assert_eq!(test.console.report().unwrap(), "bytes received 0, sent 16");
}

#[test]
fn what_is_typed_waits_for_room() {
    let mut test = Test::new();
    test.typed.type_in(b"typed");
    if !test.start() {
        return;
    }
    std::thread::sleep(Duration::from_millis(20));
    describe(test.ram.memory(), LAYOUT.descriptors, 0, 0x8000, 3, WRITE, 0);
    describe(test.ram.memory(), LAYOUT.descriptors, 1, 0x9000, 16, WRITE, 0);
    publish(test.ram.memory(), LAYOUT, 0);
    publish(test.ram.memory(), LAYOUT, 1);
    test.kicks[0].raise();
    assert_eq!(test.used(LAYOUT, 2), [(0, 3), (1, 2)]);
    let mut bytes = [0; 3];
    test.ram.memory().read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
    assert_eq!(&bytes, b"typ");
    assert!(test.typed.drained().is_raised());
    assert_eq!((test.typed.room(), test.typed.some().is_raised()), (4096, false));
}

#[test]
fn a_reader_who_takes_nothing_does_not_hold_up_a_reset() {
    let mut test = Test::new();
    for index in 0..16 {
        // More than the pipe holds.
        describe(test.ram.memory(), SENDS.descriptors, index, 0x8000, 0x8000, 0, 0);
        publish(test.ram.memory(), SENDS, index);
    }
    if !test.start() {
        return;
    }
    std::thread::sleep(Duration::from_millis(100));
    let used = used(test.ram.memory(), SENDS).len();
    assert!(used < 16, "{used}");
    test.workers.clear();
}

#[test]
fn no_more_is_typed_than_there_is_room_for() {
    let keyboard = Keyboard::new().unwrap();
    keyboard.type_in(&[b'x'; 5000]);
    assert_eq!((keyboard.room(), keyboard.take(5000).len()), (0, 4096));
    assert!(keyboard.drained().take() && !keyboard.some().is_raised());
    assert!(keyboard.take(1).is_empty());
    assert!(!keyboard.drained().is_raised(), "told once");
}

#[test]
fn without_a_reader_all_is_kept() {
    let mut test = Test::new();
    let recent = Arc::new(Recent::new().unwrap());
    let output = ConsoleOutput::new(None, None, &recent).unwrap();
    test.console = Console::new(Arc::clone(&test.typed), output).unwrap();
    test.ram.memory().write_slice(&[b'x'; 0x2000], GuestAddress(0x8000)).unwrap();
    describe(test.ram.memory(), SENDS.descriptors, 0, 0x8000, 0x2000, 0, 0);
    publish(test.ram.memory(), SENDS, 0);
    publish(test.ram.memory(), SENDS, 0);
    if !test.start() {
        return;
    }
    assert_eq!(test.used(SENDS, 2), [(0, 0), (0, 0)]);
    assert_eq!(recent.read(0, 0x10000), (0, vec![b'x'; 0x4000]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Both rings are noise; the thread lives or fails the device, and ends when it is told to.
    #[test]
    fn rings_of_noise_end_in_a_reset_at_the_worst(noise in vec(any::<u8>(), 0x6000), lengths in vec(0_u32..70000, 16)) {
        let mut test = Test::new();
        test.typed.type_in(b"something");
        test.ram.memory().write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for (index, length) in (0..).zip(lengths) {
            let flags = u16::from(noise[usize::from(index)]) & 7;
            describe(test.ram.memory(), SENDS.descriptors, index, 0x8000, length, flags, index + 1);
            publish(test.ram.memory(), SENDS, index);
        }
        if test.start() {
            std::thread::sleep(Duration::from_millis(5));
            test.workers.clear();
        }
    }
}
