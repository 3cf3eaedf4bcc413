//! Of guests.

use netconfig::VfAttributes;
use netconfig::section::NetworkType;

use super::Check;
use crate::config::{Disk, DiskDevice, GuestConsole, Loop, Nic, Vm, start_order};

/// More vCPUs than this no guest has.
const MOST_CPUS: u32 = 64;

impl<'a> Check<'a> {
    pub(super) fn vm(&mut self, name: &'a str, vm: &'a Vm) {
        if name.trim().is_empty() {
            self.report(&["vms", name], "A guest has a name", None);
        }
        let cpus = vm.cpus.topology();
        let unit = cpus.sockets.saturating_mul(cpus.threads);
        if cpus.count == 0 || cpus.count > MOST_CPUS {
            self.report(
                &["vms", name, "cpus"],
                format!("A guest has 1 to {MOST_CPUS} vCPUs, not {}", cpus.count),
                None,
            );
        } else if unit == 0 || !(1..=2).contains(&cpus.threads) || !cpus.count.is_multiple_of(unit) {
            let message = format!(
                "{} vCPUs cannot be {} sockets of cores with {} threads",
                cpus.count, cpus.sockets, cpus.threads
            );
            self.report(
                &["vms", name, "cpus"],
                message,
                Some("threads is 1 or 2, and count a multiple of sockets x threads".to_owned()),
            );
        }
        let memory = vm.memory.detail();
        let page = memory.hugepages.map_or(1 << 20, |page| page.0);
        if !matches!(memory.hugepages.map(|page| page.0), None | Some(0x20_0000 | 0x4000_0000)) {
            self.report(&["vms", name, "memory", "hugepages"], "Huge pages are of 2MiB or 1GiB", None);
        } else if memory.size.0 == 0 || !memory.size.0.is_multiple_of(page) {
            let message = match (memory.size.0, memory.hugepages) {
                (0, _) => "A guest has memory".to_owned(),
                (_, None) => format!("{} is not a whole number of MiB", memory.size),
                (_, Some(page)) => format!("{} is not a whole number of {page} pages", memory.size),
            };
            self.report(&["vms", name, "memory"], message, None);
        }
        if memory.transparent_hugepages && memory.hugepages.is_some() {
            let help = Some("take one of them out".to_owned());
            let path = ["vms", name, "memory", "transparent-hugepages"];
            self.report(&path, "Memory is of `hugepages`, or of pages that may become huge: not both", help);
        }
        self.dependencies(name, vm);
        self.boot(name, vm);
        if let Some(vsock) = &vm.vsock {
            self.cid(name, vsock.cid);
        }
        self.slots(name, vm);
        for (key, nic) in &vm.nics {
            self.nic(name, key, nic);
        }
        for (key, disk) in &vm.disks {
            self.disk(name, key, disk);
        }
        for (key, pci) in &vm.pci {
            let path = ["vms", name, "pci", key, "device"];
            self.defined(&path, "devices", &pci.device, self.config.devices.keys());
            let owner = format!("vms.{name}.pci.{key}");
            if let Some(first) = self.devices.insert(&pci.device, owner) {
                self.report(&path, format!("`{}` is given away already, as {first}", pci.device), None);
            }
            if self.config.sriov.contains_key(&pci.device) {
                let help = Some("give its VFs away, or take it out of `sriov:`".to_owned());
                self.report(&path, format!("`{}` has VFs and cannot be given away whole", pci.device), help);
            }
        }
    }

    fn dependencies(&mut self, name: &str, vm: &Vm) {
        for (index, other) in vm.depends_on.iter().enumerate() {
            let element = format!("#{index}");
            let path = ["vms", name, "depends-on", element.as_str()];
            self.defined(&path, "vms", other, self.config.vms.keys());
            if vm.depends_on.iter().take(index).any(|before| before == other) {
                self.report(&path, format!("`{other}` is there twice"), None);
            }
        }
    }

