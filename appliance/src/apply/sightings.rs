//! What each name of a file's `devices` was when it was last found: so that a device is recognized while vfio-pci has it and its
//! own driver cannot be asked, and so that one that vanished can be forgotten. It is never what a name means.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vfio::PciAddress;
use vfio::bind::VFIO_PCI;
use vfio::inventory::{Function, Inventory};

use super::keep::keep;
use super::restart::boot;
use crate::config::Config;
use crate::host::{Burnt, HostState};
use crate::plan;

/// The file that has them.
#[derive(Clone, Debug)]
pub struct Sightings {
    path: PathBuf,
}

/// All of them, by the names of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen(pub BTreeMap<String, Sighting>);

/// One.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sighting {
    /// Where it was.
    pub address: PciAddress,
    /// Where it was plugged in.
    pub path: Option<String>,
    /// Vendor, device, and those of the subsystem.
    pub ids: [u16; 4],
    /// What is burnt in.
    pub burnt: Burnt,
    /// Its virtual functions.
    pub vfs: BTreeSet<PciAddress>,
    /// The boot in which it was seen (/proc/sys/kernel/random/boot_id): in another one, another device may be there.
    pub boot: String,
}

impl Sightings {
    /// Below a state folder, which is made when it is first written to.
    pub fn at(state: &Path) -> Self {
        Self { path: state.join("devices.json") }
    }

    /// What was seen.
    pub fn read(&self) -> anyhow::Result<Seen> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Seen::default()),
            text => {
                let text = text.with_context(|| format!("Reading {}", self.path.display()))?;
                serde_json::from_slice(&text).with_context(|| {
                    format!(
                        "{} is damaged: it says what devices were when they were last seen; remove it",
                        self.path.display()
                    )
                })
            }
        }
    }

    /// Writes it, where it differs.
    pub fn write(&self, seen: &Seen) -> anyhow::Result<()> {
        if self.read().is_ok_and(|old| old == *seen) {
            return Ok(());
        }
        let folder = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        folder
            .and_then(|()| keep(&self.path, seen))
            .with_context(|| format!("Writing {}", self.path.display()))
    }

    /// Notes all devices of a file that are there.
    pub fn note(&self, config: &Config, host: &HostState) -> anyhow::Result<()> {
        let mut seen = self.read()?;
        seen.look(config, host, boot());
        self.write(&seen)
    }
}

impl Seen {
    fn look(&mut self, config: &Config, host: &HostState, boot: &str) {
        for name in config.devices.keys() {
            let Ok(address) = plan::find(config, host, name) else { continue };
            let Some(function) = host.inventory.function(address) else { continue };
            let sighting = Sighting {
                address,
                path: function.path.clone(),
                ids: ids(function),
                burnt: Burnt {
                    permanent_mac: host.permanent_mac(function),
                    serials: host.serials(address).cloned().collect(),
                },
                vfs: function.sriov.iter().flat_map(|sriov| sriov.vfs.iter().copied()).collect(),
                boot: boot.to_owned(),
            };
            self.0.insert(name.clone(), sighting);
        }
    }

    /// What was burnt into those that vfio-pci has, at the places where they were seen since the box was started.
    pub fn remembered(&self, inventory: &Inventory) -> BTreeMap<PciAddress, Burnt> {
        self.remembered_in(inventory, boot())
    }

    fn remembered_in(&self, inventory: &Inventory, boot: &str) -> BTreeMap<PciAddress, Burnt> {
        let lent =
            inventory.functions.values().filter(|function| function.driver.as_deref() == Some(VFIO_PCI));
        let same = |function: &Function, sighting: &Sighting| {
            sighting.boot == boot
                && sighting.path.is_some()
                && sighting.path == function.path
                && sighting.ids == ids(function)
        };
        let seen = |function: &Function| {
            let sighting = self.0.values().find(|sighting| same(function, sighting))?;
            Some((function.address, sighting.burnt.clone()))
        };
        lent.filter_map(seen).collect()
    }
}

fn ids(function: &Function) -> [u16; 4] {
    [function.vendor, function.device, function.subsystem_vendor, function.subsystem_device]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, load};

    fn disk(driver: &str) -> Inventory {
        let address: PciAddress = "03:00.0".parse().unwrap();
        let function = Function {
            address,
            path: Some("00:03.0/00.0".into()),
            vendor: 0x144d,
            device: 0xa808,
            driver: Some(driver.into()),
            ..Function::default()
        };
        Inventory::of(BTreeMap::from([(address, function)]), Default::default())
    }

    fn host(driver: &str) -> HostState {
        HostState { inventory: disk(driver), ..HostState::default() }
    }

    #[test]
    fn a_disk_is_recognized_while_it_is_lent_and_not_after_a_reboot() {
        let text = "version: 1\ndevices: {disk: {match: {serial: S6B0}}}\n";
        let config = load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap();
        let address: PciAddress = "03:00.0".parse().unwrap();
        let mut host = host("nvme");
        host.serials.insert(address, BTreeSet::from(["S6B0".to_owned()]));
        let mut seen = Seen::default();
        seen.look(&config, &host, "this boot");

        let mut lent = self::host(VFIO_PCI);
        assert!(plan::find(&config, &lent, "disk").is_err());
        lent.remembered = seen.remembered_in(&lent.inventory, "this boot");
        assert_eq!(plan::find(&config, &lent, "disk"), Ok(address));
        assert!(seen.remembered_in(&lent.inventory, "another").is_empty());
        assert!(seen.remembered_in(&disk("nvme"), "this boot").is_empty(), "it can be asked itself");
    }

    #[test]
    fn sightings_are_kept() {
        let state = tempfile::tempdir().unwrap();
        let sightings = Sightings::at(&state.path().join("new"));
        assert_eq!(sightings.read().unwrap(), Seen::default());
        let seen = Seen(BTreeMap::from([("a".to_owned(), Sighting::default())]));
        sightings.write(&seen).unwrap();
        assert_eq!(sightings.read().unwrap(), seen);
    }
}
