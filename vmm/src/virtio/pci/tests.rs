//! The function as a guest's driver finds it, on a machine of KVM's.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::rng::Rng;
use super::super::testing::{LAYOUT, WRITE, describe, eventually, publish, used};
use super::common::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use super::*;
use crate::spec::MemorySpec;
use crate::virtio::RingLayout;

const GSI: u32 = 17;

/// A function in a machine; `None` where there is no KVM.
fn function() -> Option<(Arc<GuestRam>, VirtioFunction)> {
    let vm = crate::passthrough::testing::vm()?;
    let memory = MemorySpec { size: 1 << 20, hugepages: None, prefault: false };
    let ram = Arc::new(GuestRam::new(&memory).unwrap());
    let function = VirtioFunction::new(&vm, &ram, "rng", Box::new(Rng), GSI).unwrap();
    Some((ram, function))
}

fn read(function: &VirtioFunction, at: u64, length: usize) -> u64 {
    let mut data = [0; 8];
    function.read_bar(BAR, at, &mut data[..length]);
    u64::from_le_bytes(data)
}

fn write(function: &VirtioFunction, at: u64, length: usize, value: u64) {
    let _ = function.write_bar(BAR, at, &value.to_le_bytes()[..length]);
}

fn status(function: &VirtioFunction) -> u8 {
    u8::try_from(read(function, 20, 1)).unwrap()
}

/// Negotiates `features` and gives the one queue `layout`, as far as the driver's last word.
fn set_up(function: &VirtioFunction, features: u64, layout: RingLayout) {
    write(function, 20, 1, 0);
    write(function, 20, 1, (ACKNOWLEDGE | DRIVER).into());
    for half in 0..2 {
        write(function, 8, 4, half);
        write(function, 12, 4, features >> (32 * half) & 0xffff_ffff);
    }
    write(function, 20, 1, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into());
    write(function, 22, 2, 0);
    write(function, 24, 2, layout.size.into());
    write(function, 32, 8, layout.descriptors);
    write(function, 40, 4, layout.available);
    write(function, 48, 4, layout.used);
    write(function, 28, 2, 1);
}

fn ready(function: &VirtioFunction) {
    write(function, 20, 1, (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK).into());
}

#[test]
fn a_driver_gets_what_it_asks_for_and_is_told_by_the_pin() {
    let Some((ram, function)) = function() else { return };
    set_up(&function, feature::VERSION_1, LAYOUT);
    describe(ram.memory(), LAYOUT.descriptors, 0, 0x8000, 32, WRITE, 0);
    publish(ram.memory(), LAYOUT, 0);
    ready(&function);
    assert!(eventually(|| used(ram.memory(), LAYOUT) == [(0, 32)]));
    let mut bytes = [0; 32];
    ram.memory().read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
    assert_ne!(bytes, [0; 32]);
    assert!(eventually(|| read(&function, area::ISR, 1) == 1));
    assert_eq!(read(&function, area::ISR, 1), 0, "reading clears it");
    // Again by an exit, as it is without an ioeventfd.
    publish(ram.memory(), LAYOUT, 0);
    write(&function, area::NOTIFY, 2, 0);
    assert!(eventually(|| used(ram.memory(), LAYOUT).len() == 2));
}

#[test]
fn by_vectors_the_interrupt_is_pending_while_it_is_masked() {
    let Some((ram, function)) = function() else { return };
    let control = function.capabilities.msix + 2;
    let _ = function.write_config(control, &0x8000_u16.to_le_bytes());
    set_up(&function, feature::VERSION_1, LAYOUT);
    write(&function, 26, 2, 1);
    assert_eq!(read(&function, 26, 2), 1);
    describe(ram.memory(), LAYOUT.descriptors, 0, 0x8000, 32, WRITE, 0);
    publish(ram.memory(), LAYOUT, 0);
    ready(&function);
    assert!(eventually(|| read(&function, area::PENDING, 8) == 0b10));
    assert_eq!(read(&function, area::ISR, 1), 0, "the pin is not used");
    write(&function, area::TABLE + 16, 8, 0xfee0_0000);
    write(&function, area::TABLE + 24, 8, 0x41);
    assert_eq!(read(&function, area::PENDING, 8), 0, "unmasked, it is delivered");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let Some((_, function)) = function() else { return };
    for features in [0, feature::EVENT_IDX, feature::VERSION_1 | 1, feature::VERSION_1 | 1 << 63] {
        set_up(&function, features, LAYOUT);
        assert_eq!(status(&function) & FEATURES_OK, 0, "{features:#x}");
        ready(&function);
        assert_eq!(status(&function) & DRIVER_OK, 0, "{features:#x}");
    }
}

