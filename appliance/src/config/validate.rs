//! What types cannot say: names that must be defined, numbers that must fit, things that may be there only once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use netconfig::merge::{merge, nats};
use netconfig::section::NetworkType;
use netconfig::{LinkSettings, MacAddress, VfAttributes};
use vfio::PciAddress;

use super::{Config, Diagnostic, Disk, DiskDevice, Document, Nic, Pool, Vm, derived_mac};

/// More vCPUs than this no guest has.
const MOST_CPUS: u32 = 64;

/// All that is wrong.
pub(super) fn problems(document: &Document, config: &Config) -> Vec<Diagnostic> {
    let mut check = Check {
        document,
        config,
        problems: Vec::new(),
        macs: BTreeMap::new(),
        devices: BTreeMap::new(),
        images: BTreeMap::new(),
        cids: BTreeMap::new(),
    };
    if config.version != 1 {
        let message = format!("Version {} of the file's format is not known", config.version);
        check.report(&["version"], message, Some("this version of Throughway reads version 1".to_owned()));
    }
    check.devices();
    check.sriov();
    check.pools();
    check.networks();
    for (name, vm) in &config.vms {
        check.vm(name, vm);
    }
    check.derived_macs();
    check.problems
}

struct Check<'a> {
    document: &'a Document,
    config: &'a Config,
    problems: Vec<Diagnostic>,
    /// Where each MAC address was seen first.
    macs: BTreeMap<MacAddress, String>,
    /// Which guest a whole function is given to.
    devices: BTreeMap<&'a str, String>,
    /// Which disk an image is, and whether only to read.
    images: BTreeMap<&'a Path, (String, bool)>,
    /// Which guest has a vsock's context ID.
    cids: BTreeMap<u32, &'a str>,
}

impl<'a> Check<'a> {
    fn report(&mut self, path: &[&str], message: impl Into<String>, help: Option<String>) {
        self.problems.push(self.document.value(path, message, help));
    }

