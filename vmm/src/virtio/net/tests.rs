//! The card with a tap of a network namespace of its own, as far as this machine lets one be made.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::GuestRam;
use crate::spec::MemorySpec;
use crate::virtio::testing::{LAYOUT, NEXT, WRITE, describe, eventually, publish, used};
use crate::virtio::{Ring, RingLayout};
use crate::vm::Signal;

const SPEC: NetSpec = NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
const TRANSMIT: RingLayout = RingLayout { size: 16, descriptors: 0x4000, available: 0x5000, used: 0x6000 };

/// A tap that is up, and a packet socket on it, in a network namespace of this thread; `None` with the reason printed
/// where it cannot be made.
fn tap() -> Option<(OwnedFd, File)> {
    crate::testing::tap().inspect_err(|error| eprintln!("skipped: no tap: {error}")).ok()
}

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(&MemorySpec { size: 1 << 20, hugepages: None, prefault: false }).unwrap())
}

/// The card as active as its driver makes it, with both rings of its first pair.
fn activation(ram: &Arc<GuestRam>, features: u64) -> Option<Activation> {
    let vm = crate::passthrough::testing::vm()?;
    let interrupts = Arc::new(Interrupts::new(&vm, "nic test", 17, 2, 3).unwrap());
    let queue = |(index, layout): (u16, RingLayout)| {
        let kick = Arc::new(Signal::new().unwrap());
        kick.raise();
        let ring = Ring::new(index, layout, false, ram.memory()).unwrap();
        ActiveQueue { index, ring, kick, interrupt: interrupts.of_queue(index) }
    };
    let queues = [(0, LAYOUT), (1, TRANSMIT)].map(queue).into();
    Some(Activation { memory: Arc::clone(ram), features, queues, interrupts })
}

/// A frame to everybody of a protocol that nobody speaks.
fn frame(length: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.resize(length, fill);
    frame
}

#[test]
fn what_the_guest_sends_comes_out_of_the_tap() {
    let Some((tap, mut socket)) = tap() else { return };
    let ram = ram();
    let mut net = Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap();
    let Some(activation) = activation(&ram, ring_feature::VERSION_1) else { return };
    let sent = frame(200, 0x5a);
    ram.memory().write_slice(&sent, GuestAddress(0x9000)).unwrap();
    describe(ram.memory(), TRANSMIT.descriptors, 0, 0x8000, 12, NEXT, 1);
    describe(ram.memory(), TRANSMIT.descriptors, 1, 0x9000, 200, 0, 0);
    publish(ram.memory(), TRANSMIT, 0);
    let workers = net.activate(activation).unwrap();
    let mut got = vec![0; 2000];
    // The kernel says hello on a fresh link, too.
    let heard = (0..20).any(|_| socket.read(&mut got).is_ok_and(|length| got[..length] == sent));
    assert!(heard);
    assert!(eventually(|| used(ram.memory(), TRANSMIT) == [(0, 0)]));
    assert!(net.report().unwrap().starts_with("vhost-net not in use"));
    drop(workers);
    net.reset();
}

#[test]
fn what_comes_in_is_spread_over_buffers_and_waits_for_them() {
    let Some((tap, mut socket)) = tap() else { return };
    let ram = ram();
    let mut net = Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap();
    let Some(activation) = activation(&ram, ring_feature::VERSION_1 | feature::MRG_RXBUF) else { return };
    let kick = Arc::clone(&activation.queues[0].kick);
    let workers = net.activate(activation).unwrap();
    let sent = frame(300, 0xa5);
    socket.write_all(&sent).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(used(ram.memory(), LAYOUT), [], "there is no buffer yet");
    for index in 0..16 {
        describe(ram.memory(), LAYOUT.descriptors, index, 0x8000 + 0x100 * u64::from(index), 0x100, WRITE, 0);
        publish(ram.memory(), LAYOUT, index);
    }
    kick.raise();
    // Among what the kernel itself sends: a packet of two buffers, one behind the other.
    let found = || {
        let used = used(ram.memory(), LAYOUT);
        used.windows(2).any(|pair| {
            let [(first, 0x100), (second, 56)] = *pair else { return false };
            let mut got = vec![0; 0x200];
            let (one, two) = got.split_at_mut(0x100);
            ram.memory().read_slice(one, GuestAddress(0x8000 + 0x100 * u64::from(first))).unwrap();
            ram.memory().read_slice(two, GuestAddress(0x8000 + 0x100 * u64::from(second))).unwrap();
            got[NUM_BUFFERS_AT] == 2 && got[HEADER..HEADER + 300] == sent
        })
    };
    assert!(eventually(found), "{:?}", used(ram.memory(), LAYOUT));
    drop(workers);
}

const NUM_BUFFERS_AT: usize = 10;

