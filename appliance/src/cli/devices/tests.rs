//! Table and tree as they are printed.

use vfio::inventory::Sriov;

use super::*;

fn function(address: &str, parent: &str, class: u32, driver: &str, group: u32) -> Function {
    Function {
        address: address.parse().unwrap(),
        path: None,
        parent: parent.parse().ok(),
        vendor: 0x8086,
        device: 0x10c9,
        subsystem_vendor: 0,
        subsystem_device: 0,
        class,
        revision: 0,
        driver: (!driver.is_empty()).then(|| driver.to_owned()),
        driver_override: None,
        modules: Vec::new(),
        iommu_group: Some(group),
        numa_node: None,
        reset_methods: vec!["flr".to_owned(), "bus".to_owned()],
        bars: Vec::new(),
        link: None,
        sriov: None,
        physical_function: None,
        vf_index: None,
        interfaces: Vec::new(),
        block_devices: Vec::new(),
    }
}

/// A root complex with a card that has VFs, a switch with a disk behind it, an empty root port, and a function on the root bus.
fn functions() -> Vec<Found> {
    let mut pf = function("01:00.0", "00:01.0", 0x02_0000, "igb", 14);
    pf.sriov = Some(Sriov { total_vfs: 7, num_vfs: 2, vfs: Vec::new() });
    pf.interfaces = vec!["eth1".into()];
    let vf = |index: u16, address: &str, driver: &str| {
        let mut vf = function(address, "00:01.0", 0x02_0000, driver, 20 + u32::from(index));
        (vf.physical_function, vf.vf_index) = ("01:00.0".parse().ok(), Some(index));
        vf
    };
    let mut disk = function("04:00.0", "03:00.0", 0x01_0802, "nvme", 16);
    disk.block_devices = vec!["nvme0n1".into()];
    let mounted = Use::Mount { device: "nvme0n1p2".into(), at: "/".into() };
    let route = Use::DefaultRoute { interface: "eth0".into() };
    let mut card = function("00:1f.6", "", 0x02_0000, "e1000e", 13);
    (card.interfaces, card.reset_methods) = (vec!["eth0".into()], Vec::new());
    let gigabit = "Intel Corporation 82576 Gigabit Network Connection";
    vec![
        (function("00:00.0", "", 0x06_0000, "", 0), "Intel Corporation Host bridge", vec![]),
        (function("00:01.0", "", 0x06_0400, "pcieport", 1), "Intel Corporation Root port", vec![]),
        (function("00:02.0", "", 0x06_0400, "pcieport", 2), "Intel Corporation Root port", vec![]),
        (function("00:03.0", "", 0x06_0400, "pcieport", 3), "Intel Corporation Root port", vec![]),
        (card, "Intel Corporation Ethernet Connection I219-LM", vec![route]),
        (pf, gigabit, vec![]),
        (vf(0, "01:10.0", "vfio-pci"), "Intel Corporation 82576 Virtual Function", vec![]),
        (vf(1, "01:10.2", ""), "Intel Corporation 82576 Virtual Function", vec![]),
        (function("02:00.0", "00:02.0", 0x06_0400, "pcieport", 2), "PLX Switch, upstream port", vec![]),
        (function("03:00.0", "02:00.0", 0x06_0400, "pcieport", 2), "PLX Switch, downstream port", vec![]),
        (disk, "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1", vec![mounted]),
    ]
}

type Found = (Function, &'static str, Vec<Use>);

fn entries(functions: &[Found], bridges: bool) -> Vec<Entry<'_>> {
    let wanted = functions.iter().filter(|(function, ..)| bridges || !function.is_bridge());
    wanted
        .map(|(function, name, uses)| Entry {
            name: (*name).to_owned(),
            kind: None,
            function,
            uses: uses.clone(),
            serials: std::collections::BTreeSet::new(),
        })
        .collect()
}

#[track_caller]
fn is(text: Option<String>, width: usize, want: &str) {
    let text = text.unwrap();
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= width, "{widest} columns:\n{text}");
    assert_eq!(text, want.trim_start_matches('\n'), "\n{text}");
}

#[test]
fn a_tree_at_100_columns() {
    is(
        tree::text(&entries(&functions(), true), false, Some(100)),
        100,
        "
FUNCTION                  GROUP  DRIVER    DEVICE
0000:00:01.0              1      pcieport  Intel Corporation Root port
└─ 0000:01:00.0           14     igb       Intel Corporation 82576 Gigabit Network Connection
                                           (eth1); 2 of 7 VFs
   ├─ VF 0  0000:01:10.0  20     vfio-pci  Intel Corporation 82576 Virtual Function
   └─ VF 1  0000:01:10.2  21     -         Intel Corporation 82576 Virtual Function
0000:00:02.0              2      pcieport  Intel Corporation Root port
└─ 0000:02:00.0           2      pcieport  PLX Switch, upstream port
   └─ 0000:03:00.0        2      pcieport  PLX Switch, downstream port
      └─ 0000:04:00.0     16     nvme      Samsung Electronics Co Ltd NVMe SSD Controller PM9A1
                                           (nvme0n1); in use: nvme0n1p2 is mounted at /
0000:00:1f.6              13     e1000e    Intel Corporation Ethernet Connection I219-LM (eth0); in
                                           use: the default route leaves by eth0",
    );
}

