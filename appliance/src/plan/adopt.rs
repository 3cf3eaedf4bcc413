//! What a name of the file's `devices` could mean now that it means nothing any more: pure.

use vfio::PciAddress;
use vfio::inventory::Function;

use super::device::fits;
use crate::config::{Config, Match};
use crate::host::HostState;

/// One line of what a file says of a device, and of what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trait {
    /// The key below `match`.
    pub key: &'static str,
    /// What the file says; none where it says nothing.
    pub said: Option<String>,
    /// What the device has; none where it has no such thing.
    pub found: Option<String>,
    /// They are the same, in whatever words.
    pub same: bool,
}

/// The function that a name most likely means: the one that is the same device elsewhere, else the one at its place, else the only
/// one of its kind. `Err` says why there is none.
pub fn candidate(config: &Config, host: &HostState, name: &str) -> Result<PciAddress, String> {
    let Some(device) = config.devices.get(name) else { return Err(format!("There is no device `{name}`")) };
    let Match { address, path, id, subsystem_id, permanent_mac, serial } = device.matches.clone();
    let all = |matches: Match| -> Vec<&Function> {
        if matches == Match::default() {
            return Vec::new();
        }
        host.inventory.functions.values().filter(|function| fits(host, &matches, function)).collect()
    };
    let itself = Match { permanent_mac, serial, ..Match::default() };
    // One serial number is that of all functions of a card.
    let its_kind = Match { id: id.clone(), subsystem_id: subsystem_id.clone(), ..itself.clone() };
    let tries = [
        if itself == Match::default() { itself } else { its_kind },
        Match { path, ..Match::default() },
        Match { address, ..Match::default() },
        Match { id, subsystem_id, ..Match::default() },
    ];
    let mut several = Vec::new();
    for matches in tries {
        match all(matches).as_slice() {
            [only] => return Ok(only.address),
            [] => {}
            more => several.extend(more.iter().map(|function| function.address.to_string())),
        }
    }
    several.sort_unstable();
    several.dedup();
    Err(if several.is_empty() {
        format!("Nothing on this host is like `{name}`")
    } else {
        format!("Several functions are like `{name}`: {}", several.join(", "))
    })
}

/// What the file says of a device beside what a function has, key by key.
pub fn compare(config: &Config, host: &HostState, name: &str, function: &Function) -> Vec<Trait> {
    let matches = config.devices.get(name).map(|device| device.matches.clone()).unwrap_or_default();
    let pair = |vendor: u16, device: u16| format!("{vendor:04x}:{device:04x}");
    let mac = |mac: netconfig::MacAddress| mac.to_string();
    let mut serials = host.serials(function.address).filter(|_| function.physical_function.is_none());
    let whole = function.physical_function.is_none();
    let lines = [
        ("address", matches.address.clone(), Some(function.address.to_string())),
        ("path", matches.path.clone(), function.path.clone()),
        ("id", matches.id.clone(), Some(pair(function.vendor, function.device))),
        (
            "subsystem-id",
            matches.subsystem_id.clone(),
            Some(pair(function.subsystem_vendor, function.subsystem_device)),
        ),
        (
            "permanent-mac",
            matches.permanent_mac.map(mac),
            host.permanent_mac(function).filter(|_| whole).map(mac),
        ),
        ("serial", matches.serial.clone(), serials.next().cloned()),
    ];
    let line = |(key, said, found): (&'static str, Option<String>, Option<String>)| {
        let alone = Match {
            address: said.clone().filter(|_| key == "address"),
            path: said.clone().filter(|_| key == "path"),
            id: said.clone().filter(|_| key == "id"),
            subsystem_id: said.clone().filter(|_| key == "subsystem-id"),
            permanent_mac: matches.permanent_mac.filter(|_| key == "permanent-mac"),
            serial: said.clone().filter(|_| key == "serial"),
        };
        Trait { key, same: said.is_none() || fits(host, &alone, function), said, found }
    };
    lines.into_iter().map(line).collect()
}

/// Where else in the file a device's name is used, as keys from the top.
pub fn references(config: &Config, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(config.sriov.contains_key(name).then(|| format!("sriov.{name}")));
    for (pool, section) in &config.pools {
        found.extend(section.pf.iter().any(|pf| pf == name).then(|| format!("pools.{pool}.pf")));
    }
    for (vm, guest) in &config.vms {
        for (key, nic) in &guest.nics {
            found.extend((nic.pf.as_deref() == Some(name)).then(|| format!("vms.{vm}.nics.{key}.pf")));
        }
        for (key, given) in &guest.pci {
            found.extend((given.device == name).then(|| format!("vms.{vm}.pci.{key}.device")));
        }
    }
    found
}
