//! A host to plan on: one SR-IOV card, a disk, a graphics card with its sound, and the card that the default route leaves by.

use std::collections::BTreeMap;

use netconfig::dhcp::DhcpTool;
use netconfig::nat::Nat;
use netconfig::{LinkKind, LinkMode, LinkSettings, MacAddress, VfAttributes, VfState};
use vfio::PciAddress;
use vfio::bind::DriverState;
use vfio::in_use::Use;
use vfio::inventory::{Function, Group, Inventory, IommuState, Member, Sriov};
use vfio::sriov::SriovState;

use crate::apply::{Holder, Undo};
use crate::host::{DhcpState, HostState, PfSettings};
use crate::plan::{Step, Target};

/// The PF, with `eth1` and up to 7 VFs.
pub(super) const PF: &str = "0000:01:00.0";

pub(super) fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// Where the card puts its VF `index`.
pub(super) fn vf(index: u16) -> PciAddress {
    vf_of(at(PF), index)
}

/// Where a PF puts its VF `index`.
pub(super) fn vf_of(pf: PciAddress, index: u16) -> PciAddress {
    PciAddress { device: 0x10, function: u8::try_from(index).unwrap(), ..pf }
}

pub(super) fn function(address: &str, class: u32, id: (u16, u16), driver: &str, group: u32) -> Function {
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
        modules: Vec::new(),
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
        links: BTreeMap::from([
            ("eth0".into(), card(&["192.0.2.7/24"], Some("192.0.2.1"))),
            ("eth1".into(), card(&[], None)),
            ("eth2".into(), card(&[], None)),
        ]),
        pfs: BTreeMap::from([(at(PF), PfSettings { drivers_autoprobe: Some(true), eswitch_mode: None })]),
        dhcp: DhcpState { client: Some(DhcpTool::Udhcpc), ..DhcpState::default() },
        hugepages: BTreeMap::from([(0x20_0000, 0)]),
        ..HostState::default()
    };
    host.pfs.get_mut(&at(PF)).unwrap().drivers_autoprobe = Some(false);
    resize(&mut host, at(PF), num_vfs);
    host.pfs.get_mut(&at(PF)).unwrap().drivers_autoprobe = Some(true);
    host
}

/// A card's interface.
pub(super) fn card(addresses: &[&str], gateway: Option<&str>) -> LinkSettings {
    LinkSettings {
        kind: LinkKind::Foreign("physical".into()),
        up: gateway.is_some(),
        mtu: 1500,
        mac_address: Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: gateway.iter().map(|text| text.parse().unwrap()).collect(),
        ..LinkSettings::any()
    }
}

/// As the kernel does it: all VFs go, then as many come.
pub(super) fn resize(host: &mut HostState, pf: PciAddress, to: u16) {
    let fresh = |id| VfState {
        id,
        mac_address: Some(MacAddress([0; 6])),
        vlan_id: Some(0),
        qos: Some(0),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(LinkMode::Auto),
        ..VfState::default()
    };
    host.vfs.insert(pf, (0..u32::from(to)).map(fresh).collect());
    host.inventory.functions.retain(|_, function| function.physical_function != Some(pf));
    for index in 0..to {
        let address = vf_of(pf, index).to_string();
        let group = u32::from(pf.bus) * 20 + u32::from(index);
        let mut made = function(&address, 0x02_0000, (0x8086, 0x10ca), "", group);
        (made.physical_function, made.vf_index) = (Some(pf), Some(index));
        // The host's own driver takes it where it may.
        if host.pfs[&pf].drivers_autoprobe == Some(true) {
            made.driver = Some("igbvf".into());
        }
        host.inventory.functions.insert(made.address, made);
    }
    let able = host.inventory.functions.get_mut(&pf).unwrap().sriov.as_mut().unwrap();
    (able.num_vfs, able.vfs) = (to, (0..to).map(|index| vf_of(pf, index)).collect());
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
    host.held
        .insert(address, Holder { vm: vm.into(), pid: 42, started: 1, boot: String::new(), machine: None });
}

/// The address of a target, now.
pub(super) fn address_of(host: &HostState, target: &Target) -> PciAddress {
    match target {
        Target::Function(address) => *address,
        Target::Vf { pf, vf } => host.inventory.functions[pf].sriov.as_ref().unwrap().vfs[usize::from(*vf)],
    }
}

