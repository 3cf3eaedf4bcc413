//! What the box in memory has.

use crate::wire::{
    AuditEntry, Change, ChangeState, Defined, DefinedDisk, DefinedNic, Definition, Device, DeviceUse, Doctor,
    Drift, Finding, Guest, GuestDevice, GuestState, Health, Image, Network, NetworkKind, Overview, Port,
    Reason, Sriov, Verdict, VfAttribute,
};

/// Guests in many states.
pub fn guests() -> Vec<Guest> {
    let device = |name: &str, report: &str, link, passthrough| GuestDevice {
        name: name.into(),
        report: report.into(),
        link,
        passthrough,
    };
    let guest = |name: &str, state, pid: Option<u32>, detail: Option<&str>| Guest {
        name: name.into(),
        state,
        detail: detail.map(str::to_owned),
        pid,
        uptime_ms: pid.map(|pid| u64::from(pid) * 91_000),
        vcpus: 2,
        memory: 2 << 30,
        autostart: true,
        in_file: true,
        changed: false,
        failures: 0,
        devices: vec![
            device("nic lan", "vhost-net, 2 queues", Some(true), false),
            device("disk root", "io_uring; 5120 requests served, 0 of them failed", None, false),
        ],
    };
    let mut firewall = guest("firewall", GuestState::Running, Some(812), None);
    firewall.devices.push(device("0000:01:10.1", "", None, true));
    firewall.changed = true;
    let web = guest("web", GuestState::Running, Some(944), None);
    let build = guest("build", GuestState::Waiting, None, Some("waits for firewall, then 10 s"));
    let mut desktop = guest("desktop", GuestState::Off, None, None);
    (desktop.vcpus, desktop.memory, desktop.autostart) = (8, 16 << 30, false);
    desktop.devices = vec![device("0000:41:00.0", "", None, true), device("0000:41:00.1", "", None, true)];
    let mut old =
        guest("legacy-pbx", GuestState::BackingOff, None, Some("its kernel panicked; again in 40 s"));
    (old.failures, old.in_file) = (3, false);
    vec![build, desktop, firewall, old, web]
}

