//! What forms change of a file: guests, the devices that they get, how many VFs there are.

use serde_yaml::{Mapping, Value};
use web::wire::{Defined, DefinedDisk, DefinedNic, Definition};

use super::change::{Change, at};
use crate::config::Document;

/// A function of the host, as an edit names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Its name in `devices`.
    pub name: String,
    /// How it is recognized, where it is not in the file: keys of `match`.
    pub matches: Vec<(&'static str, String)>,
    /// All of its group goes along.
    pub whole_group: bool,
}

impl Document {
    /// The text with a guest as a form says it. None where the file is written in a way that is not understood.
    pub fn with_guest(&self, name: &str, guest: &Definition) -> Option<String> {
        let tree = self.tree()?;
        let changes = match at(&tree, &["vms", name]) {
            Some(now @ Value::Mapping(_)) => changes(name, now, guest),
            _ => vec![Change { path: path(&["vms", name]), to: Some(whole(guest)) }],
        };
        self.with(&changes)
    }

    /// The text without a guest.
    pub fn without_guest(&self, name: &str) -> Option<String> {
        self.with(&[Change { path: path(&["vms", name]), to: None }])
    }

    /// The text with a function of the host under a guest's `pci`.
    pub fn with_device(&self, guest: &str, device: &Named) -> Option<String> {
        let tree = self.tree()?;
        at(&tree, &["vms", guest])?;
        let given = at(&tree, &["vms", guest, "pci"]).and_then(Value::as_mapping);
        let has = given
            .into_iter()
            .flatten()
            .any(|(_, one)| one.get("device").and_then(Value::as_str) == Some(&device.name));
        let mut changes = self.naming(&tree, device);
        if !has {
            let to = map([("device", Value::from(device.name.as_str()))]);
            changes.push(Change { path: path(&["vms", guest, "pci", &device.name]), to: Some(to) });
        }
        self.with(&changes)
    }

    /// The text with a VF as a network card of a guest's. A PF that has no VFs in the text gets as many as there are now.
    pub fn with_vf(&self, guest: &str, pf: &Named, vf: u16, present: u16) -> Option<String> {
        let tree = self.tree()?;
        at(&tree, &["vms", guest])?;
        let cards = at(&tree, &["vms", guest, "nics"]).and_then(Value::as_mapping);
        let is_it = |card: &Value| {
            card.get("pf").and_then(Value::as_str) == Some(&pf.name)
                && card.get("vf").and_then(Value::as_u64) == Some(vf.into())
        };
        let mut changes = self.naming(&tree, pf);
        if at(&tree, &["sriov", &pf.name]).is_none() {
            let to = map([("num-vfs", Value::from(present.max(vf.saturating_add(1))))]);
            changes.push(Change { path: path(&["sriov", &pf.name]), to: Some(to) });
        }
        if !cards.into_iter().flatten().any(|(_, card)| is_it(card)) {
            let wanted = format!("{}-{vf}", pf.name);
            let taken = |name: &String| cards.is_some_and(|cards| cards.contains_key(name.as_str()));
            let others = (2..1000).map(|number| format!("{wanted}-{number}"));
            let key = std::iter::once(wanted.clone()).chain(others).find(|name| !taken(name))?;
            let to = map([("pf", Value::from(pf.name.as_str())), ("vf", Value::from(vf))]);
            changes.push(Change { path: path(&["vms", guest, "nics", &key]), to: Some(to) });
        }
        self.with(&changes)
    }

    /// The text with a number of VFs for a PF.
    pub fn with_vfs(&self, device: &Named, count: u16) -> Option<String> {
        let tree = self.tree()?;
        let mut changes = self.naming(&tree, device);
        // As the file spells it, where it has it.
        let sriov = at(&tree, &["sriov", &device.name]);
        let aliases = ["num-vfs", "total-vfs", "numVfs", "virtual-function-count"];
        let key = aliases.into_iter().find(|key| sriov.is_some_and(|sriov| sriov.get(*key).is_some()));
        let to = Some(Value::from(count));
        changes.push(Change { path: path(&["sriov", &device.name, key.unwrap_or("num-vfs")]), to });
        self.with(&changes)
    }