/// The host after some steps; each is checked to be possible when its turn comes.
pub(super) fn after<'a>(steps: impl IntoIterator<Item = &'a Step>, host: HostState) -> HostState {
    carry_out(steps, host).0
}

/// The host after some steps, and how everything that they changed was right before: what a journal notes.
pub(super) fn carry_out<'a>(
    steps: impl IntoIterator<Item = &'a Step>,
    mut host: HostState,
) -> (HostState, Vec<Undo>) {
    let mut noted = Vec::<Undo>::new();
    for step in steps {
        for undo in notes(step, &host) {
            if !noted.iter().any(|other| other.object() == undo.object()) {
                noted.push(undo);
            }
        }
        take(step, &mut host);
    }
    (host, noted)
}

fn take(step: &Step, host: &mut HostState) {
    match step {
        Step::BringUp { pf, interface } => {
            assert!(host.inventory.functions[pf].interfaces.contains(interface));
            host.links.get_mut(interface).unwrap().up = true;
        }
        Step::SetVf { pf, interface, vf, attributes, .. } => {
            assert!(host.inventory.functions[pf].interfaces.contains(interface));
            set(&mut host.vfs.get_mut(pf).unwrap()[usize::from(*vf)], attributes);
        }
        Step::Autoprobe { pf, on } => host.pfs.get_mut(pf).unwrap().drivers_autoprobe = Some(*on),
        Step::Eswitch { pf, to, .. } => {
            assert_eq!(host.inventory.functions[pf].sriov.as_ref().unwrap().num_vfs, 0);
            host.pfs.get_mut(pf).unwrap().eswitch_mode = Some(*to);
        }
        Step::Resize { pf, from, to } => {
            let able = host.inventory.functions[pf].sriov.clone().unwrap();
            assert_eq!(able.num_vfs, *from);
            assert!(able.vfs.iter().all(|vf| !host.held.contains_key(vf) && !host.uses.contains_key(vf)));
            resize(host, *pf, *to);
        }
        Step::Lend(target) => {
            let address = address_of(host, target);
            let function = host.inventory.functions.get_mut(&address).unwrap();
            function.driver = Some(vfio::bind::VFIO_PCI.into());
            function.driver_override = Some(vfio::bind::VFIO_PCI.into());
            for interface in std::mem::take(&mut function.interfaces) {
                host.links.remove(&interface);
            }
            regroup(host);
        }
        Step::Hugepages { size, from, to } => {
            assert_eq!(host.hugepages.insert(size.0, *to), Some(*from));
        }
        Step::Card { .. } => panic!("no plan of the host has one"),
        Step::Link { name, from, to } => {
            // Or what it stood on, or was a port of, went before it.
            let there = |name: &str| host.links.contains_key(name);
            let alone = from.as_ref().is_some_and(|from| {
                let on = from.kind.base().into_iter().chain(from.controller.as_deref());
                on.into_iter().any(|below| !there(below))
            });
            assert!(host.links.get(name) == from.as_deref() || !there(name) || alone, "{step}");
            let controller = to.as_ref().and_then(|to| to.controller.as_ref());
            assert!(controller.is_none_or(|controller| host.links.contains_key(controller)), "{step}");
            let base = to.as_ref().and_then(|to| to.kind.base());
            assert!(base.is_none_or(|base| host.links.contains_key(base)), "{step}");
            put(host, name, to.as_deref());
        }
        Step::Nat { name, from, to, .. } => {
            assert_eq!(host.nats.get(name), from.as_deref());
            put_nat(host, name, to.as_deref());
        }
        Step::Dhcp { link, from, to } => {
            assert!(host.links.contains_key(link), "{step}");
            assert_eq!(host.dhcp.running.contains(link), *from);
            dhcp(host, link, *to);
        }
        Step::Forward { link, bridge, macs } => {
            assert!(host.links.contains_key(link) && host.links.contains_key(bridge), "{step}");
            host.forwarded.entry(link.clone()).or_default().extend(macs);
        }
        Step::Release(undo) => put_back(undo, host),
    }
}

