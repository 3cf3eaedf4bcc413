use std::io;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{LAYOUT, NEXT, WRITE, describe, publish};
use super::super::{Chain, Memory, Ring};
use super::drive::{Cdb, Drive, Reply, Sense};
use super::*;
use crate::disk::Extent;

/// 100 blocks, and one that is not whole.
const SIZE: u64 = 100 * 2048 + 512;

/// Each block of 2048 bytes is full of its number.
struct Fake;

impl DiskImage for Fake {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(offset + bytes.len() as u64 <= SIZE);
        for (byte, at) in bytes.iter_mut().zip(offset..) {
            *byte = (at / 2048).to_le_bytes()[0];
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("it is read only")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        panic!("it is read only")
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("it is read only")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extent(&self, _: u64) -> io::Result<(Extent, u64)> {
        Ok((Extent::Data, SIZE))
    }

    fn resize(&mut self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn medium() -> Medium {
    Medium { image: Box::new(Fake), path: "cd.iso".into() }
}

fn drive() -> Drive {
    Drive::new(medium(), "install")
}

fn asked(drive: &Drive, unit: u16, command: &[u8]) -> Reply {
    let mut cdb = [0; CDB];
    cdb[..command.len()].copy_from_slice(command);
    drive.execute(unit, Cdb(&cdb))
}

fn data(drive: &Drive, command: &[u8]) -> Vec<u8> {
    match asked(drive, 0, command) {
        Reply::Data(data) => data,
        other => panic!("{command:x?}: {other:?}"),
    }
}

fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
}

/// A chain of what the device reads, and room for what it writes.
fn chain(memory: &Memory, reads: &[u8], writes: u32) -> Chain {
    memory.write_slice(reads, GuestAddress(0x10_0000)).unwrap();
    describe(memory, LAYOUT.descriptors, 0, 0x10_0000, u32::try_from(reads.len()).unwrap(), NEXT, 1);
    describe(memory, LAYOUT.descriptors, 1, 0x20_0000, writes, WRITE, 0);
    memory.write_obj(0_u16, GuestAddress(LAYOUT.available + 2)).unwrap();
    publish(memory, LAYOUT, 0);
    Ring::new(0, LAYOUT, false, memory).unwrap().pop(memory).unwrap().unwrap()
}

fn header(target: u8, command: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, target, 0, 0];
    bytes.resize(19, 0);
    bytes.extend(command);
    bytes.resize(19 + CDB, 0);
    bytes
}

const SIZES: Sizes = Sizes { sense: 96, cdb: 32 };
const RESPONSE: u32 = 108;

#[test]
fn a_cd_drive_introduces_itself() {
    let drive = drive();
    let told = data(&drive, &[0x12, 0, 0, 0, 96]);
    assert_eq!((told[0], told[1], told.len()), (5, 0x80, 36));
    assert_eq!(&told[8..32], b"THRUWAY CD-ROM          ");
    assert_eq!(data(&drive, &[0x12, 1, 0x80, 0, 96]), b"\x05\x80\x00\x07install");
    assert_eq!(data(&drive, &[0x12, 1, 0, 0, 5]).len(), 5);
    assert_eq!(asked(&drive, 0, &[0x12, 1, 0xb0, 0, 96]), Reply::Refused(Sense::INVALID_FIELD));
    assert_eq!(asked(&drive, 3, &[0x12, 0, 0, 0, 1]), Reply::Data(vec![0x7f]));
    assert_eq!(asked(&drive, 3, &[0x00]), Reply::Refused(Sense::NO_SUCH_UNIT));
    assert_eq!(data(&drive, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16])[..4], [0, 0, 0, 8]);
}

#[test]
fn its_medium_has_blocks_of_2048_bytes() {
    let drive = drive();
    assert_eq!(data(&drive, &[0x25]), [0, 0, 0, 100, 0, 0, 8, 0]);
    let long = data(&drive, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]);
    assert_eq!((long.len(), &long[..12]), (32, [0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 8, 0].as_slice()));
    let read = Reply::Read { offset: 99 * 2048, length: 4096 };
    assert_eq!(asked(&drive, 0, &[0x28, 0, 0, 0, 0, 99, 0, 0, 2]), read);
    assert_eq!(asked(&drive, 0, &[0xa8, 0, 0, 0, 0, 99, 0, 0, 0, 2]), read);
    assert_eq!(asked(&drive, 0, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 0, 2]), read);
    assert_eq!(asked(&drive, 0, &[0x28, 0, 0, 0, 0, 99, 0, 0, 3]), Reply::Refused(Sense::OUT_OF_RANGE));
    assert_eq!(asked(&drive, 0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1]), Reply::Refused(Sense::WRITE_PROTECTED));
    assert_eq!(asked(&drive, 0, &[0xff]), Reply::Refused(Sense::UNKNOWN_COMMAND));
}