    fn naming(&self, tree: &Value, device: &Named) -> Vec<Change> {
        if at(tree, &["devices", &device.name]).is_some() {
            return Vec::new();
        }
        let matches = device.matches.iter().map(|(key, text)| (*key, Value::from(text.as_str())));
        let mut entry = vec![("match", map(matches))];
        if device.whole_group {
            entry.push(("group", Value::from("all-endpoints")));
        }
        vec![Change { path: path(&["devices", &device.name]), to: Some(map(entry)) }]
    }

    /// What the text says of a guest, and what there is for one.
    pub fn defined(&self, guest: &str) -> Defined {
        let Some(tree) = self.tree() else { return Defined::default() };
        let names = |section: &str| -> Vec<String> {
            let map = at(&tree, &[section]).and_then(Value::as_mapping);
            map.into_iter().flat_map(Mapping::keys).filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let for_guests = |name: &String| {
            let kind = at(&tree, &["networks", name, "type"]).and_then(Value::as_str);
            kind.is_some_and(|kind| matches!(kind, "bridge" | "nat" | "macvtap"))
        };
        Defined {
            guest: at(&tree, &["vms", guest]).filter(|guest| guest.is_mapping()).map(definition),
            guests: names("vms"),
            networks: names("networks").into_iter().filter(for_guests).collect(),
            pools: names("pools"),
        }
    }
}

fn path(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn map<'k>(entries: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    Value::Mapping(entries.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
}

fn text(value: &Value, keys: &[&str]) -> String {
    match at(value, keys) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The path of what is either a value, or `key` of a map.
fn either(value: &Value, short: &'static str, key: &'static str) -> Vec<&'static str> {
    if value.get(short).is_some_and(Value::is_mapping) { vec![short, key] } else { vec![short] }
}

fn definition(guest: &Value) -> Definition {
    let entries = |section: &str| -> Vec<(String, &Value)> {
        let map = guest.get(section).and_then(Value::as_mapping);
        map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value))).collect()
    };
    let nic = |(name, nic): (String, &Value)| DefinedNic {
        name,
        network: text(nic, &["network"]),
        pool: text(nic, &["pool"]),
    };
    let disk = |(name, disk): (String, &Value)| DefinedDisk {
        name,
        path: text(disk, &["path"]),
        qcow2: text(disk, &["format"]) == "qcow2",
        cdrom: text(disk, &["device"]) == "cdrom",
    };
    let vcpus = text(guest, &either(guest, "cpus", "count"));
    Definition {
        autostart: guest.get("autostart").and_then(Value::as_bool).unwrap_or(false),
        vcpus: vcpus.parse().unwrap_or(1),
        memory: text(guest, &either(guest, "memory", "size")),
        uefi: at(guest, &["boot", "firmware"]).is_some(),
        kernel: text(guest, &["boot", "kernel"]),
        initrd: text(guest, &["boot", "initrd"]),
        cmdline: text(guest, &["boot", "cmdline"]),
        nics: entries("nics").into_iter().map(nic).collect(),
        disks: entries("disks").into_iter().map(disk).collect(),
    }
}

fn some(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| Value::from(text))
}

fn boot(guest: &Definition) -> Vec<(&'static str, Option<Value>)> {
    if guest.uefi {
        return vec![("firmware", some("uefi")), ("kernel", None), ("initrd", None), ("cmdline", None)];
    }
    vec![
        ("firmware", None),
        ("order", None),
        ("kernel", some(&guest.kernel)),
        ("initrd", some(&guest.initrd)),
        ("cmdline", some(&guest.cmdline)),
    ]
}