/// A client gives its link an address; what it gave stays when it ends.
fn dhcp(host: &mut HostState, link: &str, on: bool) {
    if on {
        host.dhcp.running.insert(link.to_owned());
        let link = host.links.get_mut(link).unwrap();
        link.addresses.insert("198.51.100.7/24".parse().unwrap());
        link.gateways.insert("198.51.100.1".parse().unwrap());
    } else {
        host.dhcp.running.remove(link);
    }
}

/// As `Undo::put_back` does it.
fn put_back(undo: &Undo, host: &mut HostState) {
    match undo {
        Undo::Routes { .. } => {}
        Undo::Nat { name, before } => put_nat(host, name, before.as_deref()),
        Undo::Link { name, before } => put(host, name, before.as_deref()),
        Undo::Hugepages { size, before } => {
            host.hugepages.insert(size.0, *before);
        }
        Undo::Forward { link, mac, before } => {
            let told = host.forwarded.entry(link.clone()).or_default();
            if *before {
                told.insert(*mac)
            } else {
                told.remove(mac)
            };
        }
        Undo::Dhcp { name, before } => dhcp(host, name, *before),
        Undo::Sriov { pf, before, eswitch_mode } => {
            if host.pfs[pf].eswitch_mode != *eswitch_mode {
                resize(host, *pf, 0);
                host.pfs.get_mut(pf).unwrap().eswitch_mode = *eswitch_mode;
            }
            host.pfs.get_mut(pf).unwrap().drivers_autoprobe = before.drivers_autoprobe;
            if host.inventory.functions[pf].sriov.as_ref().unwrap().num_vfs != before.num_vfs {
                resize(host, *pf, before.num_vfs);
            }
        }
        Undo::Driver { address, before, .. } => {
            if let Some(function) = host.inventory.functions.get_mut(address) {
                (function.driver, function.driver_override) =
                    (before.driver.clone(), before.driver_override.clone());
                regroup(host);
            }
        }
        Undo::Vf { pf, before } => {
            let index = usize::try_from(before.id).unwrap();
            if let Some(now) = host.vfs.get_mut(pf).unwrap().get_mut(index) {
                *now = before.clone();
            }
        }
    }
}

fn put_nat(host: &mut HostState, name: &str, to: Option<&Nat>) {
    match to {
        Some(to) => host.nats.insert(name.to_owned(), to.clone()),
        None => host.nats.remove(name),
    };
}

/// A link that goes takes what stands on it along, and lets its ports go.
fn put(host: &mut HostState, name: &str, to: Option<&LinkSettings>) {
    if let Some(to) = to {
        host.links.insert(name.to_owned(), to.clone());
        return;
    }
    host.links.remove(name);
    for link in host.links.values_mut().filter(|link| link.controller.as_deref() == Some(name)) {
        link.controller = None;
        link.vlans.clear();
    }
    let stands_on_it = |host: &HostState| {
        host.links.iter().find(|(_, link)| link.kind.base() == Some(name)).map(|(above, _)| above.clone())
    };
    while let Some(above) = stands_on_it(host) {
        put(host, &above, None);
    }
}

fn set(now: &mut VfState, wanted: &VfAttributes) {
    let wanted = wanted.clone();
    now.mac_address = wanted.mac_address.or(now.mac_address);
    now.vlan_id = wanted.vlan_id.or(now.vlan_id);
    now.qos = wanted.qos.or(now.qos);
    now.vlan_proto = wanted.vlan_proto.or(now.vlan_proto);
    now.spoof_check = wanted.spoof_check.or(now.spoof_check);
    now.trust = wanted.trust.or(now.trust);
    now.link_state = wanted.link_state.or(now.link_state);
    now.min_tx_rate = wanted.min_tx_rate.or(now.min_tx_rate);
    now.max_tx_rate = wanted.max_tx_rate.or(now.max_tx_rate);
}