#[test]
fn it_has_one_track_of_data() {
    let drive = drive();
    let toc = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 101];
    assert_eq!(data(&drive, &[0x43, 0, 0, 0, 0, 0, 0, 0, 96]), toc);
    // Two seconds and 101 frames.
    assert_eq!(data(&drive, &[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 96])[8..], [0, 0, 3, 26]);
    assert_eq!(data(&drive, &[0x43, 0, 1, 0, 0, 0, 0, 0, 96])[..7], [0, 10, 1, 1, 0, 0x14, 1]);
    assert_eq!(data(&drive, &[0x43, 2, 2, 0, 0, 0, 0, 0, 96]).len(), 48);
    let current = data(&drive, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(u32::from_be_bytes(current[..4].try_into().unwrap()) as usize, current.len() - 4);
    assert_eq!(current[6..8], [0, 8]);
    assert_eq!(data(&drive, &[0x46, 2, 0, 3, 0, 0, 0, 1, 0])[8..10], [0, 3]);
    assert_eq!(data(&drive, &[0x51, 0, 0, 0, 0, 0, 0, 0, 64])[..3], [0, 32, 0x0e]);
    let pages = data(&drive, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0]);
    assert_eq!(usize::from(u16::from_be_bytes([pages[0], pages[1]])), pages.len() - 2);
    assert_eq!(data(&drive, &[0x1a, 0, 0x2a, 0, 128])[4..6], [0x2a, 0x12]);
}

#[test]
fn it_opens_unless_it_is_locked() {
    let drive = drive();
    let (open, load) = ([0x1b, 0, 0, 0, 2], [0x1b, 0, 0, 0, 3]);
    let medium = |drive: &Drive| data(drive, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6].to_vec();
    assert_eq!(asked(&drive, 0, &[0x1e, 0, 0, 0, 1]), Reply::Done);
    assert_eq!(asked(&drive, 0, &open), Reply::Refused(Sense::LOCKED));
    drive.unlock();
    assert_eq!(medium(&drive), [0, 2]);
    assert_eq!(asked(&drive, 0, &open), Reply::Done);
    assert_eq!((medium(&drive), medium(&drive)), (vec![3, 1], vec![0, 1]));
    for command in [0x00, 0x25, 0x28, 0x43] {
        assert_eq!(asked(&drive, 0, &[command]), Reply::Refused(Sense::NO_MEDIUM));
    }
    assert_eq!(asked(&drive, 0, &load), Reply::Done);
    assert_eq!((medium(&drive), asked(&drive, 0, &[0])), (vec![2, 2], Reply::Done));
}

#[test]
fn what_is_read_arrives_behind_the_response() {
    let (drive, memory) = (drive(), memory());
    let command = header(0, &[0x28, 0, 0, 0, 0, 99, 0, 0, 2]);
    let chain = chain(&memory, &command, RESPONSE + 8192);
    assert_eq!(request::serve(&drive, SIZES, &chain, &memory).unwrap().0, RESPONSE + 4096);
    let mut bytes = [0; 108 + 4096];
    memory.read_slice(&mut bytes, GuestAddress(0x20_0000)).unwrap();
    assert_eq!(
        (&bytes[..12], bytes[4..8].to_vec()),
        ([0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0].as_slice(), vec![0, 16, 0, 0])
    );
    // The last block is not whole: what is behind the image's end is zeroes.
    assert_eq!((bytes[108], bytes[108 + 2047], bytes[108 + 2048], bytes[108 + 2560]), (99, 99, 100, 0));
}

#[test]
fn what_goes_wrong_is_told() {
    let (drive, memory) = (drive(), memory());
    let response = |target: u8, command: &[u8], room: u32| {
        let chain = chain(&memory, &header(target, command), RESPONSE + room);
        request::serve(&drive, SIZES, &chain, &memory).unwrap();
        let mut bytes = [0; 30];
        memory.read_slice(&mut bytes, GuestAddress(0x20_0000)).unwrap();
        bytes
    };
    // No such target, no room, and a sense of 18 bytes.
    assert_eq!(response(1, &[0], 0)[10..12], [0, 3]);
    assert_eq!(response(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 2], 4095)[10..12], [0, 1]);
    let refused = response(0, &[0x2a], 0);
    assert_eq!((refused[0], refused[10], refused[12], refused[14], refused[24]), (18, 2, 0x70, 7, 0x27));
    let short = chain(&memory, &header(0, &[0]), RESPONSE - 1);
    assert!(request::serve(&drive, SIZES, &short, &memory).is_err());
}

