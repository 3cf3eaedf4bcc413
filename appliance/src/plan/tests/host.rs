//! A host to plan on: one SR-IOV card, a disk, a graphics card with its sound, and the card that the default route leaves by.

use std::collections::BTreeMap;

use vfio::PciAddress;
use vfio::in_use::Use;
use vfio::inventory::{Function, Group, Inventory, IommuState, Member, Sriov};

use crate::apply::Holder;
use crate::host::HostState;
use crate::plan::{Plan, Step, Target};

/// The PF, with `eth1` and up to 7 VFs.
pub(super) const PF: &str = "0000:01:00.0";

pub(super) fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// Where the card puts its VF `index`.
pub(super) fn vf(index: u16) -> PciAddress {
    PciAddress { device: 0x10, function: u8::try_from(index).unwrap(), ..at(PF) }
}

fn function(address: &str, class: u32, id: (u16, u16), driver: &str, group: u32) -> Function {
    let address = at(address);
    Function {
        address,
        path: None,
        parent: None,
        vendor: id.0,
        device: id.1,
        subsystem_vendor: id.0,
        subsystem_device: 1,
        class,
        revision: 0,
        driver: (!driver.is_empty()).then(|| driver.to_owned()),
        driver_override: None,
        iommu_group: Some(group),
        numa_node: None,
        reset_methods: vec!["flr".to_owned()],
        bars: Vec::new(),
        link: None,
        sriov: None,
        physical_function: None,
        vf_index: None,
        interfaces: Vec::new(),
        block_devices: Vec::new(),
    }
}

/// The host with `num_vfs` VFs that no driver has.
pub(super) fn host(num_vfs: u16) -> HostState {
    let mut functions = vec![
        function("00:01.0", 0x06_0400, (0x8086, 0x3420), "pcieport", 1),
        function(PF, 0x02_0000, (0x8086, 0x10c9), "igb", 2),
        function("02:00.0", 0x01_0802, (0x144d, 0xa808), "nvme", 3),
        function("03:00.0", 0x03_0000, (0x10de, 0x2204), "nouveau", 4),
        function("03:00.1", 0x04_0300, (0x10de, 0x1aef), "snd_hda_intel", 4),
        function("04:00.0", 0x02_0000, (0x8086, 0x10d3), "e1000e", 5),
    ];
    functions[1].sriov = Some(Sriov { total_vfs: 7, num_vfs: 0, vfs: Vec::new() });
    functions[1].interfaces = vec!["eth1".into()];
    let uses = BTreeMap::from([
        (at("02:00.0"), vec![Use::Mount { device: "nvme0n1p1".into(), at: "/srv".into() }]),
        (at("04:00.0"), vec![Use::DefaultRoute { interface: "eth0".into() }]),
    ]);
    let mut host = HostState {
        inventory: Inventory {
            functions: functions.into_iter().map(|function| (function.address, function)).collect(),
            groups: BTreeMap::new(),
            iommu: IommuState { units: vec!["dmar0".into()], interrupt_remapping: Some(true) },
        },
        uses,
        held: BTreeMap::new(),
        permanent_macs: BTreeMap::from([("eth1".into(), "52:54:00:00:00:01".parse().unwrap())]),
        memory_available: 4 << 30,
    };
    resize(&mut host, num_vfs);
    host
}

/// As the kernel does it: all VFs go, then as many come.
fn resize(host: &mut HostState, to: u16) {
    host.inventory.functions.retain(|_, function| function.physical_function.is_none());
    for index in 0..to {
        let mut made =
            function(&vf(index).to_string(), 0x02_0000, (0x8086, 0x10ca), "", 20 + u32::from(index));
        (made.physical_function, made.vf_index) = (Some(at(PF)), Some(index));
        host.inventory.functions.insert(made.address, made);
    }
    let able = host.inventory.functions.get_mut(&at(PF)).unwrap().sriov.as_mut().unwrap();
    (able.num_vfs, able.vfs) = (to, (0..to).map(vf).collect());
    regroup(host);
}

/// Groups as their members say.
pub(super) fn regroup(host: &mut HostState) {
    host.inventory.groups.clear();
    for function in host.inventory.functions.values() {
        let number = function.iommu_group.unwrap();
        let group =
            host.inventory.groups.entry(number).or_insert_with(|| Group { number, members: Vec::new() });
        let (address, driver) = (function.address, function.driver.clone());
        group.members.push(Member { address, driver, bridge: function.is_bridge() });
    }
}

/// A running guest has a function.
pub(super) fn hold(host: &mut HostState, address: PciAddress, vm: &str) {
    host.held.insert(address, Holder { vm: vm.into(), pid: 42, started: 1 });
}

/// The address of a target, now.
pub(super) fn address_of(host: &HostState, target: &Target) -> PciAddress {
    match target {
        Target::Function(address) => *address,
        Target::Vf { pf, vf } => host.inventory.functions[pf].sriov.as_ref().unwrap().vfs[usize::from(*vf)],
    }
}

/// The host after a plan; each step is checked to be possible when its turn comes.
pub(super) fn after(plan: &Plan, mut host: HostState) -> HostState {
    for step in &plan.steps {
        match step {
            Step::BringUp { pf, interface } | Step::SetVf { pf, interface, .. } => {
                assert!(host.inventory.functions[pf].interfaces.contains(interface));
            }
            Step::Autoprobe { .. } => {}
            Step::Resize { pf, from, to } => {
                let able = host.inventory.functions[pf].sriov.clone().unwrap();
                assert_eq!(able.num_vfs, *from);
                assert!(able.vfs.iter().all(|vf| !host.held.contains_key(vf) && !host.uses.contains_key(vf)));
                resize(&mut host, *to);
            }
            Step::Lend(target) => {
                let address = address_of(&host, target);
                let function = host.inventory.functions.get_mut(&address).unwrap();
                function.driver = Some(vfio::bind::VFIO_PCI.into());
                function.interfaces.clear();
                regroup(&mut host);
            }
        }
    }
    host
}
