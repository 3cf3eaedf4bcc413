use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const ROOT_PORT: u8 = 4;
const UPSTREAM: u8 = 5;
const DOWNSTREAM: u8 = 6;
const TO_CONVENTIONAL: u8 = 7;

/// Config space of a PCI Express function; `acs` is its capability and control register.
fn config(kind: u8, multifunction: bool, acs: Option<(u16, u16)>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[0x06] = 1 << 4;
    bytes[0x0e] = u8::from(multifunction) << 7;
    bytes[0x34] = 0x40;
    bytes[0x40..0x42].copy_from_slice(&[0x05, 0x50]);
    bytes[0x50..0x54].copy_from_slice(&[0x10, 0, kind << 4 | 2, 0]);
    if let Some((capability, control)) = acs {
        // Advanced error reporting stands before it.
        bytes[0x100..0x104].copy_from_slice(&0x1401_0001_u32.to_le_bytes());
        bytes[0x140..0x144].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
        bytes[0x144..0x146].copy_from_slice(&capability.to_le_bytes());
        bytes[0x146..0x148].copy_from_slice(&control.to_le_bytes());
    }
    bytes
}

/// A function below others, `pci0000:00/0000:00:01.0/0000:01:00.0`, in group 1.
fn add(root: &Path, path: &str, config: &[u8]) {
    let folder = root.join("devices/pci0000:00").join(path);
    fs::create_dir_all(&folder).unwrap();
    for (name, value) in [("vendor", "0x8086"), ("device", "0x10c9"), ("class", "0x060400")] {
        fs::write(folder.join(name), value).unwrap();
    }
    fs::write(folder.join("config"), config).unwrap();
    symlink("../kernel/iommu_groups/1", folder.join("iommu_group")).unwrap();
    let devices = root.join("bus/pci/devices");
    fs::create_dir_all(&devices).unwrap();
    symlink(&folder, devices.join(folder.file_name().unwrap())).unwrap();
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// Causes for `who` in a tree where all that is named shares one group.
fn explained(tree: &[(&str, Vec<u8>)], who: &str) -> BTreeMap<Cause, Vec<PciAddress>> {
    let root = tempfile::tempdir().unwrap();
    for (path, config) in tree {
        add(root.path(), path, config);
    }
    let sysfs = Sysfs::at(root.path());
    let inventory = Inventory::scan(&sysfs);
    let isolation = inventory
        .functions
        .keys()
        .filter_map(|address| Some((*address, Isolation::read(&sysfs, *address)?)))
        .collect();
    causes(&inventory, &isolation, address(who))
}

#[test]
fn the_registers_are_found_behind_others() {
    let bytes = config(ROOT_PORT, false, Some((0x5d, 0x1d)));
    let read = |at: u64, data: &mut [u8]| {
        let at = usize::try_from(at).ok()?;
        data.copy_from_slice(bytes.get(at..at + data.len())?);
        Some(())
    };
    let found = Isolation::parse(read).unwrap();
    assert_eq!(found.acs, Some(Acs { capability: 0x5d, control: 0x1d }));
    assert_eq!((found.kind, found.gap()), (Kind::RootPort, None));
}

#[test]
fn a_port_without_acs_is_the_cause_for_all_behind_it() {
    let tree = [
        ("0000:00:01.0", config(ROOT_PORT, false, None)),
        ("0000:00:01.0/0000:01:00.0", config(0, true, Some((0, 0)))),
        ("0000:00:01.0/0000:01:00.1", config(0, true, Some((0, 0)))),
    ];
    let found = explained(&tree, "01:00.0");
    let port = Cause::Port { port: address("00:01.0"), gap: Gap::Absent };
    assert_eq!(found, BTreeMap::from([(port, vec![address("00:01.0"), address("01:00.1")])]));
}

#[test]
fn functions_of_one_device_are_told_from_its_port() {
    let tree = [
        ("0000:00:01.0", config(ROOT_PORT, false, Some((0x1d, 0x1d)))),
        ("0000:00:01.0/0000:01:00.0", config(0, true, None)),
        ("0000:00:01.0/0000:01:00.1", config(0, true, None)),
    ];
    let found = explained(&tree, "01:00.1");
    assert_eq!(found.get(&Cause::Functions(address("01:00.0"))), Some(&vec![address("01:00.0")]));
}

#[test]
fn a_switch_whose_acs_is_off_joins_what_is_below_it() {
    let switch = "0000:00:01.0/0000:01:00.0";
    let (near, far) = (format!("{switch}/0000:02:01.0"), format!("{switch}/0000:02:02.0"));
    let (disk, card) = (format!("{near}/0000:03:00.0"), format!("{far}/0000:04:00.0"));
    let tree = [
        ("0000:00:01.0", config(ROOT_PORT, false, Some((0x1d, 0x1d)))),
        (switch, config(UPSTREAM, false, None)),
        (&near, config(DOWNSTREAM, false, Some((0x1d, 0)))),
        (&far, config(DOWNSTREAM, false, Some((0x1d, 0x1d)))),
        (&disk, config(0, false, None)),
        (&card, config(0, false, None)),
    ];
    let found = explained(&tree, "04:00.0");
    let off = Cause::Port { port: address("02:01.0"), gap: Gap::Off };
    assert!(found.get(&off).unwrap().contains(&address("03:00.0")));
}

#[test]
fn a_conventional_bus_has_one_requester() {
    let bridge = "0000:00:1e.0";
    let tree = [
        (bridge, config(TO_CONVENTIONAL, false, None)),
        ("0000:00:1e.0/0000:05:01.0", vec![0; 64]),
        ("0000:00:1e.0/0000:05:02.0", vec![0; 64]),
    ];
    let found = explained(&tree, "05:01.0");
    let bus = Cause::Port { port: address("00:1e.0"), gap: Gap::Conventional };
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [bus]);
}