fn nic(nic: &DefinedNic) -> Vec<(&'static str, Option<Value>)> {
    // Neither of the two: it is something that the form has no word for, and stays as it is.
    if nic.network.is_empty() && nic.pool.is_empty() {
        return Vec::new();
    }
    vec![("network", some(&nic.network)), ("pool", some(&nic.pool))]
}

fn disk(disk: &DefinedDisk) -> Vec<(&'static str, Option<Value>)> {
    vec![
        ("path", some(&disk.path)),
        ("format", disk.qcow2.then(|| Value::from("qcow2"))),
        ("device", disk.cdrom.then(|| Value::from("cdrom"))),
    ]
}

fn said(entries: Vec<(&'static str, Option<Value>)>) -> Value {
    map(entries.into_iter().filter_map(|(key, value)| Some((key, value?))))
}

/// A guest that is not in the file yet.
fn whole(guest: &Definition) -> Value {
    let disks = guest.disks.iter().map(|one| (one.name.as_str(), said(disk(one))));
    let nics = guest.nics.iter().map(|one| (one.name.as_str(), said(nic(one))));
    let mut entries = Vec::new();
    if guest.autostart {
        entries.push(("autostart", Value::from(true)));
    }
    entries.push(("cpus", Value::from(guest.vcpus)));
    entries.push(("memory", Value::from(guest.memory.as_str())));
    entries.push(("boot", said(boot(guest))));
    if !guest.disks.is_empty() {
        entries.push(("disks", map(disks)));
    }
    if !guest.nics.is_empty() {
        entries.push(("nics", map(nics)));
    }
    map(entries)
}

/// What differs between a guest of the file and the form.
fn changes(name: &str, now: &Value, guest: &Definition) -> Vec<Change> {
    let before = definition(now);
    let mut changes = Vec::new();
    let mut set = |keys: &[&str], to: Option<Value>| {
        let path = ["vms", name].iter().chain(keys).map(|key| (*key).to_owned()).collect();
        if at(now, keys) != to.as_ref() {
            changes.push(Change { path, to });
        }
    };
    if before.autostart != guest.autostart {
        set(&["autostart"], guest.autostart.then(|| Value::from(true)));
    }
    if before.vcpus != guest.vcpus {
        set(&either(now, "cpus", "count"), Some(Value::from(guest.vcpus)));
    }
    if before.memory != guest.memory {
        set(&either(now, "memory", "size"), Some(Value::from(guest.memory.as_str())));
    }
    // Firmware of one's own stays, where firmware it is.
    if !(before.uefi && guest.uefi) {
        let (coming, going): (Vec<_>, Vec<_>) = boot(guest).into_iter().partition(|(_, to)| to.is_some());
        for (key, to) in coming.into_iter().chain(going) {
            set(&["boot", key], to);
        }
    }
    for gone in before.disks.iter().filter(|one| guest.disks.iter().all(|other| other.name != one.name)) {
        set(&["disks", &gone.name], None);
    }
    for one in guest.disks.iter().filter(|one| !before.disks.contains(one)) {
        entry(&mut set, now, ["disks", &one.name], disk(one));
    }
    for gone in before.nics.iter().filter(|one| guest.nics.iter().all(|other| other.name != one.name)) {
        set(&["nics", &gone.name], None);
    }
    for one in guest.nics.iter().filter(|one| !before.nics.contains(one)) {
        entry(&mut set, now, ["nics", &one.name], nic(one));
    }
    changes
}

/// An entry as a whole where it is new, and key by key where it is there.
fn entry(
    set: &mut impl FnMut(&[&str], Option<Value>),
    now: &Value,
    [section, name]: [&str; 2],
    entries: Vec<(&'static str, Option<Value>)>,
) {
    if at(now, &[section, name]).is_none() {
        set(&[section, name], Some(said(entries)));
        return;
    }
    // What comes first, and then what goes: a map that loses its last key is another one to whoever wrote it.
    let (coming, going): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(_, to)| to.is_some());
    for (key, to) in coming.into_iter().chain(going) {
        set(&[section, name, key], to);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
