//! A host to plan on: one SR-IOV card, a disk, a graphics card with its sound, and the card that the default route leaves by.

use std::collections::BTreeMap;

use netconfig::dhcp::DhcpTool;
use netconfig::{LinkKind, LinkMode, LinkSettings, MacAddress, VfAttributes, VfState};
use vfio::PciAddress;
use vfio::in_use::Use;
use vfio::inventory::{Function, Group, Inventory, IommuState, Member, Sriov};
use vfio::sriov::SriovState;

use crate::apply::{Holder, Undo};
use crate::host::{DhcpState, HostState, PfSettings};
use crate::plan::{Planned, Step, Target};

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
    resize(&mut host, num_vfs);
    host
}

/// A card's interface.
fn card(addresses: &[&str], gateway: Option<&str>) -> LinkSettings {
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

/// A VF as the card makes it.
fn made(id: u32) -> VfState {
    VfState {
        id,
        mac_address: Some(MacAddress([0; 6])),
        vlan_id: Some(0),
        qos: Some(0),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(LinkMode::Auto),
        ..VfState::default()
    }
}

/// As the kernel does it: all VFs go, then as many come.
fn resize(host: &mut HostState, to: u16) {
    host.vfs.insert(at(PF), (0..u32::from(to)).map(made).collect());
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

/// The host after some steps; each is checked to be possible when its turn comes.
pub(super) fn after<'a>(steps: impl IntoIterator<Item = &'a Step>, mut host: HostState) -> HostState {
    for step in steps {
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
                resize(&mut host, *to);
            }
            Step::Lend(target) => {
                let address = address_of(&host, target);
                let function = host.inventory.functions.get_mut(&address).unwrap();
                function.driver = Some(vfio::bind::VFIO_PCI.into());
                for interface in std::mem::take(&mut function.interfaces) {
                    host.links.remove(&interface);
                }
                regroup(&mut host);
            }
            Step::Hugepages { size, from, to } => {
                assert_eq!(host.hugepages.insert(size.0, *to), Some(*from));
            }
            Step::Link { name, from, to } => {
                assert_eq!(host.links.get(name), from.as_deref());
                let controller = to.as_ref().and_then(|to| to.controller.as_ref());
                assert!(controller.is_none_or(|controller| host.links.contains_key(controller)), "{step}");
                let base = to.as_ref().and_then(|to| to.kind.base());
                assert!(base.is_none_or(|base| host.links.contains_key(base)), "{step}");
                put(&mut host, name, to.as_deref());
            }
            Step::Nat { name, from, to, .. } => {
                assert_eq!(host.nats.get(name), from.as_deref());
                match to {
                    Some(to) => host.nats.insert(name.clone(), (**to).clone()),
                    None => host.nats.remove(name),
                };
            }
            Step::Dhcp { link, from, to } => {
                assert!(host.links.contains_key(link), "{step}");
                assert_eq!(host.dhcp.running.contains(link), *from);
                dhcp(&mut host, link, *to);
            }
            Step::Forward { link, bridge, macs } => {
                assert!(host.links.contains_key(link) && host.links.contains_key(bridge), "{step}");
                host.forwarded.entry(link.clone()).or_default().extend(macs);
            }
            Step::Release(Undo::Forward { link, mac, before }) => {
                let told = host.forwarded.entry(link.clone()).or_default();
                if *before {
                    told.insert(*mac)
                } else {
                    told.remove(mac)
                };
            }
            Step::Release(Undo::Dhcp { name, before }) => dhcp(&mut host, name, *before),
            Step::Release(Undo::Nat { name, before }) => match before {
                Some(before) => drop(host.nats.insert(name.clone(), (**before).clone())),
                None => drop(host.nats.remove(name)),
            },
            Step::Release(Undo::Link { name, before }) => put(&mut host, name, before.as_deref()),
            Step::Release(Undo::Routes { .. }) => {}
            Step::Release(Undo::Hugepages { size, before }) => {
                host.hugepages.insert(size.0, *before);
            }
            Step::Release(Undo::Sriov { before, .. }) => {
                host.pfs.get_mut(&at(PF)).unwrap().drivers_autoprobe = before.drivers_autoprobe;
                resize(&mut host, before.num_vfs);
            }
            Step::Release(Undo::Driver { address, before }) => {
                if let Some(function) = host.inventory.functions.get_mut(address) {
                    (function.driver, function.driver_override) =
                        (before.driver.clone(), before.driver_override.clone());
                }
            }
            Step::Release(Undo::Vf { pf, before }) => {
                let index = usize::try_from(before.id).unwrap();
                if let Some(now) = host.vfs.get_mut(pf).unwrap().get_mut(index) {
                    *now = before.clone();
                }
            }
        }
    }
    host
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