/// What a journal notes right before a step, in its order (`Work` in apply/steps.rs).
fn notes(step: &Step, host: &HostState) -> Vec<Undo> {
    let driver = |address: PciAddress| {
        let function = host.inventory.function(address)?;
        let before = DriverState {
            driver: function.driver.clone(),
            driver_override: function.driver_override.clone(),
        };
        Some(Undo::Driver { address, pf: function.physical_function, before })
    };
    let nat = |name: &String| {
        vec![Undo::Nat { name: name.clone(), before: host.nats.get(name).cloned().map(Box::new) }]
    };
    match step {
        Step::Card { link, .. } => links(host, link),
        Step::Link { name, .. } => links(host, name),
        Step::BringUp { interface, .. } if host.links[interface].up => Vec::new(),
        Step::BringUp { interface, .. } => links(host, interface),
        Step::Nat { name, .. } => nat(name),
        Step::Hugepages { size, from, .. } => vec![Undo::Hugepages { size: *size, before: *from }],
        Step::Resize { pf, .. } | Step::Autoprobe { pf, .. } | Step::Eswitch { pf, .. } => {
            vfs(host, *pf, &driver)
        }
        Step::SetVf { pf, vf, .. } => {
            vec![Undo::Vf { pf: *pf, before: host.vfs[pf][usize::from(*vf)].clone() }]
        }
        Step::Lend(target) => driver(address_of(host, target)).into_iter().collect(),
        Step::Dhcp { link, .. } => links(host, link).into_iter().chain([asks(host, link)]).collect(),
        Step::Forward { link, macs, .. } => macs.iter().map(|mac| told(host, link, *mac)).collect(),
        Step::Release(undo) => match undo {
            Undo::Dhcp { name, .. } => vec![asks(host, name)],
            Undo::Forward { link, mac, .. } => vec![told(host, link, *mac)],
            Undo::Vf { pf, before } => {
                let now = host.vfs[pf].iter().find(|vf| vf.id == before.id).cloned();
                now.map(|before| Undo::Vf { pf: *pf, before }).into_iter().collect()
            }
            Undo::Driver { address, .. } => driver(*address).into_iter().collect(),
            Undo::Sriov { pf, .. } => vfs(host, *pf, &driver),
            Undo::Link { name, .. } => links(host, name),
            Undo::Nat { name, .. } => nat(name),
            Undo::Routes { .. } => Vec::new(),
            Undo::Hugepages { size, .. } => {
                vec![Undo::Hugepages { size: *size, before: host.hugepages[&size.0] }]
            }
        },
    }
}

fn asks(host: &HostState, link: &str) -> Undo {
    Undo::Dhcp { name: link.to_owned(), before: host.dhcp.running.contains(link) }
}

fn told(host: &HostState, link: &str, mac: MacAddress) -> Undo {
    let before = host.forwarded.get(link).is_some_and(|told| told.contains(&mac));
    Undo::Forward { link: link.to_owned(), mac, before }
}

/// The VFs of a PF, each as it is, then how many there are.
fn vfs(host: &HostState, pf: PciAddress, driver: &dyn Fn(PciAddress) -> Option<Undo>) -> Vec<Undo> {
    let sriov = host.inventory.functions[&pf].sriov.as_ref().unwrap();
    let mut noted: Vec<Undo> =
        host.vfs[&pf].iter().map(|before| Undo::Vf { pf, before: before.clone() }).collect();
    noted.extend(sriov.vfs.iter().filter_map(|vf| driver(*vf)));
    let PfSettings { drivers_autoprobe, eswitch_mode } = host.pfs[&pf];
    let before = SriovState { num_vfs: sriov.num_vfs, drivers_autoprobe };
    noted.push(Undo::Sriov { pf, before, eswitch_mode });
    noted
}

/// A link, after all that goes when it goes.
fn links(host: &HostState, name: &str) -> Vec<Undo> {
    let mut order = vec![name.to_owned()];
    let mut at = 0;
    while let Some(below) = order.get(at).cloned() {
        let above = host.links.iter().filter(|(other, link)| {
            !order.contains(other)
                && (link.controller.as_deref() == Some(&below) || link.kind.base() == Some(&below))
        });
        let above: Vec<String> = above.map(|(other, _)| other.clone()).collect();
        order.extend(above);
        at += 1;
    }
    let before = |name: &String| host.links.get(name).cloned().map(Box::new);
    order.iter().rev().map(|name| Undo::Link { name: name.clone(), before: before(name) }).collect()
}