#[test]
fn while_its_threads_rest_nothing_comes_in_and_afterwards_all_of_it_does() {
    let Some((tap, mut socket)) = tap() else { return };
    let ram = ram();
    let mut net = Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap();
    let Some(activation) = activation(&ram, ring_feature::VERSION_1 | feature::MRG_RXBUF) else { return };
    let kick = Arc::clone(&activation.queues[0].kick);
    let workers = net.activate(activation).unwrap();
    for index in 0..16 {
        describe(ram.memory(), LAYOUT.descriptors, index, 0x8000 + 0x100 * u64::from(index), 0x100, WRITE, 0);
        publish(ram.memory(), LAYOUT, index);
    }
    kick.raise();
    workers.iter().for_each(Worker::ask_to_rest);
    let until = std::time::Instant::now() + Duration::from_secs(60);
    assert!(workers.iter().all(|worker| worker.rests(until)));
    net.pause().unwrap();
    let before = used(ram.memory(), LAYOUT);
    socket.write_all(&frame(60, 0xa5)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(used(ram.memory(), LAYOUT), before);
    net.go_on().unwrap();
    workers.iter().for_each(Worker::go_on);
    assert!(eventually(|| used(ram.memory(), LAYOUT).len() > before.len()));
}

#[test]
fn the_cable_can_be_pulled_and_the_driver_is_told_each_time() {
    let Some((tap, _socket)) = tap() else { return };
    let ram = ram();
    let mut net = Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap();
    let Some(activation) = activation(&ram, ring_feature::VERSION_1) else { return };
    let interrupts = Arc::clone(&activation.interrupts);
    let _workers = net.activate(activation).unwrap();
    for (up, generation) in [(false, 1), (false, 1), (true, 2)] {
        assert!(net.set_link(up));
        assert_eq!((net.link(), interrupts.generation()), (Some(up), generation));
    }
    assert!(!crate::virtio::rng::Rng.set_link(false));
}

/// What a card hears when its tap is removed, and how often its driver was told of a change then, where there is one.
fn tap_vanishes(driver: bool) -> Option<(Net, u8)> {
    let (tap, socket) = tap()?;
    let ram = ram();
    let mut net =
        Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap().hearing(listen_for_links().unwrap());
    let activation = activation(&ram, ring_feature::VERSION_1)?;
    let interrupts = Arc::clone(&activation.interrupts);
    let workers = driver.then(|| net.activate(activation).unwrap());
    let mut status = [0; 2];
    net.read_config(6, &mut status);
    assert_eq!(u16::from_le_bytes(status), LINK_UP);
    drop(socket);
    // `ip link delete t0`: RTM_DELLINK by index is the kernel's only way; the tool does it here.
    let deleted = std::process::Command::new("ip").args(["link", "delete", "t0"]).status();
    if !deleted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no ip(8)");
        return None;
    }
    let hears = net.hears().unwrap();
    assert!(eventually(|| {
        hears.heard();
        net.link() == Some(false)
    }));
    net.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    drop(workers);
    Some((net, interrupts.generation()))
}

#[test]
fn a_tap_that_vanishes_pulls_the_cable_and_says_so_once() {
    let Some((mut net, told)) = tap_vanishes(true) else { return };
    assert_eq!(told, 1, "the driver is told");
    net.set_link(true);
    net.hears().unwrap().heard();
    assert_eq!(net.link(), Some(true), "it was said");
}

#[test]
fn it_does_so_before_there_is_a_driver_too() {
    let Some((_, told)) = tap_vanishes(false) else { return };
    assert_eq!(told, 0, "who comes later reads it");
}

#[test]
fn a_card_without_a_tap_is_refused_and_so_is_what_is_none() {
    assert!(matches!(Net::new("nic test", SPEC, Vec::new(), Vec::new()), Err(Error::NoTap(_))));
    let file = tempfile::tempfile().unwrap();
    let error = Net::new("nic test", SPEC, vec![file.into()], Vec::new()).err().unwrap();
    assert!(matches!(error, Error::Tap { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Both rings are noise; the thread lives or fails the device, and ends when it is told to.
    #[test]
    fn rings_of_noise_end_in_a_reset_at_the_worst(noise in vec(any::<u8>(), 0x6000), lengths in vec(0_u32..70000, 16)) {
        let Some((tap, _socket)) = tap() else { return Ok(()) };
        let ram = ram();
        ram.memory().write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for (index, length) in (0..).zip(lengths) {
            describe(ram.memory(), TRANSMIT.descriptors, index, 0x8000, length, u16::from(noise[usize::from(index)]) & 7, index + 1);
            publish(ram.memory(), TRANSMIT, index);
        }
        let mut net = Net::new("nic test", SPEC, vec![tap], Vec::new()).unwrap();
        let Some(activation) = activation(&ram, ring_feature::VERSION_1 | feature::MRG_RXBUF) else { return Ok(()) };
        let workers = net.activate(activation).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        drop(workers);
        net.reset();
    }
}
