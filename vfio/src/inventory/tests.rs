//! Inventories of trees in folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// One function of a tree: address, class, driver and group.
fn add(root: &Path, address: &str, class: &str, driver: Option<&str>, group: u32) {
    let folder = root.join("bus/pci/devices").join(address);
    fs::create_dir_all(&folder).unwrap();
    let attributes = [
        ("vendor", "0x8086"),
        ("device", "0x10c9"),
        ("class", class),
        ("numa_node", "-1"),
        ("reset_method", "flr bus"),
    ];
    for (name, value) in attributes {
        fs::write(folder.join(name), format!("{value}\n")).unwrap();
    }
    fs::write(folder.join("driver_override"), "(null)\n").unwrap();
    symlink(format!("../../../../kernel/iommu_groups/{group}"), folder.join("iommu_group")).unwrap();
    if let Some(driver) = driver {
        symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver")).unwrap();
    }
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn a_pf_and_its_vfs_know_each_other() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "0000:01:00.0", "0x020000", Some("igb"), 14);
    let pf = root.path().join("bus/pci/devices/0000:01:00.0");
    fs::write(pf.join("sriov_totalvfs"), "7\n").unwrap();
    fs::write(pf.join("sriov_numvfs"), "2\n").unwrap();
    fs::create_dir_all(pf.join("net/eth1")).unwrap();
    for (index, vf) in ["0000:01:10.0", "0000:01:10.2"].into_iter().enumerate() {
        add(root.path(), vf, "0x020000", None, 20 + u32::try_from(index).unwrap());
        symlink(format!("../{vf}"), pf.join(format!("virtfn{index}"))).unwrap();
        symlink("../0000:01:00.0", root.path().join("bus/pci/devices").join(vf).join("physfn")).unwrap();
    }

    let inventory = Inventory::scan(&Sysfs::at(root.path()));

    let pf = inventory.function(address("01:00.0")).unwrap();
    let sriov = pf.sriov.as_ref().unwrap();
    assert_eq!((sriov.total_vfs, sriov.num_vfs), (7, 2));
    assert_eq!(sriov.vfs, [address("01:10.0"), address("01:10.2")]);
    assert_eq!(
        (pf.interfaces.as_slice(), pf.driver.as_deref()),
        (["eth1".to_owned()].as_slice(), Some("igb"))
    );
    assert_eq!((pf.numa_node, pf.driver_override.as_deref()), (None, None));
    let vf = inventory.function(address("01:10.2")).unwrap();
    assert_eq!((vf.physical_function, vf.vf_index), (Some(address("01:00.0")), Some(1)));
    assert!(!inventory.iommu.is_on());
}

#[test]
fn a_group_names_the_members_that_keep_it_from_being_viable() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "0000:00:01.0", "0x060400", Some("pcieport"), 1);
    add(root.path(), "0000:01:00.0", "0x030000", Some("nouveau"), 1);
    add(root.path(), "0000:01:00.1", "0x040300", Some("snd_hda_intel"), 1);
    add(root.path(), "0000:01:00.2", "0x0c0330", None, 1);

    let inventory = Inventory::scan(&Sysfs::at(root.path()));

    let group = inventory.group_of(address("01:00.0")).unwrap();
    let given = [address("01:00.0")];
    let blockers: Vec<_> = group.blockers(&given).map(|member| member.address).collect();
    assert_eq!(blockers, [address("01:00.1")]);
}

#[test]
fn a_path_follows_the_bridges() {
    let root = tempfile::tempdir().unwrap();
    add(&root.path().join("seed"), "0000:03:00.1", "0x020000", None, 3);
    let real = root.path().join("devices/pci0000:00/0000:00:1c.4/0000:02:01.0/0000:03:00.1");
    fs::create_dir_all(real.parent().unwrap()).unwrap();
    fs::rename(root.path().join("seed/bus/pci/devices/0000:03:00.1"), &real).unwrap();
    fs::create_dir_all(root.path().join("bus/pci/devices")).unwrap();
    symlink(&real, root.path().join("bus/pci/devices/0000:03:00.1")).unwrap();

    let inventory = Inventory::scan(&Sysfs::at(root.path()));

    let path = inventory.function(address("03:00.1")).unwrap().path.as_deref();
    assert_eq!(path, Some("00:1c.4/01.0/00.1"));
}

#[test]
fn interrupt_remapping_is_read_from_the_units() {
    let root = tempfile::tempdir().unwrap();
    for (unit, ecap) in [("dmar0", "f00f5a"), ("dmar1", "f00f52")] {
        let folder = root.path().join("class/iommu").join(unit).join("intel-iommu");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ecap"), format!("{ecap}\n")).unwrap();
    }
    let inventory = Inventory::scan(&Sysfs::at(root.path()));
    assert!(inventory.iommu.is_on());
    assert_eq!(inventory.iommu.interrupt_remapping, Some(false));
}

#[test]
fn interfaces_are_found_behind_virtio_and_usb_too_the_functions_own_first() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "0000:00:03.0", "0x020000", Some("virtio-pci"), 3);
    let folder = root.path().join("bus/pci/devices/0000:00:03.0");
    for below in ["virtio2/net/aaa0", "net/eth7", "usb1/1-1/1-1:1.0/net/usb0", "0000:01:00.0/net/eth9"] {
        fs::create_dir_all(folder.join(below)).unwrap();
    }

    let inventory = Inventory::scan(&Sysfs::at(root.path()));

    assert_eq!(inventory.function(address("00:03.0")).unwrap().interfaces, ["eth7", "aaa0", "usb0"]);
}