    /// Guests that wait for each other would wait for ever.
    pub(super) fn loops(&mut self) {
        let Err(Loop(guests)) = start_order(&self.config.vms) else { return };
        let (Some(first), Some(next)) = (guests.first(), guests.get(1).or(guests.first())) else { return };
        let depends = self.config.vms.get(first).map(|vm| vm.depends_on.as_slice()).unwrap_or_default();
        let at = depends.iter().position(|other| other == next).unwrap_or(0);
        let element = format!("#{at}");
        let round = guests.iter().chain([first]).map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let message = format!("These guests wait for each other: {}", round.join(" -> "));
        self.report(
            &["vms", first, "depends-on", &element],
            message,
            Some("take one of them out".to_owned()),
        );
    }

    /// Each device is in a slot of its own, and a guest tells its functions apart by their keys.
    fn slots(&mut self, name: &'a str, vm: &'a Vm) {
        const MOST: usize = 30;
        let own = [vm.rng, vm.vsock.is_some(), vm.console == GuestConsole::Virtio];
        let own = own.into_iter().filter(|has| *has).count();
        let (devices, empty) = (vm.nics.len() + vm.pci.len() + vm.disks.len() + own, vm.hotplug_ports);
        if devices + usize::from(empty) > MOST {
            let message =
                format!("A guest has {MOST} slots, too few for {devices} devices and {empty} empty ones");
            let path: &[&str] = if empty > 0 { &["vms", name, "hotplug-ports"] } else { &["vms", name] };
            self.report(path, message, None);
        }
        let is_vf = |key: &&String| vm.nics.get(*key).is_some_and(|nic| nic.network.is_none());
        for key in vm.pci.keys().filter(is_vf) {
            let message = format!("`{key}` is a VF of this guest already, as vms.{name}.nics.{key}");
            self.report(
                &["vms", name, "pci", key],
                message,
                Some("give one of them another name".to_owned()),
            );
        }
    }

    fn cid(&mut self, name: &'a str, cid: u32) {
        let path = ["vms", name, "vsock", "cid"];
        if !(3..u32::MAX).contains(&cid) {
            let help = Some("0 to 2 are the host's; take a number from 3 on".to_owned());
            self.report(&path, format!("A guest cannot have the vsock CID {cid}"), help);
        } else if let Some(first) = self.cids.insert(cid, name) {
            self.report(&path, format!("The vsock CID {cid} is that of guest `{first}` already"), None);
        }
    }

    fn boot(&mut self, name: &str, vm: &Vm) {
        let (path, boot) = (["vms", name, "boot"], &vm.boot);
        let at = |key: &'static str| [&path[..], &[key]].concat();
        if boot.cmdline.contains('\0') {
            self.report(&at("cmdline"), "A command line cannot contain a NUL", None);
        }
        let help = || Some("write either `kernel: PATH` or `firmware: uefi`".to_owned());
        match (&boot.kernel, &boot.firmware) {
            (Some(_), Some(_)) => {
                self.report(
                    &at("firmware"),
                    "A guest starts with a kernel or with firmware, not both",
                    help(),
                );
            }
            (None, None) => self.report(&path, "This names nothing to start", help()),
            (Some(_), None) if !boot.order.is_empty() => {
                self.report(
                    &at("order"),
                    "Only firmware has a boot order, and this guest starts with a kernel",
                    None,
                );
            }
            (None, Some(_)) if boot.initrd.is_some() => {
                self.report(&at("initrd"), "Only a kernel has an initial RAM disk", help());
            }
            (None, Some(_)) if !boot.cmdline.is_empty() => {
                self.report(&at("cmdline"), "Only a kernel has a command line", help());
            }
            _ => {}
        }
        let devices: Vec<&String> = vm.disks.keys().chain(vm.nics.keys()).chain(vm.pci.keys()).collect();
        for (index, device) in boot.order.iter().enumerate() {
            let element = format!("#{index}");
            let path = [&path[..], &["order", element.as_str()]].concat();
            if !devices.contains(&device) {
                let help = format!("give it one of that name, under `vms.{name}.disks`, `.nics` or `.pci`");
                self.report(&path, format!("This guest has no device `{device}`"), Some(help));
            } else if boot.order.iter().take(index).any(|before| before == device) {
                self.report(&path, format!("`{device}` is there twice"), None);
            }
        }
    }

