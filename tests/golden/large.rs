//! The host "a machine with 500 functions": its tree is written, read as any host's is, and given links and VFs to match.

use std::path::Path;

use netconfig::{EswitchMode, LinkKind, LinkMode, LinkSettings, MacAddress, VfState, VlanProtocol};
use throughway::host::{HostState, PfSettings};
use vfio::Sysfs;
use vfio::in_use::Use;
use vfio::inventory::Inventory;
use vfio::recorded;

/// VFs of its eight ports, which with all else are 500 functions.
pub(crate) const VFS: [u16; 8] = [64, 64, 48, 48, 32, 32, 40, 56];

/// The machine with so many VFs on its ports, its tree below `root`, which is empty.
pub(crate) fn host(root: &Path, vfs: [u16; 8]) -> HostState {
    recorded::write(root, &recorded::large(vfs)).unwrap();
    let inventory = Inventory::scan(&Sysfs::at(root));
    let mut host =
        HostState { memory_available: 1 << 40, hugepages: [(0x20_0000, 0)].into(), ..HostState::default() };
    for function in inventory.functions.values() {
        for (number, name) in (0_u8..).zip(&function.interfaces) {
            host.links.insert(name.clone(), card(name == "eno1", [function.address.bus, number]));
        }
        for disk in function.block_devices.iter().filter(|disk| *disk == "nvme0n1") {
            let mount = Use::Mount { device: format!("{disk}p2"), at: "/".to_owned() };
            host.uses.insert(function.address, vec![mount]);
        }
        if let Some(sriov) = &function.sriov {
            let vfs = (0..u32::from(sriov.num_vfs)).map(virtual_function).collect();
            host.vfs.insert(function.address, vfs);
            let eswitch_mode = Some(EswitchMode::Legacy);
            host.pfs.insert(function.address, PfSettings { drivers_autoprobe: Some(false), eswitch_mode });
        }
        if function.interfaces.iter().any(|name| name == "eno1") {
            host.uses.insert(function.address, vec![Use::DefaultRoute { interface: "eno1".to_owned() }]);
        }
    }
    host.inventory = inventory;
    host
}

fn card(way_in: bool, [bus, number]: [u8; 2]) -> LinkSettings {
    LinkSettings {
        kind: LinkKind::Foreign("physical".to_owned()),
        up: true,
        mtu: 1500,
        mac_address: Some(MacAddress([0x52, 0x54, 0, 0, bus, number])),
        addresses: way_in.then(|| "192.0.2.9/24".parse().unwrap()).into_iter().collect(),
        gateways: way_in.then(|| "192.0.2.1".parse().unwrap()).into_iter().collect(),
        ..LinkSettings::any()
    }
}

/// As drivers make them.
fn virtual_function(id: u32) -> VfState {
    VfState {
        id,
        mac_address: Some(MacAddress([0; 6])),
        vlan_id: Some(0),
        qos: Some(0),
        vlan_proto: Some(VlanProtocol::Ieee8021Q),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(LinkMode::Auto),
        min_tx_rate: Some(0),
        max_tx_rate: Some(0),
    }
}

/// A file with 64 guests that have four VFs each: 32 of each port, every one with a VLAN; and a bridge.
pub(crate) fn file() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("version: 1\nmanagement: {interface: eno1}\ndevices:\n");
    for port in 0..8 {
        let (bus, function) = (0x10 + port / 2 * 0x40, port % 2);
        writeln!(
            text,
            "  port{port}: {{match: {{address: \"0000:{bus:02x}:00.{function}\", id: \"8086:1592\"}}}}"
        )
        .unwrap();
    }
    text.push_str("sriov:\n");
    for port in 0..8 {
        writeln!(
            text,
            "  port{port}:\n    num-vfs: 32\n    vf-defaults: {{spoof-check: true, trust: false}}"
        )
        .unwrap();
        text.push_str("    vfs:\n");
        for vf in 0..32 {
            writeln!(text, "      - {{id: {vf}, vlan-id: {}, max-tx-rate: 1000}}", 100 + vf).unwrap();
        }
    }
    text.push_str("networks:\n  br0: {type: bridge, mtu: 9000, ports: {eno2: {}}}\nvms:\n");
    for guest in 0..64 {
        writeln!(
            text,
            "  guest{guest}:\n    cpus: 2\n    memory: 2GiB\n    boot: {{kernel: /boot/vmlinuz}}\n    nics:"
        )
        .unwrap();
        for nic in 0..4 {
            let number = guest * 4 + nic;
            writeln!(text, "      n{nic}: {{pf: port{}, vf: {}}}", number / 32, number % 32).unwrap();
        }
    }
    text
}