/// A box with a root port, a card with VFs, a GPU with its sound, a disk that the host needs.
pub fn devices() -> Vec<Device> {
    let device = |address: &str, name: &str, kind: &str, id: &str| Device {
        address: address.into(),
        name: name.into(),
        kind: Some(kind.into()),
        id: id.into(),
        parent: None,
        bridge: false,
        driver: None,
        iommu_group: None,
        numa_node: Some(0),
        interfaces: Vec::new(),
        named: None,
        verdict: Verdict::Ready,
        reasons: Vec::new(),
        uses: Vec::new(),
        sriov: None,
        physical_function: None,
        vf_index: None,
        vf_attributes: Vec::new(),
    };
    let reason = |weight, message: &str, help: Option<&str>| Reason {
        weight,
        message: message.into(),
        help: help.map(str::to_owned),
    };
    let mut all = Vec::new();
    for (address, group) in [("0000:00:01.0", 2), ("0000:00:02.0", 3), ("0000:00:03.0", 4)] {
        let mut port =
            device(address, "Intel Corporation 500 Series PCIe Root Port", "PCI bridge", "8086:a0b8");
        (port.bridge, port.iommu_group, port.driver) = (true, Some(group), Some("pcieport".into()));
        port.verdict = Verdict::Impossible;
        port.reasons =
            vec![reason(Verdict::Impossible, "It is a bridge: what is behind it can be given away", None)];
        all.push(port);
    }
    let card = "Intel Corporation I350 Gigabit Network Connection";
    for function in 0..2_u16 {
        let mut pf = device(&format!("0000:01:00.{function}"), card, "Ethernet controller", "8086:1521");
        pf.parent = Some("0000:00:01.0".into());
        pf.driver = Some("igb".into());
        pf.iommu_group = Some(14 + u32::from(function));
        pf.interfaces = vec![format!("eno{}", function + 1)];
        pf.sriov = Some(Sriov { total: 7, present: if function == 0 { 4 } else { 0 } });
        if function == 0 {
            pf.named = Some("lan-pf".into());
            pf.verdict = Verdict::Impossible;
            pf.uses = vec![DeviceUse::Host(
                "eno1 is a port of br0, the way that the administrator comes by".into(),
            )];
            pf.reasons = vec![
                reason(
                    Verdict::Impossible,
                    "The administrator comes by it (eno1, port of br0)",
                    Some("put `management.interface` on another card first"),
                ),
                reason(Verdict::PossibleAfter, "It has 4 VFs", Some("take `sriov.lan-pf` out of the file")),
            ];
        } else {
            pf.verdict = Verdict::PossibleAfter;
            pf.reasons =
                vec![reason(Verdict::PossibleAfter, "eno2 has an address", Some("take it off eno2"))];
        }
        all.push(pf);
    }
    for index in 0..4_u16 {
        let address = format!("0000:01:10.{}", index * 4 % 8 + index / 2);
        let mut vf = device(
            &address,
            "Intel Corporation I350 Ethernet Controller Virtual Function",
            "Ethernet controller",
            "8086:1520",
        );
        vf.parent = Some("0000:00:01.0".into());
        vf.iommu_group = Some(20 + u32::from(index));
        vf.physical_function = Some("0000:01:00.0".into());
        vf.vf_index = Some(index);
        let attribute = |key: &str, requested: Option<&str>, actual: Option<&str>| VfAttribute {
            key: key.into(),
            requested: requested.map(str::to_owned),
            actual: actual.map(str::to_owned),
        };
        vf.vf_attributes = vec![
            attribute("mac-address", Some("02:00:00:00:01:00"), Some("02:00:00:00:01:00")),
            attribute("vlan-id", Some("100"), Some(if index == 2 { "0" } else { "100" })),
            attribute("spoof-check", Some("true"), Some("true")),
            attribute("max-tx-rate", Some("1000"), None),
        ];
        if index == 1 {
            vf.driver = Some("vfio-pci".into());
            vf.uses = vec![DeviceUse::Guest("firewall".into())];
        }
        all.push(vf);
    }
    let names = [
        ("NVIDIA Corporation GA104 [GeForce RTX 3070]", "VGA compatible controller", "10de:2484"),
        ("NVIDIA Corporation GA104 High Definition Audio Controller", "Audio device", "10de:228b"),
    ];
    for (function, (name, kind, id)) in names.into_iter().enumerate() {
        let mut gpu = device(&format!("0000:41:00.{function}"), name, kind, id);
        gpu.parent = Some("0000:00:02.0".into());
        gpu.iommu_group = Some(31);
        if function == 0 {
            gpu.named = Some("gpu0".into());
        }
        gpu.reasons = vec![reason(
            Verdict::Ready,
            "It shares IOMMU group 31: all of it goes along",
            Some("`group: all-endpoints`"),
        )];
        all.push(gpu);
    }
    let mut nvme = device(
        "0000:42:00.0",
        "Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983",
        "Non-Volatile memory controller",
        "144d:a808",
    );
    nvme.parent = Some("0000:00:03.0".into());
    nvme.driver = Some("nvme".into());
    nvme.iommu_group = Some(32);
    nvme.verdict = Verdict::Impossible;
    nvme.uses = vec![DeviceUse::Host("nvme0n1p2 is mounted at /".into())];
    nvme.reasons = vec![reason(Verdict::Impossible, "nvme0n1p2 is mounted at /", None)];
    all.push(nvme);
    let mut sata = device(
        "0000:00:17.0",
        "Intel Corporation SATA Controller [AHCI mode]",
        "SATA controller",
        "8086:a102",
    );
    (sata.iommu_group, sata.driver) = (Some(8), Some("ahci".into()));
    all.push(sata);
    all
}

/// Networks of each kind.
pub fn networks() -> Vec<Network> {
    let port = |link: &str, up, vlan: Option<&str>, device: Option<&str>, guest: Option<(&str, &str)>| Port {
        link: link.into(),
        up,
        vlan: vlan.map(str::to_owned),
        device: device.map(str::to_owned),
        guest: guest.map(|(guest, nic)| (guest.to_owned(), nic.to_owned())),
    };
    vec![
        Network {
            name: "br0".into(),
            kind: NetworkKind::Bridge,
            up: Some(true),
            addresses: vec!["10.0.0.5/24".into(), "2001:db8::5/64".into()],
            mtu: Some(1500),
            management: true,
            ports: vec![
                port("eno1", Some(true), Some("trunk 100, 200-210"), Some("0000:01:00.0"), None),
                port("tw-firewall-lan", Some(true), Some("access 100"), None, Some(("firewall", "lan"))),
                port("tw-web-lan", Some(true), None, None, Some(("web", "lan"))),
                port("tw-build-lan", None, None, None, Some(("build", "lan"))),
            ],
        },
        Network {
            name: "nat0".into(),
            kind: NetworkKind::Nat,
            up: Some(true),
            addresses: vec!["10.77.0.1/24".into()],
            mtu: Some(1500),
            management: false,
            ports: Vec::new(),
        },
        Network {
            name: "up0".into(),
            kind: NetworkKind::Macvtap,
            up: Some(false),
            addresses: Vec::new(),
            mtu: Some(9000),
            management: false,
            ports: vec![port("eno2", Some(false), None, Some("0000:01:00.1"), None)],
        },
    ]
}

/// The file.
pub fn text() -> &'static str {
    "# The box in the cellar.\nversion: 1\n\ndevices:\n  lan-pf: {match: {permanent-mac: \"b4:96:91:3e:61:34\"}}\n\nsriov:\n  lan-pf:\n    num-vfs: 4   # one is a spare\n\nvms:\n  firewall:\n    autostart: true\n    memory: 2GiB\n    boot: {kernel: /boot/vmlinuz, cmdline: \"console=ttyS0\"}\n"
}