fn put(host: &mut HostState, name: &str, to: Option<&LinkSettings>) {
    match to {
        Some(to) => host.links.insert(name.to_owned(), to.clone()),
        None => host.links.remove(name),
    };
}

fn set(now: &mut VfState, wanted: &VfAttributes) {
    let VfAttributes { mac_address, vlan_id, qos, vlan_proto, spoof_check, trust, link_state, .. } =
        wanted.clone();
    now.mac_address = mac_address.or(now.mac_address);
    now.vlan_id = vlan_id.or(now.vlan_id);
    now.qos = qos.or(now.qos);
    now.vlan_proto = vlan_proto.or(now.vlan_proto);
    now.spoof_check = spoof_check.or(now.spoof_check);
    now.trust = trust.or(now.trust);
    now.link_state = link_state.or(now.link_state);
}

/// How everything is that some steps change: what a journal would have noted.
pub(super) fn originals(steps: &[Planned], host: &HostState) -> Vec<Undo> {
    let note = |planned: &Planned| match &planned.step {
        Step::Link { name, .. } => {
            Some(Undo::Link { name: name.clone(), before: host.links.get(name).cloned().map(Box::new) })
        }
        Step::BringUp { interface, .. } => Some(Undo::Link {
            name: interface.clone(),
            before: host.links.get(interface).cloned().map(Box::new),
        }),
        Step::Nat { name, from, .. } => Some(Undo::Nat { name: name.clone(), before: from.clone() }),
        Step::Hugepages { size, from, .. } => Some(Undo::Hugepages { size: *size, before: *from }),
        Step::Resize { pf, .. } | Step::Autoprobe { pf, .. } => Some(Undo::Sriov {
            pf: *pf,
            before: SriovState {
                num_vfs: host.inventory.functions[pf].sriov.as_ref().unwrap().num_vfs,
                drivers_autoprobe: host.pfs[pf].drivers_autoprobe,
            },
            eswitch_mode: host.pfs[pf].eswitch_mode,
        }),
        _ => None,
    };
    let mut fresh = false;
    let mut more = |planned: &Planned| match &planned.step {
        Step::Resize { pf, .. } | Step::Autoprobe { pf, .. } => {
            fresh |= matches!(planned.step, Step::Resize { .. });
            host.vfs[pf].iter().map(|before| Undo::Vf { pf: *pf, before: before.clone() }).collect()
        }
        Step::SetVf { pf, vf, .. } => {
            let there = host.vfs[pf].get(usize::from(*vf)).filter(|_| !fresh);
            let before = there.cloned().unwrap_or_else(|| made(u32::from(*vf)));
            vec![Undo::Vf { pf: *pf, before }]
        }
        Step::Forward { link, macs, .. } => {
            let told = |mac| Undo::Forward { link: link.clone(), mac, before: false };
            macs.iter().copied().map(told).collect()
        }
        Step::Dhcp { link, from, .. } => {
            let before = host.links.get(link).cloned().map(Box::new);
            let link_before = Undo::Link { name: link.clone(), before };
            vec![link_before, Undo::Dhcp { name: link.clone(), before: *from }]
        }
        _ => Vec::new(),
    };
    let mut undo = Vec::<Undo>::new();
    for noted in steps.iter().flat_map(|planned| {
        // VFs before their number, as the journal has it.
        let more = more(planned);
        more.into_iter().chain(note(planned))
    }) {
        if !undo.iter().any(|other| other.object() == noted.object()) {
            undo.push(noted);
        }
    }
    undo
}
