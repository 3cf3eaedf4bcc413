//! Images of strangers: headers and tables that were tampered with.

use std::fs::{self, File};

use throughway_vmm::disk::{Access, Chain, Format, NewImage, Preallocate, Qcow2Header, Rules};

use super::random::Random;
use super::session::fuzz;

/// A sound image with something in it.
fn image() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let new = NewImage::begin(&path).unwrap();
    let disk = new.qcow2(1 << 20, 4096, None, Preallocate::Off).unwrap();
    for at in [0, 0x1_0000, 0xf_f000] {
        disk.write_at(&[0x55; 0x1000], at).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    new.publish(false).unwrap();
    fs::read(path).unwrap()
}

/// A field of the header, or any byte.
fn tamper(bytes: &mut Vec<u8>, random: &mut Random, header_alone: bool) {
    for _ in 0..=random.below(4) {
        let length = if header_alone { 0x200 } else { bytes.len() };
        let at = if random.once_in(2) { 4 * random.index(27) } else { random.index(length) };
        let end = bytes.len().min(at + 16);
        random.damage(&mut bytes[at..end]);
    }
    if random.once_in(16) {
        bytes.truncate(random.index(bytes.len()));
    }
}

#[test]
fn qcow2_header() {
    let sound = image();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fuzz("qcow2_header", |random, clock| {
        let mut bytes = sound[..0x1000].to_vec();
        tamper(&mut bytes, random, true);
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        if let Ok(header) = clock.bound("Reading a header", || Qcow2Header::read(&file)) {
            assert!((9..=21).contains(&header.cluster_bits) && header.refcount_order <= 6);
        }
    });
}

#[test]
fn qcow2_image() {
    let sound = image();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fuzz("qcow2_image", |random, clock| {
        let mut bytes = sound.clone();
        tamper(&mut bytes, random, false);
        fs::write(&path, &bytes).unwrap();
        let access = random.pick(&[Access::Read, Access::Write]);
        let opened = clock.bound("Opening an image", || {
            Chain::open(&path, Format::Qcow2, &Rules::new(access)).and_then(Chain::image)
        });
        let Ok(disk) = opened else { return };
        for _ in 0..8 {
            let at = random.below(disk.size().max(1));
            let mut data = vec![0xaa; random.index(0x3000)];
            let _ = clock.bound("Reading", || disk.read_at(&mut data, at));
            if access == Access::Write {
                let _ = clock.bound("Writing", || disk.write_at(&data, at));
                let length = u64::try_from(data.len()).unwrap();
                let _ = clock.bound("Zeroing", || disk.write_zeroes(at, length, true));
                let _ = clock.bound("Discarding", || disk.discard(at, length));
            }
            let _ = clock.bound("Looking", || disk.extent(at));
        }
        let _ = clock.bound("Flushing", || disk.flush());
    });
}
