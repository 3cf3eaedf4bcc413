use std::io;
use std::sync::Mutex;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{LAYOUT, NEXT, WRITE, describe, publish};
use super::super::{Chain, Memory, Ring};
use super::request::{Range, Request, Status};
use super::*;
use crate::disk::Extent;

const SIZE: usize = 1 << 20;
const ALL: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

/// A disk in memory that writes down what it was asked for.
struct Fake {
    bytes: Mutex<Vec<u8>>,
    asked: Mutex<Vec<String>>,
    flush_fails: bool,
}

impl DiskImage for Arc<Fake> {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        bytes.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + bytes.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.asked.lock().unwrap().push(format!("write {} at {offset}", bytes.len()));
        let offset = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.asked.lock().unwrap().push(format!("zeroes {length} at {offset} {unmap}"));
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.asked.lock().unwrap().push(format!("discard {length} at {offset}"));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.asked.lock().unwrap().push("flush".into());
        if self.flush_fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn extent(&self, _: u64) -> io::Result<(Extent, u64)> {
        Ok((Extent::Data, self.size()))
    }

    fn resize(&mut self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn block(flush_fails: bool, read_only: bool) -> (Block, Arc<Fake>) {
    let fake = Arc::new(Fake {
        bytes: Mutex::new((0..SIZE).map(|at| (at / 512).to_le_bytes()[0]).collect()),
        asked: Mutex::default(),
        flush_fails,
    });
    let image = Box::new(Arc::clone(&fake));
    (
        Block::new(BlockSpec { image, read_only, serial: "root".into(), path: "root.raw".into(), queues: 2 }),
        fake,
    )
}

fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// A chain of what the device reads, room for what it writes, and a status.
fn chain(memory: &Memory, reads: &[u8], writes: u32) -> Chain {
    memory.write_slice(reads, GuestAddress(0x10_0000)).unwrap();
    describe(memory, LAYOUT.descriptors, 0, 0x10_0000, u32::try_from(reads.len()).unwrap(), NEXT, 1);
    describe(memory, LAYOUT.descriptors, 1, 0x20_0000, writes, NEXT | WRITE, 2);
    describe(memory, LAYOUT.descriptors, 2, 0x30_0000, 1, WRITE, 0);
    memory.write_obj(0_u16, GuestAddress(LAYOUT.available + 2)).unwrap();
    memory.write_obj(0_u16, GuestAddress(LAYOUT.used + 2)).unwrap();
    publish(memory, LAYOUT, 0);
    Ring::new(0, LAYOUT, false, memory).unwrap().pop(memory).unwrap().unwrap()
}

fn read(block: &Block, memory: &Memory, chain: &Chain) -> Result<Request, Status> {
    Request::read(chain, memory, &block.disk, ALL).unwrap()
}

fn execute(block: &Block, memory: &Memory, chain: &Chain, write_through: bool) -> io::Result<()> {
    let request = read(block, memory, chain).unwrap();
    block.disk.execute(&request, chain, memory, &mut Vec::new(), write_through)
}

#[test]
fn what_is_read_comes_from_its_sector() {
    let ((block, _), memory) = (block(false, false), memory());
    let chain = chain(&memory, &header(0, 3), 1024);
    execute(&block, &memory, &chain, false).unwrap();
    let mut bytes = [0; 1025];
    memory.read_slice(&mut bytes, GuestAddress(0x20_0000)).unwrap();
    assert_eq!((bytes[0], bytes[511], bytes[512], bytes[1023], bytes[1024]), (3, 3, 4, 4, 0));
}

#[test]
fn without_flushes_each_write_is_durable() {
    let ((block, fake), memory) = (block(false, false), memory());
    let write = chain(&memory, &[header(1, 2), vec![7; 512]].concat(), 0);
    execute(&block, &memory, &write, false).unwrap();
    execute(&block, &memory, &write, true).unwrap();
    assert_eq!(*fake.asked.lock().unwrap(), ["write 512 at 1024", "write 512 at 1024", "flush"]);
    assert_eq!(fake.bytes.lock().unwrap()[1024..1536], [7; 512]);
}

#[test]
fn after_a_failed_flush_nothing_is_durable_any_more() {
    let ((block, fake), memory) = (block(true, false), memory());
    let flush = chain(&memory, &header(4, 0), 0);
    assert!(execute(&block, &memory, &flush, false).is_err());
    assert!(execute(&block, &memory, &flush, false).is_err());
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
}

#[test]
fn what_is_not_in_the_disk_is_refused() {
    let ((block, _), memory) = (block(false, false), memory());
    let last = (SIZE / 512) as u64 - 1;
    let ranges = |kind: u32, sector: u64, count: u32, flags: u32| {
        let range = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat();
        [header(kind, 0), range].concat()
    };
    let cases = [
        (header(0, last), 512, Ok(Request::Read(Range { offset: last * 512, length: 512 }))),
        (header(0, last), 1024, Err(Status::IoError)),
        (header(0, u64::MAX), 512, Err(Status::IoError)),
        (header(0, u64::MAX / 512), 512, Err(Status::IoError)),
        (header(0, 0), 513, Err(Status::IoError)),
        ([header(1, last), vec![0; 1024]].concat(), 0, Err(Status::IoError)),
        (header(8, 0), 20, Ok(Request::GetId)),
        (header(8, 0), 19, Err(Status::Unsupported)),
        (header(99, 0), 512, Err(Status::Unsupported)),
        (ranges(11, 0, 8, 0), 0, Ok(Request::Discard(vec![Range { offset: 0, length: 4096 }]))),
        (ranges(11, 0, 8, 1), 0, Err(Status::Unsupported)),
        (ranges(11, last, 8, 0), 0, Err(Status::IoError)),
        (
            ranges(13, 8, 8, 1),
            0,
            Ok(Request::WriteZeroes(vec![(Range { offset: 4096, length: 4096 }, true)])),
        ),
        (ranges(13, 8, 8, 2), 0, Err(Status::Unsupported)),
        (ranges(13, 0, u32::MAX, 0), 0, Err(Status::IoError)),
        (header(13, 0), 0, Err(Status::IoError)),
    ];
    for (reads, writes, wanted) in cases {
        let chain = chain(&memory, &reads, writes);
        assert_eq!(read(&block, &memory, &chain), wanted, "{reads:x?} {writes}");
    }
}

#[test]
fn a_read_only_disk_is_not_written_to() {
    let ((block, _), memory) = (block(false, true), memory());
    for kind in [1, 11, 13] {
        let chain = chain(&memory, &[header(kind, 0), vec![0; 512]].concat(), 0);
        assert_eq!(read(&block, &memory, &chain), Err(Status::IoError));
    }
    assert_eq!(block.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
}

#[test]
fn a_request_without_header_is_malformed() {
    let ((block, _), memory) = (block(false, false), memory());
    let chain = chain(&memory, &[0; 15], 0);
    assert!(Request::read(&chain, &memory, &block.disk, ALL).is_err());
}

#[test]
fn the_configuration_says_what_there_is() {
    let (block, _) = block(false, false);
    let mut config = [0; 64];
    block.read_config(0, &mut config);
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!((config[20..24].to_vec(), config[34]), (512_u32.to_le_bytes().to_vec(), 2));
    let mut beyond = [9; 8];
    block.read_config(u16::MAX, &mut beyond);
    assert_eq!(beyond, [9; 8]);
}

proptest! {
    /// Whatever the driver writes: within the disk, or refused.
    #[test]
    fn requests_stay_within_the_disk(
        kind in prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0_u64..4096, any::<u64>()],
        data in proptest::collection::vec(any::<u8>(), 0..2048),
        room in 0_u32..8192,
    ) {
        let ((block, _), memory) = (block(false, false), memory());
        let chain = chain(&memory, &[header(kind, sector), data].concat(), room);
        if let Ok(request) = read(&block, &memory, &chain) {
            let inside = |range: &Range| range.offset.checked_add(range.length).unwrap() <= SIZE as u64;
            match &request {
                Request::Read(range) | Request::Write(range) => prop_assert!(inside(range)),
                Request::Discard(ranges) => prop_assert!(ranges.iter().all(inside)),
                Request::WriteZeroes(ranges) => prop_assert!(ranges.iter().all(|(range, _)| inside(range))),
                Request::Flush | Request::GetId => {}
            }
            block.disk.execute(&request, &chain, &memory, &mut Vec::new(), false).unwrap();
        }
    }
}
