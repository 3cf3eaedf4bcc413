use proptest::prelude::*;

use super::*;
use crate::spec::MemorySpec;

const MIB: u64 = 1 << 20;

fn loadable() -> acpi::Loadable {
    acpi::Loadable { script: b"script".to_vec(), rsdp: b"rsdp".to_vec(), tables: vec![7; 5000] }
}

fn device() -> FwCfg {
    let memory = MemorySpec { size: 4 * MIB, hugepages: None, prefault: false };
    let ram = Arc::new(GuestRam::new(&memory).unwrap());
    let items = vec![
        (Name::Key(5), vec![3, 0]),
        (Name::File("etc/e820"), (0..40).collect()),
        (Name::File("bootorder"), vec![b'x', 0]),
    ];
    FwCfg::new(ram, items, Some(b"once\nx\0".to_vec()), Box::new(|| Ok(loadable()))).unwrap()
}

fn select(device: &FwCfg, key: u16) {
    assert_eq!(device.write(SELECTOR, &key.to_le_bytes()), Action::None);
}

fn by_port(device: &FwCfg, count: usize) -> Vec<u8> {
    let byte = |_| {
        let mut byte = [0xff];
        device.read(DATA, &mut byte);
        byte[0]
    };
    (0..count).map(byte).collect()
}

/// Key and size of a file, as firmware finds it.
fn file(device: &FwCfg, name: &str) -> (u16, usize) {
    select(device, DIRECTORY);
    let count = u32::from_be_bytes(by_port(device, 4).try_into().unwrap());
    let entries: Vec<_> = (0..count).map(|_| by_port(device, 64)).collect();
    let entry =
        entries.iter().find(|entry| entry[8..].starts_with(&[name.as_bytes(), b"\0"].concat())).unwrap();
    let size = u32::from_be_bytes(entry[..4].try_into().unwrap());
    (u16::from_be_bytes(entry[4..6].try_into().unwrap()), size as usize)
}

/// Runs a descriptor at 64 KiB; its control word afterwards.
fn dma(device: &FwCfg, control: u32, length: u32, target: u64) -> u32 {
    let descriptor = [&control.to_be_bytes()[..], &length.to_be_bytes(), &target.to_be_bytes()].concat();
    device.ram.memory().write_slice(&descriptor, GuestAddress(0x1_0000)).unwrap();
    let _ = device.write(DMA_HIGH, &0_u32.to_be_bytes());
    let _ = device.write(DMA_LOW, &0x1_0000_u32.to_be_bytes());
    let mut word = [0; 4];
    device.ram.memory().read_slice(&mut word, GuestAddress(0x1_0000)).unwrap();
    u32::from_be_bytes(word)
}

#[test]
fn firmware_knows_it_by_its_signatures() {
    let device = device();
    select(&device, SIGNATURE);
    assert_eq!(by_port(&device, 6), *b"QEMU\0\0");
    select(&device, ID);
    assert_eq!(by_port(&device, 4), [3, 0, 0, 0]);
    let mut halves = [[0; 4]; 2];
    device.read(DMA_HIGH, &mut halves[0]);
    device.read(DMA_LOW, &mut halves[1]);
    assert_eq!(halves.as_flattened(), DMA_SIGNATURE);
    select(&device, 5);
    assert_eq!(by_port(&device, 3), [3, 0, 0]);
    select(&device, 0x4711);
    assert_eq!(by_port(&device, 2), [0, 0]);
}

#[test]
fn files_are_found_by_name_and_read_both_ways() {
    let device = device();
    let (key, size) = file(&device, "etc/e820");
    select(&device, key);
    let expected: Vec<u8> = (0..40).collect();
    assert_eq!((by_port(&device, 40), size), (expected.clone(), 40));
    assert_eq!(dma(&device, u32::from(key) << 16 | SELECT | READ, 10, 0x2_0000), 0);
    assert_eq!(dma(&device, SKIP, 5, 0), 0);
    assert_eq!(dma(&device, READ, 30, 0x2_000a), 0);
    let mut there = [0xee; 41];
    device.ram.memory().read_slice(&mut there, GuestAddress(0x2_0000)).unwrap();
    assert_eq!(there[..10], expected[..10]);
    assert_eq!(there[10..35], expected[15..]);
    assert_eq!(there[35..40], [0; 5], "zeroes behind the end");
}

#[test]
fn acpi_tables_fill_the_size_that_the_directory_said() {
    let device = device();
    let (key, size) = file(&device, acpi::TABLES_FILE);
    let (script, script_size) = file(&device, acpi::LOADER_FILE);
    assert_eq!((size, script_size), (12288, 6));
    select(&device, script);
    assert_eq!(by_port(&device, 6), b"script");
    select(&device, key);
    let bytes = by_port(&device, size);
    assert_eq!((&bytes[..5000], &bytes[5000..]), (&[7; 5000][..], &[0; 7288][..]));
}

#[test]
fn descriptors_that_cannot_be_done_say_so() {
    let device = device();
    for (control, length, target) in [
        (READ, 4096, 4 * MIB - 100),
        (READ, 16, u64::MAX - 3),
        (READ, LONGEST + 1, 0),
        (READ, u32::MAX, 0),
        (WRITE, 4, 0x2_0000),
    ] {
        assert_eq!(dma(&device, control, length, target), ERROR, "{control:#x} {length:#x} {target:#x}");
    }
    // One that lies nowhere is not answered.
    let _ = device.write(DMA_HIGH, &u32::MAX.to_be_bytes());
    let _ = device.write(DMA_LOW, &u32::MAX.to_be_bytes());
    device.reset(None);
    assert_eq!(by_port(&device, 4), *b"QEMU");
}

#[test]
fn another_boot_order_holds_until_the_next_reset() {
    let device = device();
    let order = |device: &FwCfg| {
        let (key, size) = file(device, BOOT_ORDER);
        select(device, key);
        by_port(device, size)
    };
    assert_eq!(order(&device), b"once\nx\0", "at the first start");
    device.reset(None);
    assert_eq!(order(&device), b"x\0");
    device.reset(Some(b"/another\0".to_vec()));
    assert_eq!(order(&device), b"/another\0");
    let (key, _) = file(&device, "etc/e820");
    select(&device, key);
    assert_eq!(by_port(&device, 3), [0, 1, 2], "the others stay");
    device.reset(None);
    assert_eq!(order(&device), b"x\0");
}

proptest! {
    #[test]
    fn no_access_can_panic(
        accesses in prop::collection::vec((0..PORTS, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..64),
        descriptor: [u8; 16],
    ) {
        let device = device();
        for (offset, mut data, write) in accesses {
            device.ram.memory().write_slice(&descriptor, GuestAddress(0x1_0000)).unwrap();
            if write {
                prop_assert_eq!(device.write(offset, &data), Action::None);
                let _ = device.write(DMA_LOW, &0x1_0000_u32.to_be_bytes());
            } else {
                device.read(offset, &mut data);
            }
        }
    }
}