#[test]
fn a_tree_at_80_columns_with_all_bridges() {
    is(
        tree::text(&entries(&functions(), true), true, Some(80)),
        80,
        "
FUNCTION                  GROUP  DRIVER    DEVICE
0000:00:00.0              0      -         Intel Corporation Host bridge
0000:00:01.0              1      pcieport  Intel Corporation Root port
└─ 0000:01:00.0           14     igb       Intel Corporation 82576 Gigabit
                                           Network Connection (eth1); 2 of 7 VFs
   ├─ VF 0  0000:01:10.0  20     vfio-pci  Intel Corporation 82576 Virtual
                                           Function
   └─ VF 1  0000:01:10.2  21     -         Intel Corporation 82576 Virtual
                                           Function
0000:00:02.0              2      pcieport  Intel Corporation Root port
└─ 0000:02:00.0           2      pcieport  PLX Switch, upstream port
   └─ 0000:03:00.0        2      pcieport  PLX Switch, downstream port
      └─ 0000:04:00.0     16     nvme      Samsung Electronics Co Ltd NVMe SSD
                                           Controller PM9A1 (nvme0n1); in use:
                                           nvme0n1p2 is mounted at /
0000:00:03.0              3      pcieport  Intel Corporation Root port
0000:00:1f.6              13     e1000e    Intel Corporation Ethernet Connection
                                           I219-LM (eth0); in use: the default
                                           route leaves by eth0",
    );
}

#[test]
fn a_table_at_120_columns() {
    is(table::text(&entries(&functions(), false), Some(120)), 120, "
ADDRESS       GROUP  DRIVER    RESET    DEVICE
0000:00:1f.6  13     e1000e    -        Intel Corporation Ethernet Connection I219-LM (eth0); in use: the default route
                                        leaves by eth0
0000:01:00.0  14     igb       flr bus  Intel Corporation 82576 Gigabit Network Connection (eth1); 2 of 7 VFs
0000:01:10.0  20     vfio-pci  flr bus  Intel Corporation 82576 Virtual Function; VF 0 of 0000:01:00.0
0000:01:10.2  21     -         flr bus  Intel Corporation 82576 Virtual Function; VF 1 of 0000:01:00.0
0000:04:00.0  16     nvme      flr bus  Samsung Electronics Co Ltd NVMe SSD Controller PM9A1 (nvme0n1); in use:
                                        nvme0n1p2 is mounted at /");
}

#[test]
fn a_table_at_80_columns() {
    is(
        table::text(&entries(&functions(), false), Some(80)),
        80,
        "
ADDRESS       GROUP  DRIVER    RESET    DEVICE
0000:00:1f.6  13     e1000e    -        Intel Corporation Ethernet Connection
                                        I219-LM (eth0); in use: the default
                                        route leaves by eth0
0000:01:00.0  14     igb       flr bus  Intel Corporation 82576 Gigabit Network
                                        Connection (eth1); 2 of 7 VFs
0000:01:10.0  20     vfio-pci  flr bus  Intel Corporation 82576 Virtual
                                        Function; VF 0 of 0000:01:00.0
0000:01:10.2  21     -         flr bus  Intel Corporation 82576 Virtual
                                        Function; VF 1 of 0000:01:00.0
0000:04:00.0  16     nvme      flr bus  Samsung Electronics Co Ltd NVMe SSD
                                        Controller PM9A1 (nvme0n1); in use:
                                        nvme0n1p2 is mounted at /",
    );
}

#[test]
fn nothing_is_lost_and_what_hangs_on_nothing_is_on_the_root() {
    let mut functions = functions();
    functions.retain(|(function, ..)| function.address != "03:00.0".parse().unwrap());
    let text = tree::text(&entries(&functions, true), true, Some(200)).unwrap();
    for (function, ..) in &functions {
        assert_eq!(
            text.matches(&format!("{} ", function.address)).count(),
            1,
            "{}\n{text}",
            function.address
        );
    }
    assert!(text.contains("\n0000:04:00.0"), "{text}");
    assert_eq!(tree::text(&[], true, None), None);
    assert_eq!(table::text(&[], None), None);
}
