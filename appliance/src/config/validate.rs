//! What types cannot say: names that must be defined, numbers that must fit, things that may be there only once.

mod guest;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use netconfig::merge::{merge, nats};
use netconfig::{LinkSettings, MacAddress, VfAttributes};
use vfio::PciAddress;

use super::{Config, Diagnostic, Document, Pool, derived_mac};

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
    if config.web.certificate.is_some() != config.web.key.is_some() {
        let message = "A certificate needs its key, and a key its certificate";
        check.report(&["web"], message, Some("write both `certificate` and `key`, or none".to_owned()));
    }
    if config.management.listen.as_ref().is_some_and(|listen| listen.len() > 8) {
        check.report(&["management", "listen"], "These are more than 8 places to listen at", None);
    }
    check.devices();
    check.sriov();
    check.pools();
    check.networks();
    for (name, vm) in &config.vms {
        check.vm(name, vm);
    }
    check.loops();
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
