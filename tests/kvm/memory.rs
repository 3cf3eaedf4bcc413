//! RAM is where the memory map says, to its first and last bytes.

use crate::image;
use crate::machine::{Guest, available};

const MIB: u64 = 1 << 20;
/// What of the first MiB the map gives to firmware.
const FIRMWARE: u64 = 0x10_0000 - 0x9_fc00;

#[test]
fn all_sizes_have_their_first_and_last_pages() {
    if !available() {
        return;
    }
    // Up to 2 GiB in one piece, beyond it another one at 4 GiB.
    let sizes = [
        (16_u64, 0x100_0000_u64),
        (17, 0x110_0000),
        (2048, 0x8000_0000),
        (2049, 0x1_0010_0000),
        (3072, 0x1_4000_0000),
    ];
    for (size, end) in sizes {
        for kernel in [image::elf(), image::bzimage()] {
            let guest = Guest { memory: format!("{size}MiB"), kernel, ..Guest::new("test=memory") };
            let ended = guest.run();
            assert_eq!(ended.code, Some(0), "{size} MiB: {}", ended.log);
            let says = |line: &str| ended.console.lines().any(|said| said == line);
            assert!(says(&format!("ram: {}", size * MIB - FIRMWARE)), "{size} MiB: {}", ended.console);
            assert!(says(&format!("page {:x} holds", end - 8)), "{size} MiB: {}", ended.console);
            assert!(says("range e0000000 to f0000000 kind 2"), "{size} MiB: {}", ended.console);
            assert!(!ended.console.contains("does not hold"), "{size} MiB: {}", ended.console);
        }
    }
}

#[test]
fn the_initial_ram_disk_is_whole_and_where_the_guest_is_told() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for size in [1, 4095, 4096, 3_000_001_u64] {
        let bytes: Vec<u8> = (0..size).map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()[2]).collect();
        let sum: u64 =
            bytes.iter().zip((1..=251).cycle()).map(|(byte, factor)| u64::from(*byte) * factor).sum();
        let path = folder.path().join("initrd");
        std::fs::write(&path, bytes).unwrap();
        for kernel in [image::elf(), image::bzimage()] {
            let ended = Guest { kernel, initrd: Some(path.clone()), ..Guest::new("test=initrd") }.run();
            let said = format!("initrd of {size} bytes, sum {sum}\n");
            assert_eq!((ended.code, ended.console), (Some(0), said), "{}", ended.log);
        }
    }
}

#[test]
fn memory_touched_before_is_the_same_memory() {
    if !available() {
        return;
    }
    let ended = Guest { memory: "{size: 64MiB, prefault: true}".into(), ..Guest::new("test=memory") }.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.console.contains("page 3fffff8 holds"), "{}", ended.console);
}

#[test]
fn memory_lies_on_the_node_that_the_file_names() {
    if !available() {
        return;
    }
    // Every host has a node 0, or no numbers at all.
    for (numa, policy) in [("numa: 0", "bind:0"), ("numa: auto", "prefer:0")] {
        let cpus = "{count: 1, cpuset: \"0\"}";
        let memory = format!("{{size: 16MiB, {numa}}}");
        let mut guest = Guest { cpus, memory, ..Guest::new("test=obey") }.start();
        guest.wait_for("ready");
        let Some(maps) = guest.numa_maps() else { return eprintln!("skipped: no numa_maps") };
        let ram =
            maps.lines().find(|line| line.contains(policy)).unwrap_or_else(|| panic!("{policy}: {maps}"));
        assert!(ram.contains(" N0="), "{ram}");
        guest.send(b"q");
        assert_eq!(guest.end().code, Some(0));
    }
}
