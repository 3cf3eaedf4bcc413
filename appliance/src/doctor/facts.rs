//! What is read of the box.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::Loader;
use crate::config::CpuList;

/// The box, as far as the inventory does not tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// /dev/kvm can be opened; else why not.
    pub kvm: Result<(), String>,
    /// The processors are Intel's.
    pub intel: bool,
    /// The kernel has vfio-pci, as a module or built in.
    pub vfio_pci: bool,
    /// Device nodes: name, why it cannot be opened, and whether something does not work then.
    pub nodes: Vec<(String, Option<String>, bool)>,
    /// The kernel's command line, word by word.
    pub cmdline: Vec<String>,
    /// Who hands it over.
    pub loader: Loader,
    /// Bytes that this process may lock; none for no limit.
    pub memlock: Option<u64>,
    /// Processors that are online.
    pub online: BTreeSet<u32>,
    /// Processors that the kernel leaves alone.
    pub isolated: BTreeSet<u32>,
    /// Distances of NUMA nodes, 10 for itself (ACPI 6.5, 5.2.17, SLIT).
    pub distances: BTreeMap<(u32, u32), u32>,
    /// The mode of the kernel's lockdown, where it is on.
    pub lockdown: Option<String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            kvm: Ok(()),
            intel: false,
            vfio_pci: false,
            nodes: Vec::new(),
            cmdline: Vec::new(),
            loader: Loader::Unknown,
            memlock: None,
            online: BTreeSet::new(),
            isolated: BTreeSet::new(),
            distances: BTreeMap::new(),
            lockdown: None,
        }
    }
}

impl Facts {
    /// Reads them below `root` (`/`).
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let cpus = |path: &str| text(path).trim().parse::<CpuList>().map(|list| list.0).unwrap_or_default();
        let open = |path: &str| {
            let opened = File::options().read(true).write(true).open(root.join(path));
            opened.map(drop).map_err(|error| error.to_string())
        };
        let node = |path: &str, needed| (format!("/{path}"), open(path).err(), needed);
        let lockdown = text("sys/kernel/security/lockdown");
        let lockdown = lockdown.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let loader = if root.join("etc/kernel/cmdline").exists() {
            Loader::Systemd
        } else if root.join("etc/default/grub").exists() {
            Loader::Grub
        } else {
            Loader::Unknown
        };
        let limit = getrlimit(Resource::Memlock).current;
        let iommufd = root.join("dev/iommu").exists();
        Self {
            kvm: open("dev/kvm"),
            intel: text("proc/cpuinfo").contains("GenuineIntel"),
            vfio_pci: has_module(root, "vfio-pci"),
            nodes: vec![
                node("dev/vfio/vfio", !iommufd && has_module(root, "vfio-pci")),
                node("dev/iommu", iommufd),
                node("dev/net/tun", false),
            ],
            cmdline: text("proc/cmdline").split_whitespace().map(str::to_owned).collect(),
            loader,
            // Root may lock what it wants (CAP_IPC_LOCK).
            memlock: limit.filter(|_| !rustix::process::geteuid().is_root()),
            online: cpus("sys/devices/system/cpu/online"),
            isolated: cpus("sys/devices/system/cpu/isolated"),
            distances: distances(root),
            lockdown: lockdown.filter(|mode| *mode != "none").map(str::to_owned),
        }
    }

    /// A word is on the kernel's command line.
    pub(super) fn has_word(&self, word: &str) -> bool {
        self.cmdline.iter().any(|other| other == word)
    }
}

/// Whether the kernel that runs has a driver: loaded, built in, or as a module that can be loaded.
fn has_module(root: &Path, driver: &str) -> bool {
    if root.join("sys/bus/pci/drivers").join(driver).exists() {
        return true;
    }
    let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let folder = root.join("lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let text = fs::read_to_string(folder.join(list)).unwrap_or_default();
        text.lines().any(|line| {
            let file = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            file.split('.').next() == Some(driver)
        })
    })
}

fn distances(root: &Path) -> BTreeMap<(u32, u32), u32> {
    let folder = root.join("sys/devices/system/node");
    let nodes = fs::read_dir(&folder).into_iter().flatten().flatten();
    let nodes = nodes.filter_map(|node| node.file_name().to_str()?.strip_prefix("node")?.parse::<u32>().ok());
    let nodes: BTreeSet<u32> = nodes.collect();
    let mut found = BTreeMap::new();
    for from in &nodes {
        let text = fs::read_to_string(folder.join(format!("node{from}/distance"))).unwrap_or_default();
        for (to, distance) in nodes.iter().zip(text.split_whitespace()) {
            found.extend(distance.parse().ok().map(|distance: u32| ((*from, *to), distance)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_box_is_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/cmdline", "quiet iommu=pt\n");
        write("proc/cpuinfo", "vendor_id : GenuineIntel\n");
        write("proc/sys/kernel/osrelease", "6.1.0\n");
        write("lib/modules/6.1.0/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/x.ko\n");
        write("etc/default/grub", "");
        write("sys/devices/system/cpu/online", "0-7\n");
        write("sys/devices/system/cpu/isolated", "\n");
        write("sys/devices/system/node/node0/distance", "10 21\n");
        write("sys/devices/system/node/node1/distance", "21 10\n");
        write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        let facts = Facts::read(root.path());
        assert!(facts.intel && facts.vfio_pci && facts.has_word("iommu=pt") && facts.kvm.is_err());
        assert_eq!((facts.loader, facts.online.len(), facts.isolated.len()), (Loader::Grub, 8, 0));
        assert_eq!(facts.distances.get(&(0, 1)), Some(&21));
        assert_eq!(facts.lockdown.as_deref(), Some("integrity"));
    }
}
