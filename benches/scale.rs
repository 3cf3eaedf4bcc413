//! What plan, inventory and file cost on a machine with 500 functions: `cargo bench -p throughway`. docs/benchmarks.md has what
//! came of it. Not a test: nothing here can fail for being slow.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use divan::{Bencher, black_box};
use throughway::config::{Config, Document, load};
use throughway::drift::drifts;
use throughway::explain::isolation;
use throughway::host::HostState;
use throughway::plan::{plan, whole};
use vfio::Sysfs;
use vfio::in_use::Usage;
use vfio::inventory::Inventory;

#[path = "../tests/golden/large.rs"]
mod large;

/// Eight ports with the 32 VFs each that the file has.
const MADE: [u16; 8] = [32; 8];

struct Machine {
    tree: PathBuf,
    host: HostState,
}

/// A machine, its tree on disk in cargo's folder for such files, where the next run replaces it.
fn machine(name: &str, vfs: [u16; 8]) -> Machine {
    let tree = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir_all(&tree).unwrap();
    let host = large::host(&tree, vfs);
    Machine { tree, host }
}

static FULL: LazyLock<Machine> = LazyLock::new(|| machine("bench-500", large::VFS));
static READY: LazyLock<Machine> = LazyLock::new(|| machine("bench-ready", MADE));
static EMPTY: LazyLock<Machine> = LazyLock::new(|| machine("bench-empty", [0; 8]));
static CONFIG: LazyLock<Config> = LazyLock::new(|| load(&document()).unwrap());

fn document() -> Document {
    Document { name: "box.yaml".into(), text: large::file() }
}

fn main() {
    // Made before anything is measured.
    for machine in [&FULL, &READY, &EMPTY] {
        LazyLock::force(machine);
    }
    assert_eq!(FULL.host.inventory.functions.len(), 500);
    assert_eq!(READY.host.vfs.values().map(Vec::len).sum::<usize>(), 256);
    divan::main();
}

/// 64 guests, 256 VFs of 8 ports, all of them yet to be made.
#[divan::bench]
fn plan_from_nothing(bencher: Bencher<'_, '_>) {
    bencher.bench(|| whole(black_box(&CONFIG), black_box(&EMPTY.host), &[]).unwrap());
}

/// The same where the VFs are there, each to be set and lent.
#[divan::bench]
fn plan_on_vfs_that_are_there(bencher: Bencher<'_, '_>) {
    bencher.bench(|| whole(black_box(&CONFIG), black_box(&READY.host), &[]).unwrap());
}

/// What `status --watch` compares, with everything to be told.
#[divan::bench]
fn drift_of_all(bencher: Bencher<'_, '_>) {
    bencher.bench(|| drifts(black_box(&CONFIG), black_box(&READY.host), &[]));
}

/// The start of one of the guests.
#[divan::bench]
fn plan_of_one_guest(bencher: Bencher<'_, '_>) {
    let (name, vm) = CONFIG.vms.last_key_value().unwrap();
    bencher.bench(|| plan(black_box(&CONFIG), black_box(&READY.host), name, vm).unwrap());
}

/// The file of 64 guests: parsed, with positions, and checked.
#[divan::bench]
fn file_of_64_guests(bencher: Bencher<'_, '_>) {
    let document = document();
    bencher.bench(|| load(black_box(&document)).unwrap());
}

/// 500 functions from a tree on disk.
#[divan::bench]
fn inventory_of_500(bencher: Bencher<'_, '_>) {
    let sysfs = Sysfs::at(&FULL.tree);
    bencher.bench(|| {
        let inventory = Inventory::scan(black_box(&sysfs));
        assert_eq!(inventory.functions.len(), 500);
        inventory
    });
}

/// And what the host uses them for.
#[divan::bench]
fn inventory_and_uses_of_500(bencher: Bencher<'_, '_>) {
    let sysfs = Sysfs::at(&FULL.tree);
    let proc = FULL.tree.join("proc");
    bencher.bench(|| {
        let inventory = Inventory::scan(black_box(&sysfs));
        let usage = Usage::read(&sysfs, &proc);
        inventory.functions.values().map(|function| usage.of(function).len()).sum::<usize>()
    });
}

/// Config space of one VF's way and group, among 500.
#[divan::bench]
fn isolation_of_one(bencher: Bencher<'_, '_>) {
    let sysfs = Sysfs::at(&FULL.tree);
    let address = "0000:50:0a.3".parse().unwrap();
    bencher.bench(|| isolation(black_box(&sysfs), &FULL.host.inventory, address));
}

/// The peer on the same tree: `lspci -D -nn -k -vmm`, with the start of its process.
#[divan::bench(sample_count = 50)]
fn lspci_of_500(bencher: Bencher<'_, '_>) {
    lspci(bencher, &FULL.tree);
}

/// What of that is the start of the process and the list of names.
#[divan::bench(sample_count = 50)]
fn lspci_of_none(bencher: Bencher<'_, '_>) {
    let none = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench-none");
    std::fs::create_dir_all(none.join("bus/pci/devices")).unwrap();
    lspci(bencher, &none);
}

fn lspci(bencher: Bencher<'_, '_>, tree: &std::path::Path) {
    let command = || {
        let mut command = Command::new("lspci");
        let path = format!("sysfs.path={}", tree.join("bus/pci").display());
        command.args(["-A", "linux-sysfs", "-O", &path, "-D", "-nn", "-k", "-vmm"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    match command().status() {
        Ok(status) if status.success() => bencher.bench(|| command().status().unwrap()),
        Ok(status) => eprintln!("lspci: {status}"),
        Err(error) => eprintln!("lspci is not there: {error}"),
    }
}