    fn disk(&mut self, vm: &str, key: &str, disk: &'a Disk) {
        let path = ["vms", vm, "disks", key];
        if disk.queues.is_some_and(|queues| !(1..=16).contains(&queues)) {
            self.report(&[&path[..], &["queues"]].concat(), "A disk has 1 to 16 queues", None);
        }
        if disk.device == DiskDevice::Cdrom && disk.queues.is_some() {
            self.report(&[&path[..], &["queues"]].concat(), "A CD drive has one queue", None);
        }
        let owner = format!("vms.{vm}.disks.{key}");
        match self.images.get(disk.path.as_path()) {
            Some((first, read_only)) if !(disk.is_read_only() && *read_only) => {
                let message = format!("{} is a disk already, as {first}", disk.path.display());
                let help = "give each an image of its own, or say `read-only: true` for both".to_owned();
                self.report(&[&path[..], &["path"]].concat(), message, Some(help));
            }
            Some(_) => {}
            None => {
                self.images.insert(&disk.path, (owner, disk.is_read_only()));
            }
        }
    }

    fn nic(&mut self, vm: &str, key: &str, nic: &Nic) {
        let path = ["vms", vm, "nics", key];
        if let Some(network) = &nic.network {
            return self.card(&path, nic, network);
        }
        for (key, given) in [("vlan", nic.vlan.is_some()), ("queues", nic.queues.is_some())] {
            if !given {
                continue;
            }
            let help = Some("a VF takes `vlan-id`; queues are the VF's own".to_owned());
            self.report(&[&path[..], &[key]].concat(), format!("`{key}` is of a nic with a `network`"), help);
        }
        match (&nic.pool, &nic.pf, nic.vf) {
            (Some(pool), None, None) => {
                self.defined(&[&path[..], &["pool"]].concat(), "pools", pool, self.config.pools.keys());
            }
            (None, Some(pf), Some(vf)) => {
                self.defined(&[&path[..], &["pf"]].concat(), "sriov", pf, self.config.sriov.keys());
                if self.config.sriov.get(pf).is_some_and(|sriov| vf >= sriov.num_vfs) {
                    self.report(&[&path[..], &["vf"]].concat(), format!("`{pf}` has no VF {vf}"), None);
                }
            }
            _ => {
                let help = "write `network: NAME`, `pool: NAME`, or `pf: NAME` and `vf: INDEX`".to_owned();
                self.report(&path, "A nic needs either a network, or a pool, or a pf and a vf", Some(help));
            }
        }
        self.attributes(&path, &nic.attributes);
    }

    /// A virtio-net card on a network of the host.
    fn card(&mut self, path: &[&str], nic: &Nic, network: &str) {
        let at = |key: &'static str| [path, &[key]].concat();
        let networks = &self.config.networks;
        self.defined(&at("network"), "networks", network, networks.keys());
        if nic.pool.is_some() || nic.pf.is_some() || nic.vf.is_some() {
            let help = Some("take one of them out".to_owned());
            self.report(path, "A nic is on a network, or a VF: not both", help);
        }
        let only_mac = VfAttributes { mac_address: nic.attributes.mac_address, ..VfAttributes::default() };
        if nic.attributes != only_mac {
            let help = Some("on a bridge, write `vlan: {mode: access, tag: ID}`".to_owned());
            self.report(path, "Only a VF has attributes other than its MAC address", help);
        }
        if let Some(mac) = nic.attributes.mac_address {
            self.mac(&at("mac-address"), mac);
        }
        if nic.queues.is_some_and(|queues| !(1..=16).contains(&queues)) {
            self.report(&at("queues"), "A card has 1 to 16 pairs of queues", None);
        }
        let Some(section) = networks.get(network) else { return };
        if !matches!(section.kind, NetworkType::Bridge | NetworkType::Nat | NetworkType::Macvtap) {
            let help = Some(format!("put a bridge or a macvtap on `{network}`"));
            self.report(
                &at("network"),
                format!("`{network}` is a {}, which takes no guests", section.kind),
                help,
            );
        }
        if let Some(vlan) = &nic.vlan {
            if section.kind != NetworkType::Bridge || section.vlan_filtering != Some(true) {
                let help = Some("set `vlan-filtering: true` for the bridge".to_owned());
                self.report(&at("vlan"), format!("`{network}` does not look at VLANs"), help);
            } else if let Err(message) = vlan.memberships() {
                self.report(&at("vlan"), message, None);
            }
        }
    }
}
