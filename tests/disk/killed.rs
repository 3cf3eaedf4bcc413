//! A guest that writes while its machine is killed: what it was told is durable is there, each time.
//!
//! The guest (`tests/kvm/guest/disk.c`) writes blocks in batches of eight, flushes, and says the number of the first write
//! that is not durable yet. Where and what it writes follows from that number alone, so that all which may be on the disk
//! afterwards can be told: of each block what it had last when that was said, or what one of the eight writes that may
//! have been under way makes of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use vmm::disk::{Access, Chain, DiskImage, Format, Rules};

use crate::machine::{self, Guest};
use crate::tools;

const BLOCK: u64 = 4096;
const BATCH: u64 = 8;
const STRIDE: u64 = 1777;
/// 64 MiB. More than eight strides, so that no batch writes a block twice.
const BLOCKS: u64 = 16384;
/// Writes of one round are numbered from a multiple of this.
const ROUND: u64 = 1 << 24;

/// What is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zeroes,
    /// By the write of this number.
    Written(u64),
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn block_of(n: u64) -> u64 {
    mix(n / BATCH).wrapping_add(n % BATCH * STRIDE) % BLOCKS
}

fn content_of(n: u64) -> Content {
    if n % 7 == 3 { Content::Zeroes } else { Content::Written(n) }
}

fn bytes_of(content: Content) -> Vec<u8> {
    match content {
        Content::Zeroes => vec![0; 4096],
        Content::Written(n) => (0..BLOCK / 8).flat_map(|i| mix(n).wrapping_add(i).to_le_bytes()).collect(),
    }
}

/// The disk as it must be; blocks that were never written are zeroes.
#[derive(Default)]
struct Model(BTreeMap<u64, Content>);

impl Model {
    fn at(&self, block: u64) -> Content {
        self.0.get(&block).copied().unwrap_or(Content::Zeroes)
    }

    /// Takes in the writes of a round that were durable, and finds out which of those under way were done.
    fn compare(&mut self, image: &dyn DiskImage, first: u64, durable: u64) {
        for n in first..durable {
            self.0.insert(block_of(n), content_of(n));
        }
        let mut bytes = vec![0; 4096];
        for n in durable..durable + BATCH {
            let block = block_of(n);
            image.read_at(&mut bytes, block * BLOCK).unwrap();
            if bytes == bytes_of(content_of(n)) {
                self.0.insert(block, content_of(n));
            }
        }
        for block in 0..BLOCKS {
            image.read_at(&mut bytes, block * BLOCK).unwrap();
            let wanted = self.at(block);
            assert!(
                bytes == bytes_of(wanted),
                "block {block} is not {wanted:?}, with writes durable from {first} to {durable}; it begins {:x?}",
                &bytes[..16]
            );
        }
    }
}

/// The last number that the guest has said.
fn durable(console: &str) -> Option<u64> {
    let complete = &console[..console.rfind('\n')?];
    complete.lines().rev().find_map(|line| line.strip_prefix("durable ")?.trim().parse().ok())
}

fn rounds() -> u64 {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

fn killed_again_and_again(format: Format) {
    if !tools::available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let name = format!("disk.{}", format.name());
    tools::run(folder.path(), &format!("throughway image create {name} {}MiB", (BLOCKS * BLOCK) >> 20));
    let path = folder.path().join(&name);
    let mut model = Model::default();
    let (mut written, mut in_midst) = (0, 0);
    for round in 0..rounds() {
        let first = round * ROUND;
        let mut guest = Guest::new(&format!("test=disk blocks={BLOCKS} first={first}"));
        guest.disks =
            format!("{{root: {{path: \"{}\", format: {}, queues: 1}}}}", path.display(), format.name());
        let mut running = guest.start();
        running.wait_for("durable ");
        // Anywhere in a batch, and after a few or many of them.
        std::thread::sleep(Duration::from_micros(mix(round) % 60_000));
        let console = running.kill();
        let until = durable(&console).unwrap_or(first);
        assert!(!console.contains("status") && !console.contains("all"), "{console}");

        let image = open(&path, format);
        model.compare(&*image, first, until);
        drop(image);
        written += until - first;
        let was_written = |n: u64| matches!(model.at(block_of(n)), Content::Written(by) if by == n);
        in_midst += u64::from((until..until + BATCH).any(was_written));
        if format == Format::Qcow2 {
            no_errors(folder.path(), &name);
        }
    }
    eprintln!(
        "{}: {} rounds, {written} durable writes, {in_midst} kills within a batch",
        format.name(),
        rounds()
    );
    assert!(written > 0);
}

fn open(path: &Path, format: Format) -> Box<dyn DiskImage> {
    // Of a guest that was killed, the kernel ends the writes that are under way first.
    let deadline = std::time::Instant::now() + machine::PATIENCE;
    loop {
        match Chain::open(path, format, &Rules::new(Access::Read)) {
            Err(vmm::disk::Error::InUse { .. }) if std::time::Instant::now() < deadline => {}
            chain => return chain.unwrap().image().unwrap(),
        }
    }
}

/// Wasted clusters are no error: 3 is what qemu-img says of them.
fn no_errors(folder: &Path, name: &str) {
    let output =
        std::process::Command::new("qemu-img").args(["check", name]).current_dir(folder).output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {}", String::from_utf8_lossy(&output.stdout));
    tools::run(folder, &format!("throughway image check {name}"));
}

#[test]
fn what_is_durable_on_a_raw_disk_survives_the_machine() {
    killed_again_and_again(Format::Raw);
}

#[test]
fn what_is_durable_on_a_qcow2_disk_survives_the_machine() {
    killed_again_and_again(Format::Qcow2);
}

#[test]
fn a_disk_that_ends_well_is_without_waste() {
    if !tools::available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    tools::run(folder.path(), "throughway image create disk.qcow2 64MiB");
    let path = folder.path().join("disk.qcow2");
    let mut guest = Guest::new(&format!("test=disk blocks={BLOCKS} count=400"));
    guest.disks = format!("{{root: {{path: \"{}\", format: qcow2}}}}", path.display());
    let ended = guest.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.console.contains("durable 400\nall\n"), "{}", ended.console);
    tools::run(folder.path(), "qemu-img check disk.qcow2");
    Model::default().compare(&*open(&path, Format::Qcow2), 0, 400);
}