#[test]
fn a_ring_that_breaks_the_rules_asks_for_a_reset_and_works_after_it() {
    let Some((ram, function)) = function() else { return };
    for layout in [RingLayout { used: 0x10_0000, ..LAYOUT }, LAYOUT] {
        set_up(&function, feature::VERSION_1, layout);
        publish(ram.memory(), LAYOUT, 99);
        ready(&function);
        assert!(eventually(|| status(&function) & NEEDS_RESET != 0), "{layout:?}");
        assert!(eventually(|| read(&function, area::ISR, 1) & 2 != 0), "the driver is told");
        write(&function, 20, 1, 0);
        assert_eq!(status(&function), 0);
        ram.memory().write_obj(0_u16, GuestAddress(LAYOUT.available + 2)).unwrap();
    }
    set_up(&function, feature::VERSION_1, LAYOUT);
    describe(ram.memory(), LAYOUT.descriptors, 0, 0x8000, 32, WRITE, 0);
    publish(ram.memory(), LAYOUT, 0);
    ready(&function);
    assert!(eventually(|| used(ram.memory(), LAYOUT) == [(0, 32)]));
}

#[test]
fn a_queue_keeps_its_place_while_it_is_enabled() {
    let Some((_, function)) = function() else { return };
    set_up(&function, feature::VERSION_1, LAYOUT);
    write(&function, 24, 2, 8);
    write(&function, 32, 8, 0);
    assert_eq!((read(&function, 24, 2), read(&function, 32, 8)), (16, LAYOUT.descriptors));
    // There is no queue 1: it has no size, and nothing can be written to it.
    write(&function, 22, 2, 1);
    write(&function, 24, 2, 8);
    assert_eq!((read(&function, 24, 2), read(&function, 18, 2)), (0, 1));
}

#[test]
fn the_window_in_config_space_reaches_the_bar() {
    let Some((_, function)) = function() else { return };
    let window = &function.capabilities.window;
    let (offset, length, data) = (window.offset, window.length, window.data);
    let _ = function.write_config(offset, &20_u32.to_le_bytes());
    let _ = function.write_config(length, &1_u32.to_le_bytes());
    let _ = function.write_config(data, &[ACKNOWLEDGE]);
    assert_eq!(status(&function), ACKNOWLEDGE);
    let mut byte = [0];
    function.read_config(data, &mut byte);
    assert_eq!(byte, [ACKNOWLEDGE]);
}

#[derive(Clone, Debug)]
enum Step {
    Config(u16, Vec<u8>),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Window(Option<u64>),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(1), Just(0x0f), Just(0x10)];
    let at = prop_oneof![4 => 0_u64..64, 2 => 0_u64..0x6000, 1 => any::<u64>()];
    let size = prop::sample::select(vec![1_usize, 2, 4, 8]);
    prop_oneof![
        2 => (0_u16..0x100, vec(byte.clone(), 4)).prop_map(|(at, data)| Step::Config(at & !3, data)),
        9 => (at.clone(), size.clone(), vec(byte, 8)).prop_map(|(at, size, data)| Step::Write(at, data[..size].to_vec())),
        2 => (at, size).prop_map(|(at, size)| Step::Read(at, size)),
        1 => prop_oneof![Just(None), Just(Some(0xc000_0000)), Just(Some(0xc001_0000))].prop_map(Step::Window),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_driver_that_writes_anything_anywhere_breaks_nothing(steps in vec(step(), 1..80), noise in vec(any::<u8>(), 4096)) {
        let Some((ram, function)) = function() else { return Ok(()) };
        ram.memory().write_slice(&noise, GuestAddress(0x1000)).unwrap();
        set_up(&function, feature::VERSION_1 | feature::INDIRECT_DESC, LAYOUT);
        ready(&function);
        for step in steps {
            match step {
                Step::Config(at, data) => drop(function.write_config(at, &data)),
                Step::Write(at, data) => drop(function.write_bar(BAR, at, &data)),
                Step::Read(at, size) => function.read_bar(BAR, at, &mut vec![0; size]),
                Step::Window(base) => function.window_moved(BAR, base),
                Step::Reset => prop_assert_eq!(function.reset(), Ok(())),
            }
        }
        function.reset().unwrap();
        prop_assert_eq!(status(&function), 0);
    }
}