    fn defined<'k>(
        &mut self,
        path: &[&str],
        section: &str,
        name: &str,
        known: impl Iterator<Item = &'k String>,
    ) {
        let known: Vec<&String> = known.collect();
        if known.iter().any(|key| *key == name) {
            return;
        }
        let nearest = known.iter().map(|key| (strsim::osa_distance(name, key), *key)).min();
        let help = match nearest {
            Some((distance, key)) if distance <= 1 + name.len() / 3 => format!("did you mean `{key}`?"),
            _ => format!("define it under `{section}:`"),
        };
        self.report(path, format!("`{name}` is not defined under `{section}`"), Some(help));
    }

    fn devices(&mut self) {
        for (name, device) in &self.config.devices {
            let matches = &device.matches;
            if *matches == super::Match::default() {
                let help = "give an address, a path, an id, a serial or a permanent-mac".to_owned();
                self.report(&["devices", name, "match"], "This recognizes any function", Some(help));
            }
            if let Some(Err(error)) = matches.address.as_deref().map(str::parse::<PciAddress>) {
                self.report(&["devices", name, "match", "address"], capital(&error.to_string()), None);
            }
            for (key, id) in [("id", &matches.id), ("subsystem-id", &matches.subsystem_id)] {
                if id.as_deref().is_some_and(|id| pair(id).is_none()) {
                    let message =
                        "This is no pair of ids: write vendor and device in hexadecimal, such as 10de:2204";
                    self.report(&["devices", name, "match", key], message, None);
                }
            }
            if matches.serial.as_deref().is_some_and(|serial| serial.trim().is_empty()) {
                let message = "This is no serial number: write it as `lspci -v` or `throughway devices adopt` prints it";
                self.report(&["devices", name, "match", "serial"], message, None);
            }
            if matches.path.as_deref().is_some_and(|path| !is_path(path)) {
                let message =
                    "This is no path: write devices and functions from the root on, such as 00:01.0/00.0";
                self.report(&["devices", name, "match", "path"], message, None);
            }
        }
    }

    fn sriov(&mut self) {
        for (name, sriov) in &self.config.sriov {
            self.defined(&["sriov", name], "devices", name, self.config.devices.keys());
            self.attributes(&["sriov", name, "vf-defaults"], &sriov.vf_defaults);
            let mut seen = BTreeMap::new();
            for (at, vf) in sriov.vfs.iter().enumerate() {
                let index = format!("#{at}");
                let path = ["sriov", name.as_str(), "vfs", index.as_str()];
                if vf.id >= sriov.num_vfs {
                    let message = format!(
                        "VF {} is beyond num-vfs {}: the last one is {}",
                        vf.id,
                        sriov.num_vfs,
                        sriov.num_vfs.saturating_sub(1)
                    );
                    self.report(&[&path[..], &["id"]].concat(), message, None);
                }
                if seen.insert(vf.id, at).is_some() {
                    self.report(&[&path[..], &["id"]].concat(), format!("VF {} is there twice", vf.id), None);
                }
                self.attributes(&path, &vf.attributes);
            }
        }
    }

    /// Networks among themselves: whether the host has the links that they name is the plan's to see.
    fn networks(&mut self) {
        let sections = &self.config.networks;
        let named =
            sections.values().flat_map(|section| section.base_iface.iter().chain(section.ports.keys()));
        let elsewhere = named.filter(|name| !sections.contains_key(*name));
        let current = elsewhere.map(|name| (name.clone(), LinkSettings::any())).collect();
        let problems = merge(sections, &current).err().into_iter().chain(nats(sections).err()).flatten();
        for problem in problems {
            let path: Vec<&str> =
                std::iter::once("networks").chain(problem.path.iter().map(String::as_str)).collect();
            self.report(&path, problem.message, problem.help.map(str::to_owned));
        }
        for (name, section) in sections {
            if let Some(mac) = section.mac_address {
                // Links of the host may share one: a VLAN has that of the link below.
                self.macs.entry(mac).or_insert_with(|| format!("networks.{name}"));
            }
            for (at, mac) in section.guest_macs.iter().enumerate() {
                self.mac(&["networks", name, "guest-macs", &format!("#{at}")], *mac);
            }
        }
        for size in self.config.host.hugepages.keys() {
            if !matches!(size.0, 0x20_0000 | 0x4000_0000) {
                self.report(
                    &["host", "hugepages", &size.to_string()],
                    "Huge pages are of 2MiB or 1GiB",
                    None,
                );
            }
        }
    }

    fn pools(&mut self) {
        for (name, pool) in &self.config.pools {
            for (at, pf) in pool.pf.iter().enumerate() {
                let index = format!("#{at}");
                self.defined(&["pools", name, "pf", &index], "sriov", pf, self.config.sriov.keys());
            }
            if pool.vf_range.as_deref().is_some_and(|text| range(text).is_none()) {
                let message = "This is no range of VFs: write the first and the last, such as 1-7";
                self.report(&["pools", name, "vf-range"], message, None);
            } else {
                self.empty_pool(name, pool);
            }
        }
    }

    /// A pool that has no VF to give, whoever asks.
    fn empty_pool(&mut self, name: &str, pool: &Pool) {
        if pool.pf.is_empty() {
            let help = Some("name some of `sriov`".to_owned());
            let message = format!("Pool `{name}` is empty: it names no physical function");
            return self.report(&["pools", name, "pf"], message, help);
        }
        let sriov = &self.config.sriov;
        let counts: Option<Vec<(&String, u16)>> =
            pool.pf.iter().map(|pf| Some((pf, sriov.get(pf)?.num_vfs))).collect();
        let first = pool.vf_range.as_deref().and_then(range).map_or(0, |(first, _)| first);
        let Some(counts) = counts.filter(|counts| counts.iter().all(|(_, count)| *count <= first)) else {
            return;
        };
        let has = |(pf, count): &(&String, u16)| match count {
            0 => format!("`{pf}` has no VFs"),
            1 => format!("`{pf}` has VF 0 only"),
            count => format!("`{pf}` has VFs 0 to {}", count.saturating_sub(1)),
        };
        let why: Vec<String> = counts.iter().map(has).collect();
        let key = if pool.vf_range.is_some() { "vf-range" } else { "pf" };
        let help = Some("widen its vf-range, or raise num-vfs".to_owned());
        self.report(&["pools", name, key], format!("Pool `{name}` is empty: {}", why.join(", ")), help);
    }

    /// Addresses that are derived, against all that the file says and against each other.
    fn derived_macs(&mut self) {
        let config = self.config;
        for (vm, guest) in &config.vms {
            for (key, nic) in &guest.nics {
                let own = nic.pf.as_ref().and_then(|pf| {
                    let vf = config.sriov.get(pf)?.vfs.iter().find(|vf| Some(vf.id) == nic.vf)?;
                    vf.attributes.mac_address
                });
                if nic.attributes.mac_address.or(own).is_some() {
                    continue;
                }
                let mac = derived_mac(vm, key);
                match self.macs.entry(mac) {
                    Entry::Vacant(entry) => {
                        entry.insert(format!("vms.{vm}.nics.{key}, derived from its name"));
                    }
                    Entry::Occupied(entry) => {
                        let message = format!(
                            "The MAC address {mac}, which is derived for this nic, is there already, at {}",
                            entry.get()
                        );
                        let help = Some("give this nic a `mac-address` of its own".to_owned());
                        self.report(&["vms", vm, "nics", key], message, help);
                    }
                }
            }
        }
    }

    fn mac(&mut self, path: &[&str], mac: MacAddress) {
        if !mac.is_unicast() {
            let message = format!("{mac} is a group's address; a card needs one of its own");
            self.report(path, message, None);
        }
        let place = path.strip_suffix(&["mac-address"]).unwrap_or(path).join(".");
        match self.macs.entry(mac) {
            Entry::Vacant(entry) => {
                entry.insert(place);
            }
            Entry::Occupied(entry) => {
                let message = format!("{mac} is there already, at {}", entry.get());
                self.report(path, message, None);
            }
        }
    }

    fn vm(&mut self, name: &'a str, vm: &'a Vm) {
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
            let message = format!("{} is not a whole number of {} pages", memory.size, super::Size(page));
            self.report(&["vms", name, "memory"], message, None);
        }
        if memory.transparent_hugepages && memory.hugepages.is_some() {
            let help = Some("take one of them out".to_owned());
            let path = ["vms", name, "memory", "transparent-hugepages"];
            self.report(&path, "Memory is of `hugepages`, or of pages that may become huge: not both", help);
        }
        self.boot(name, vm);
        if let Some(vsock) = &vm.vsock {
            self.cid(name, vsock.cid);
        }
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

    fn attributes(&mut self, path: &[&str], attributes: &VfAttributes) {
        let at = |key: &'static str| [path, &[key]].concat();
        if let Some(mac) = attributes.mac_address {
            self.mac(&at("mac-address"), mac);
        }
        if attributes.vlan_id.is_some_and(|vlan| vlan > 4094) {
            self.report(&at("vlan-id"), "A VLAN is 1 to 4094, or 0 for none", None);
        }
        if attributes.qos.is_some_and(|qos| qos > 7) {
            self.report(&at("qos"), "A priority is 0 to 7", None);
        }
        if attributes.qos.is_some_and(|qos| qos > 0) && attributes.vlan_id == Some(0) {
            self.report(&at("qos"), "A priority needs a VLAN: without a tag there is no place for it", None);
        }
        if let (Some(least), Some(most @ 1..)) = (attributes.min_tx_rate, attributes.max_tx_rate)
            && least > most
        {
            self.report(
                &at("min-tx-rate"),
                format!("The least rate {least} is above the greatest, {most}"),
                None,
            );
        }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `10de:2204` as two numbers.
pub(crate) fn pair(text: &str) -> Option<(u16, u16)> {
    let (vendor, device) = text.split_once(':')?;
    let number = |part: &str| (part.len() == 4).then(|| u16::from_str_radix(part, 16).ok()).flatten();
    Some((number(vendor)?, number(device)?))
}

/// `1-7`, or `3` for one, as first and last.
pub(crate) fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

fn is_path(text: &str) -> bool {
    let mut parts = text.split('/');
    let root = parts.next().is_some_and(|part| part.parse::<PciAddress>().is_ok());
    root && parts.all(|part| format!("00:{part}").parse::<PciAddress>().is_ok())
}