#[test]
fn bad_disks_are_one_clear_error() {
    if !tools::available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    tools::run(at, "throughway image create disk.raw 64MiB");
    std::fs::write(at.join("text"), "no image").unwrap();
    tools::run(at, "qemu-img create -q -f qcow2 -u -b loop.qcow2 -F qcow2 other.qcow2 1M");
    tools::run(at, "qemu-img create -q -f qcow2 -u -b other.qcow2 -F qcow2 loop.qcow2 1M");
    tools::run(at, "qemu-img create -q -f qcow2 -u -b /etc/hostname -F raw away.qcow2 1M");
    let started = |disk: &str| {
        let mut guest = Guest::new("test=hello");
        guest.disks = format!("{{cd: {{{}}}}}", disk.replace("HERE", &at.display().to_string()));
        guest.run()
    };
    let held = Chain::open(&at.join("disk.raw"), Format::Raw, &Rules::new(Access::Write)).unwrap();
    let cases = [
        (
            "path: HERE/missing.iso, read-only: true",
            "Opening the image HERE/missing.iso: No such file or directory",
        ),
        ("path: HERE/disk.raw", "HERE/disk.raw is in use by another guest or tool"),
        ("path: HERE/text, format: qcow2", "HERE/text is not a qcow2 image"),
        ("path: HERE, read-only: true", "HERE is neither a file nor a block device"),
        ("path: HERE/loop.qcow2, format: qcow2", "chain of backing files is a loop"),
        (
            "path: HERE/away.qcow2, format: qcow2",
            "HERE/away.qcow2 stands on /etc/hostname, which is outside HERE",
        ),
    ];
    for (disk, why) in cases {
        let ended = started(disk);
        let why = why.replace("HERE", &at.display().to_string());
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains(": error: ") && ended.log.contains(&why), "{why}: {}", ended.log);
        assert_eq!(ended.log.matches("error: ").count(), 1, "{}", ended.log);
    }
    drop(held);
    assert_eq!(started("path: HERE/disk.raw").code, Some(0));
}

#[test]
fn a_full_host_makes_the_disk_wait() {
    if !tools::available() || !machine::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let small = at.join("small");
    std::fs::create_dir(&small).unwrap();
    let _mounted = Mounted::tmpfs(&small, "size=2m");
    for format in [Format::Raw, Format::Qcow2] {
        let name = format!("small/disk.{}", format.name());
        tools::run(at, &format!("throughway image create {name} 64MiB"));
        let path = at.join(&name);
        let mut guest = Guest::new(&format!("test=disk blocks={BLOCKS} count=2000"));
        guest.disks = format!("{{root: {{path: \"{}\", format: {}}}}}", path.display(), format.name());
        let mut running = guest.start();
        let line = running.wait_for_log("the host has no space left for ");
        let wanted = format!("{}; the guest's disk waits until there is: free some there", path.display());
        assert!(line.contains("ERROR") && line.contains(&wanted), "{line}");
        tools::run(at, &format!("mount -o remount,size=200m {}", small.display()));
        running.wait_for_log("there is space on the host again; the guest's disk goes on");
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert!(ended.console.contains("durable 2000\nall\n"), "{}", ended.console);
        assert!(!ended.console.contains("status"), "{}", ended.console);
        Model::default().compare(&*open(&path, format), 0, 2000);
        if format == Format::Qcow2 {
            no_errors(at, &name);
        }
        std::fs::remove_file(&path).unwrap();
        tools::run(at, &format!("mount -o remount,size=2m {}", small.display()));
    }
}

/// A filesystem in memory that is taken away again.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        tools::run(at, &format!("mount -t tmpfs -o {options} none {}", at.display()));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
