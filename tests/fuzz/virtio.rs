//! The virtio devices, under a driver that keeps no rule for long.

use std::io::Write;
use std::sync::Arc;

use throughway_vmm::control::Recent;
use throughway_vmm::disk::{Access, Chain, Format, NewImage, Preallocate, Rules};
use throughway_vmm::legacy::ConsoleOutput;
use throughway_vmm::testing::tap;
use throughway_vmm::virtio::VirtioDevice;
use throughway_vmm::virtio::blk::{Block, BlockSpec};
use throughway_vmm::virtio::console::{Console, Keyboard};
use throughway_vmm::virtio::net::{Net, NetSpec};
use throughway_vmm::virtio::rng::Rng;
use throughway_vmm::virtio::scsi::{CdDrive, Medium};

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
    let (shown, reader) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&shown, true).unwrap();
    let keyboard = Arc::new(Keyboard::new().unwrap());
    let output = ConsoleOutput::new(Some(reader), None, &Arc::new(Recent::new().unwrap())).unwrap();
    let requests = |random: &mut Random, queue| match queue {
        0 => Request { readable: Vec::new(), writable: lengths(random, 4, 5000) },
        _ => {
            let length = random.index(300);
            Request { readable: vec![random.bytes(length), random.bytes(length % 7)], writable: Vec::new() }
        }
    };
    let make = || -> Box<dyn VirtioDevice> {
        Box::new(Console::new(Arc::clone(&keyboard), Arc::clone(&output)).unwrap())
    };
    device("console", make, &requests, |random| {
        // A reader who now and then takes something, and one who types.
        let mut room = vec![0; random.index(0x8000)];
        let _ = rustix::io::read(&shown, &mut room);
        if random.once_in(2) {
            let length = random.index(100);
            keyboard.type_in(&random.bytes(length));
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

/// What a CD drive is asked, reads more often than the rest.
const SCSI_COMMANDS: [u8; 22] = [
    0x00, 0x03, 0x08, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x28, 0x2a, 0x43, 0x46, 0x4a, 0x51, 0x5a,
    0x88, 0x9e, 0xa0, 0xa8, 0xbd,
];

/// Commands that a CD drive knows and others, to its unit and others; task management; room for events.
fn scsi_request(random: &mut Random, queue: u16) -> Request {
    let target = if random.once_in(12) { random.u8() } else { 0 };
    let unit = [1, target, 0x40, u8::from(random.once_in(12))];
    match queue {
        0 => {
            let mut header = random.pick(&[0_u32, 0, 1, 2, 3]).to_le_bytes().to_vec();
            header.extend((random.u32() % 8).to_le_bytes());
            header.extend(unit);
            header.extend([0; 12]);
            Request { readable: vec![header], writable: vec![random.pick(&[0, 1, 5, 8])] }
        }
        1 => Request { readable: Vec::new(), writable: vec![16] },
        _ => {
            let mut header = unit.to_vec();
            header.resize(19, 0);
            let mut command = random.bytes(32);
            if !random.once_in(8) {
                // A short transfer from near the start, where it is one.
                command[2..16].fill(0);
                command[5] = random.u8();
                command[random.pick(&[8, 9, 13])] = random.u8() % 64;
            }
            command[0] = if random.once_in(16) { random.u8() } else { random.pick(&SCSI_COMMANDS) };
            header.extend(command);
            let sense = random.pick(&[12, 108, 108, 108, 108]);
            Request {
                readable: vec![header],
                writable: vec![sense, u32::try_from(2048 * random.index(40)).unwrap()],
            }
        }
    }
}

#[test]
fn scsi() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cd.iso");
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    let make = || -> Box<dyn VirtioDevice> {
        let chain = Chain::open(&path, Format::Raw, &Rules::new(Access::Read)).unwrap();
        Box::new(CdDrive::new(
            Medium { image: chain.image().unwrap(), path: path.display().to_string() },
            "fuzzed",
        ))
    };
    device("scsi", make, &scsi_request, |_| {});
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