#[test]
fn a_conventional_device_never_keeps_its_functions_apart() {
    let mut first = vec![0; 64];
    first[0x0e] = 0x80;
    let tree = [("0000:00:1f.0", first), ("0000:00:1f.2", vec![0; 64])];
    let found = explained(&tree, "00:1f.2");
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [Cause::Functions(address("00:1f.0"))]);
}

#[test]
fn what_cannot_be_read_is_not_guessed_and_what_was_read_is_the_kernels_to_know() {
    let short = config(0, false, None)[..64].to_vec();
    let tree = [("0000:00:02.0", short.clone()), ("0000:00:03.0", short)];
    assert_eq!(explained(&tree, "00:02.0").into_keys().collect::<Vec<_>>(), [Cause::Unknown]);
    let tree = [("0000:00:02.0", config(9, false, None)), ("0000:00:03.0", config(9, false, None))];
    assert_eq!(explained(&tree, "00:02.0").into_keys().collect::<Vec<_>>(), [Cause::Kernel]);
}

/// What a recorded tree tells of its functions, and of how each is parted from others.
fn recorded(text: &str) -> (Inventory, BTreeMap<PciAddress, Isolation>) {
    let root = tempfile::tempdir().unwrap();
    crate::recorded::write(root.path(), text).unwrap();
    let sysfs = Sysfs::at(root.path());
    let inventory = Inventory::scan(&sysfs);
    let read = |address: &PciAddress| Some((*address, Isolation::read(&sysfs, *address)?));
    let isolation = inventory.functions.keys().filter_map(read).collect();
    (inventory, isolation)
}

/// What `who` is parted from against the registers, in a recorded tree.
fn parted(text: &str, who: &str) -> Vec<Cause> {
    let (inventory, isolation) = recorded(text);
    parted_although(&inventory, &isolation, address(who))
}

#[test]
fn a_quirk_of_the_kernel_is_seen_by_the_group_that_contradicts_the_registers() {
    let pch =
        "00:1c.0 8086:a110 060400 multi port=root acs=none group=1\n  02:00.0 8086:10d3 020000 group=2\n";
    let port = address("00:1c.0");
    assert_eq!(parted(pch, "02:00.0"), [Cause::Port { port, gap: Gap::Absent }]);
    assert_eq!(parted(&pch.replace("group=2", "group=1"), "02:00.0"), []);
    assert_eq!(parted(&pch.replace("acs=none", "acs=1d/1d"), "02:00.0"), []);
    let ports = "00:01.0 8086:3420 060400 port=root acs=1d/1d group=1\n  01:00.0 8086:10c9 020000 multi group=2\n  01:00.1 8086:10c9 020000 multi group=3\n";
    assert_eq!(parted(ports, "01:00.1"), [Cause::Functions(address("01:00.0"))]);
    assert_eq!(parted(&ports.replace("group=3", "group=2"), "01:00.1"), []);
}

#[test]
fn virtual_functions_are_devices_of_their_own() {
    let text = "00:01.0 8086:3420 060400 port=root acs=none group=1\n  \
                01:00.0 8086:10c9 020000 vfs=2/7 group=1\n  \
                01:10.0 8086:10ca 020000 vf=0 group=1\n  \
                01:10.2 8086:10ca 020000 vf=1 group=1\n";
    let (inventory, isolation) = recorded(text);
    let causes = causes(&inventory, &isolation, address("01:10.0"));
    let port = Cause::Port { port: address("00:01.0"), gap: Gap::Absent };
    assert_eq!(causes.into_keys().collect::<Vec<_>>(), [port]);
}

proptest! {
    #[test]
    fn no_config_space_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
        let read = |at: u64, data: &mut [u8]| {
            let at = usize::try_from(at).ok()?;
            data.copy_from_slice(bytes.get(at..at.checked_add(data.len())?)?);
            Some(())
        };
        Isolation::parse(read);
    }
}
