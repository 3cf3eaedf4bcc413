//! The virtio devices, under a driver that keeps no rule for long.

use std::io::Write;

use throughway_vmm::disk::{Access, Chain, Format, NewImage, Preallocate, Rules};
use throughway_vmm::testing::tap;
use throughway_vmm::virtio::VirtioDevice;
use throughway_vmm::virtio::blk::{Block, BlockSpec};
use throughway_vmm::virtio::console::Console;
use throughway_vmm::virtio::net::{Net, NetSpec};
use throughway_vmm::virtio::rng::Rng;

use super::driver::{Driver, Request, Requests, vm};
use super::random::Random;
use super::session::fuzz;

/// Each device lives through this many drivers.
const LIVES: u64 = 256;

fn device(
    target: &str,
    make: impl Fn() -> Box<dyn VirtioDevice>,
    requests: Requests,
    mut beside: impl FnMut(&mut Random),
) {
    let Some(vm) = vm() else { return };
    let ram = Driver::ram();
    let mut driver = Driver::new(&vm, &ram, make());
    let mut lives = 0;
    fuzz(target, |random, clock| {
        lives += 1;
        if lives % LIVES == 0 {
            driver = Driver::new(&vm, &ram, make());
        }
        beside(random);
        driver.live(random, clock, requests);
    });
    driver.report(target);
}

fn lengths(random: &mut Random, of: u64, most: u64) -> Vec<u32> {
    (0..random.below(of)).map(|_| u32::try_from(random.below(most)).unwrap()).collect()
}

#[test]
fn rng() {
    let requests =
        |random: &mut Random, _| Request { readable: Vec::new(), writable: lengths(random, 5, 5000) };
    device("rng", || Box::new(Rng), &requests, |_| {});
}

#[test]
fn console() {
    let (input, typed) = rustix::pipe::pipe().unwrap();
    let (shown, output) = rustix::pipe::pipe().unwrap();
    for pipe in [&typed, &shown] {
        rustix::io::ioctl_fionbio(pipe, true).unwrap();
    }
    let requests = |random: &mut Random, queue| match queue {
        0 => Request { readable: Vec::new(), writable: lengths(random, 4, 5000) },
        _ => {
            let length = random.index(300);
            Request { readable: vec![random.bytes(length), random.bytes(length % 7)], writable: Vec::new() }
        }
    };
    let make = || -> Box<dyn VirtioDevice> {
        Box::new(Console::new(Some(input.try_clone().unwrap()), output.try_clone().unwrap()).unwrap())
    };
    device("console", make, &requests, |random| {
        // A reader who now and then takes something, and one who types.
        let mut room = vec![0; random.index(0x8000)];
        let _ = rustix::io::read(&shown, &mut room);
        if random.once_in(2) {
            let length = random.index(100);
            let _ = rustix::io::write(&typed, &random.bytes(length));
        }
    });
}

/// Kinds that the disk knows and others, over sectors that it has and others.
fn disk_request(random: &mut Random, _: u16) -> Request {
    let kind = if random.once_in(16) { random.u32() } else { random.pick(&[0, 0, 1, 1, 4, 8, 11, 13]) };
    let sector = if random.once_in(8) { random.number() } else { random.below(0x900) };
    let mut header = [kind, 0].map(u32::to_le_bytes).concat();
    header.extend(sector.to_le_bytes());
    let sectors = 512 * random.index(9);
    let mut request = Request { readable: vec![header], writable: Vec::new() };
    match kind {
        0 => request.writable.push(u32::try_from(sectors).unwrap()),
        8 => request.writable.push(20),
        11 | 13 => {
            let mut ranges = Vec::new();
            for _ in 0..=random.below(3) {
                let sector = if random.once_in(8) { random.number() } else { random.below(0x900) };
                ranges.extend(sector.to_le_bytes());
                let count = if random.once_in(4) { random.u32() } else { 1 + random.u32() % 64 };
                ranges.extend(count.to_le_bytes());
                ranges.extend(random.pick(&[0_u32, 0, 1, 2]).to_le_bytes());
            }
            request.readable.push(ranges);
        }
        _ => request.readable.push(random.bytes(sectors.min(1024))),
    }
    // The header in pieces, now and then.
    if random.once_in(8) {
        let rest = request.readable[0].split_off(random.index(16));
        request.readable.insert(1, rest);
    }
    request.writable.push(1);
    request
}

fn disk(target: &str, format: Format) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let image = NewImage::begin(&path).unwrap();
    match format {
        Format::Raw => drop(image.raw(1 << 20, Preallocate::Off).unwrap()),
        Format::Qcow2 => drop(image.qcow2(1 << 20, 4096, None, Preallocate::Off).unwrap()),
    }
    image.publish(false).unwrap();
    let make = || -> Box<dyn VirtioDevice> {
        // The one before may not have let go of its lock yet.
        let image = loop {
            if let Ok(chain) = Chain::open(&path, format, &Rules::new(Access::Write)) {
                break chain.image().unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let spec = BlockSpec {
            image,
            read_only: false,
            serial: "fuzzed".to_owned(),
            path: path.display().to_string(),
            queues: 2,
        };
        Box::new(Block::new(spec))
    };
    let Some(vm) = vm() else { return };
    let ram = Driver::ram();
    let mut driver = Some(Driver::new(&vm, &ram, make()));
    let mut lives = 0;
    fuzz(target, |random, clock| {
        lives += 1;
        if lives % LIVES == 0 {
            driver = None;
        }
        let driver = driver.get_or_insert_with(|| Driver::new(&vm, &ram, make()));
        driver.live(random, clock, &disk_request);
    });
    if let Some(driver) = driver {
        driver.report(target);
    }
}

#[test]
fn blk() {
    disk("blk", Format::Raw);
}

#[test]
fn blk_qcow2() {
    disk("blk_qcow2", Format::Qcow2);
}

/// `struct virtio_net_hdr` and a frame, room for one, or a command.
fn packet(random: &mut Random, queue: u16) -> Request {
    match queue {
        0 => Request { readable: Vec::new(), writable: lengths(random, 4, 2000) },
        1 => {
            let mut header = vec![0; 12];
            if random.once_in(2) {
                random.damage(&mut header);
            }
            let length = random.index(1600);
            let frame = random.bytes(length.min(200));
            Request { readable: vec![header, frame], writable: Vec::new() }
        }
        _ => {
            let command = [random.pick(&[0, 1, 4, 4]), random.u8() % 3];
            let mut readable = vec![command.to_vec()];
            readable.push(random.u16().to_le_bytes().to_vec());
            Request { readable, writable: vec![1] }
        }
    }
}

#[test]
fn net() {
    let (tap, mut socket) = match tap() {
        Ok(made) => made,
        Err(error) => return eprintln!("skipped: no tap: {error}"),
    };
    let spec = NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
    let make = || -> Box<dyn VirtioDevice> {
        Box::new(Net::new("fuzzed", spec, vec![tap.try_clone().unwrap()], Vec::new()).unwrap())
    };
    device("net", make, &packet, |random| {
        // Something to receive.
        for _ in 0..random.below(4) {
            let length = 14 + random.index(1480);
            let _ = socket.write(&vec![0xff; length]);
        }
    });
}