pub(super) fn overview(guests: &[Guest], changes: &[Change]) -> Overview {
    let open = |change: &&Change| matches!(change.state, ChangeState::Applying | ChangeState::Waiting);
    Overview {
        host: "cellar-box".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: "6.12.48+deb13-amd64".into(),
        uptime: 1_234_567,
        processors: 16,
        load: "0.84".into(),
        memory: 64 << 30,
        memory_available: 41 << 30,
        guests: guests.to_vec(),
        drift: Some(if guests.is_empty() { Vec::new() } else { drift() }),
        change: changes.iter().find(open).cloned(),
        device_faults: if guests.is_empty() {
            Vec::new()
        } else {
            vec!["0000:41:00.0 did not come back from its reset: it is in quarantine".into()]
        },
    }
}

/// Where it is not as the file says.
pub fn drift() -> Vec<Drift> {
    vec![Drift {
        object: "vf 2 of lan-pf".into(),
        field: "vlan-id".into(),
        expected: "100".into(),
        actual: "0".into(),
    }]
}

/// What was looked at.
pub fn doctor() -> Doctor {
    let finding = |health, message: &str, help: Option<&str>| Finding {
        health,
        message: message.into(),
        help: help.map(str::to_owned),
    };
    Doctor {
        findings: vec![
            finding(Health::Good, "KVM is there (/dev/kvm)", None),
            finding(
                Health::Fair,
                "Huge pages of 1 GiB are not set aside",
                Some("add `hugepagesz=1G hugepages=16`"),
            ),
            finding(Health::Bad, "Interrupt remapping is off", Some("add `intremap=on`")),
        ],
        add_to_cmdline: Some("intel_iommu=on iommu=pt intremap=on".into()),
    }
}

/// A disk in use, one that is not, an installer.
pub fn images() -> Vec<Image> {
    let image = |name: &str, allocated, length, guests: &[&str]| Image {
        name: name.into(),
        path: format!("/var/lib/throughway/images/{name}"),
        allocated,
        length,
        guests: guests.iter().map(|guest| (*guest).to_owned()).collect(),
    };
    vec![
        image("debian-13.1.0-amd64-netinst.iso", 790 << 20, 790 << 20, &[]),
        image("firewall.qcow2", 3 << 30, 20 << 30, &["firewall"]),
        image("old-<web>.raw", 512 << 20, 8 << 30, &[]),
    ]
}

pub(super) fn change(id: u64, by: &str, state: ChangeState) -> Change {
    let now = crate::pages::now();
    Change {
        id,
        by: by.into(),
        started: now,
        title: "Apply appliance.yaml".into(),
        state,
        until: (state == ChangeState::Waiting).then_some(now + 90),
        why: (state == ChangeState::Reverted).then(|| "nobody confirmed it in time".into()),
        steps: vec!["network br0: mtu 1500 -> 9000".into(), "sriov lan-pf: num-vfs 4 -> 8".into()],
        holds: state == ChangeState::Committed,
    }
}

pub(super) fn changes() -> Vec<Change> {
    let mut first = change(1, "ada", ChangeState::Committed);
    first.holds = false;
    vec![change(3, "ada", ChangeState::Committed), change(2, "otto", ChangeState::Reverted), first]
}

pub(super) fn entry(id: u64, by: &str, what: &str, detail: &str) -> AuditEntry {
    AuditEntry {
        id,
        at: 1_795_000_000 + id * 61,
        by: by.into(),
        from: "192.0.2.17".into(),
        token: None,
        what: what.into(),
        detail: detail.into(),
        refused: None,
    }
}

pub(super) fn audit() -> Vec<AuditEntry> {
    let mut refused = entry(2, "vera", "save", "");
    refused.refused = Some("Not allowed: vera may not do that".into());
    let mut token = entry(3, "ada", "save", "--- was\n+++ is\n-    num-vfs: 4\n+    num-vfs: 8\n");
    token.token = Some("ansible".into());
    vec![token, refused, entry(1, "ada", "login", "")]
}

pub(super) fn defined(guest: &str) -> Defined {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let firewall = Definition {
        autostart: true,
        vcpus: 2,
        memory: "2GiB".into(),
        kernel: "/boot/vmlinuz".into(),
        cmdline: "console=ttyS0".into(),
        nics: vec![DefinedNic { name: "lan".into(), network: "br0".into(), pool: String::new() }],
        disks: vec![DefinedDisk {
            name: "root".into(),
            path: "/var/lib/throughway/images/firewall.qcow2".into(),
            qcow2: true,
            cdrom: false,
        }],
        ..Definition::default()
    };
    Defined {
        guest: (guest == "firewall").then_some(firewall),
        guests: names(&["firewall", "web", "desktop"]),
        networks: names(&["br0", "nat0"]),
        pools: names(&["lan-vfs"]),
    }
}
