//! What is explained of functions in recorded trees: the kernel's groups, and what config space says is their cause.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use throughway::config::{Config, GroupScope};
use throughway::explain::{Explanation, Facts, explain, isolation};
use throughway::host::HostState;
use vfio::PciAddress;
use vfio::inventory::{Function, Inventory, Modules};
use vfio::{Sysfs, recorded};

use super::{compared, large};

/// Vendor and device as numbers: names depend on the list that this machine has.
fn without_names(explanation: &mut Explanation, inventory: &Inventory) {
    let ids = |address: &PciAddress| {
        let function: &Function = inventory.function(*address).unwrap();
        format!("{:04x}:{:04x}", function.vendor, function.device)
    };
    explanation.name = ids(&explanation.function.address);
    for hop in &mut explanation.from_root {
        hop.name = ids(&hop.address);
    }
    for neighbour in &mut explanation.shares_group_with {
        neighbour.name = ids(&neighbour.address);
    }
}

fn explained(text: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    let asked = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("# {key}: ")));
    match asked("machine") {
        Some("large") => recorded::write(root.path(), &recorded::large(large::VFS)).unwrap(),
        Some(other) => panic!("no machine {other}"),
        None => recorded::write(root.path(), text).unwrap(),
    }
    let sysfs = Sysfs::at(root.path());
    let mut inventory = Inventory::scan(&sysfs);
    let modules = Modules::read(&Path::new(super::ROOT).join("trees"));
    inventory.look_closely(&sysfs, &modules, None);
    let host = HostState { inventory, ..HostState::default() };
    let mut found = String::new();
    for address in asked("explain").unwrap().split_whitespace() {
        let address: PciAddress = address.parse().unwrap();
        let facts = Facts::read(&sysfs, &root.path().join("proc"), address);
        let isolation = isolation(&sysfs, &host.inventory, address);
        let config = Config::default();
        let mut it = explain(&config, &host, &isolation, &facts, address, GroupScope::Single).unwrap();
        without_names(&mut it, &host.inventory);
        writeln!(found, "{it}\n").unwrap();
    }
    found
}

#[test]
fn every_tree_is_explained() {
    let folder = Path::new(super::ROOT).join("trees");
    let (mut wrong, mut count) = (BTreeMap::new(), 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "tree") {
            let found = explained(&fs::read_to_string(&path).unwrap());
            count += 1;
            if let Some(difference) = compared(&path.with_extension("txt"), &found) {
                wrong.insert(path, difference);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 10, "{count}");
}