#[test]
fn tasks_are_managed() {
    let memory = memory();
    let answered = |request: &[u8], room: u32| {
        memory.write_slice(&[0xff; 8], GuestAddress(0x20_0000)).unwrap();
        let chain = chain(&memory, request, room);
        request::control(&chain, &memory).map(|_| memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap())
    };
    let reset = |target: u8| [&[0, 0, 0, 0, 5, 0, 0, 0, 1, target], [0; 14].as_slice()].concat();
    assert_eq!((answered(&reset(0), 1).unwrap(), answered(&reset(1), 1).unwrap()), (0, 12));
    assert_eq!(answered(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 5).unwrap(), 0);
    assert_eq!(answered(&[9, 0, 0, 0], 1).unwrap(), 11);
    assert!(answered(&[1, 0, 0, 0], 1).is_err() && answered(&[1], 1).is_err());
}

#[test]
fn the_driver_chooses_how_long_its_parts_are() {
    let mut device = CdDrive::new(medium(), "install");
    let read = |device: &CdDrive, at: u16| {
        let mut word = [0; 4];
        device.read_config(at, &mut word);
        u32::from_le_bytes(word)
    };
    assert_eq!((read(&device, 0), read(&device, 20), read(&device, 24), read(&device, 100)), (1, 96, 32, 0));
    device.write_config(20, &252_u32.to_le_bytes());
    device.write_config(0, &9_u32.to_le_bytes());
    device.write_config(20, &[1]);
    assert_eq!((read(&device, 0), read(&device, 20)), (1, 252));
    device.reset();
    assert_eq!(read(&device, 20), 96);
}

proptest! {
    /// Whatever the driver sends: an answer, and nothing read that is not on the medium.
    #[test]
    fn no_command_breaks_anything(
        command in prop_oneof![
            Just(0x12_u8), Just(0x1a), Just(0x5a), Just(0x43), Just(0x46), Just(0x4a), Just(0x28), Just(0xa8), Just(0x88),
            any::<u8>(),
        ],
        rest in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..40),
        unit in any::<[u8; 8]>(),
        usual in any::<bool>(),
        room in 0_u32..20_000,
        sense in prop_oneof![Just(96_u32), 0_u32..300, any::<u32>()],
        cdb in prop_oneof![Just(32_u32), any::<u32>()],
    ) {
        let (drive, memory) = (drive(), memory());
        let unit = if usual { [1, 0, 0, 0, 0, 0, 0, 0] } else { unit };
        let sent = [&unit[..], &[0; 11], &[command], &rest].concat();
        let chain = chain(&memory, &sent, room.max(1));
        if let Ok((written, error)) = request::serve(&drive, Sizes { sense, cdb }, &chain, &memory) {
            prop_assert!(written <= room && error.is_none());
        }
        let _ = request::control(&chain, &memory);
    }
}

const READY: &[u8] = &[0x00];
const EVENTS: &[u8] = &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];

#[test]
fn a_medium_that_is_changed_from_outside_is_told_once() {
    let drive = drive();
    assert_eq!(drive.change(None, false), Ok(()));
    assert_eq!(asked(&drive, 0, READY), Reply::Refused(Sense::NO_MEDIUM));
    assert_eq!(data(&drive, EVENTS)[4..6], [3, 1]);
    // Nothing lies on the tray that is closed now.
    assert_eq!(asked(&drive, 0, &[0x1b, 0, 0, 0, 3, 0]), Reply::Done);
    assert_eq!(asked(&drive, 0, READY), Reply::Refused(Sense::EMPTY));
    assert_eq!(data(&drive, EVENTS)[4..6], [3, 0]);
    assert_eq!(drive.change(Some(medium()), false), Ok(()));
    assert_eq!(data(&drive, EVENTS)[4..6], [2, 2]);
    assert_eq!(asked(&drive, 0, READY), Reply::Refused(Sense::MEDIUM_CHANGED));
    assert_eq!(asked(&drive, 0, READY), Reply::Done);
    assert_eq!(data(&drive, EVENTS)[4..6], [0, 2]);
}

#[test]
fn a_drive_that_the_guest_has_locked_is_left_to_it_unless_forced() {
    let drive = drive();
    asked(&drive, 0, &[0x1e, 0, 0, 0, 1, 0]);
    assert_eq!(drive.change(None, false), Err(Locked));
    assert_eq!(drive.change(Some(medium()), false), Err(Locked));
    assert_eq!(asked(&drive, 0, READY), Reply::Done);
    // The guest is asked to let go, once.
    assert_eq!(data(&drive, EVENTS)[4..6], [1, 2]);
    assert_eq!(data(&drive, EVENTS)[4..6], [0, 2]);
    assert_eq!(drive.change(None, true), Ok(()));
    assert_eq!(asked(&drive, 0, READY), Reply::Refused(Sense::NO_MEDIUM));
    let mut bytes = [0; 4];
    assert_eq!(drive.read(&mut bytes, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
}
