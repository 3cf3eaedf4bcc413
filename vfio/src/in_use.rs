//! Who on the host uses a function: what would be hurt if it were taken away.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::inventory::Function;
use crate::sysfs::{Sysfs, link_name, names};

/// One use of a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// A file system on one of its disks is mounted.
    Mount {
        /// The disk or partition.
        device: String,
        /// Where.
        at: String,
    },
    /// The host swaps to one of its disks.
    Swap {
        /// The disk or partition.
        device: String,
    },
    /// The default route leaves by one of its interfaces, or by a bridge or bond that it is a port of.
    DefaultRoute {
        /// The interface that the route names.
        interface: String,
    },
    /// One of its interfaces is a port of a bridge or bond.
    Port {
        /// The interface.
        interface: String,
        /// The bridge or bond.
        controller: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { device, at } => write!(f, "{device} is mounted at {at}"),
            Self::Swap { device } => write!(f, "the host swaps to {device}"),
            Self::DefaultRoute { interface } => write!(f, "the default route leaves by {interface}"),
            Self::Port { interface, controller } => write!(f, "{interface} is a port of {controller}"),
        }
    }
}

/// What the host does with its devices, read once: mounts, swap, routes.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    sysfs: Sysfs,
    mounts: Vec<(String, String)>,
    swaps: Vec<String>,
    routes: BTreeSet<String>,
}

impl Usage {
    /// Reads it from `proc` (`/proc`).
    pub fn read(sysfs: &Sysfs, proc: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
        let mut routes = ipv4_default(&text("net/route"));
        routes.extend(ipv6_default(&text("net/ipv6_route")));
        Self {
            sysfs: sysfs.clone(),
            mounts: mounts(&text("self/mounts")),
            swaps: swaps(&text("swaps")),
            routes,
        }
    }

    /// All uses of a function.
    pub fn of(&self, function: &Function) -> Vec<Use> {
        let mut uses = BTreeSet::new();
        for disk in &function.block_devices {
            let devices = self.stacked_on(disk);
            let ours = |name: &String| devices.contains(name);
            uses.extend(
                self.mounts
                    .iter()
                    .filter(|(device, _)| ours(device))
                    .map(|(device, at)| Use::Mount { device: device.clone(), at: at.clone() }),
            );
            uses.extend(
                self.swaps
                    .iter()
                    .filter(|device| ours(device))
                    .map(|device| Use::Swap { device: device.clone() }),
            );
        }
        for interface in &function.interfaces {
            let controller = link_name(&self.sysfs.path("class/net").join(interface).join("master"));
            for name in [Some(interface), controller.as_ref()].into_iter().flatten() {
                if self.routes.contains(name) {
                    uses.insert(Use::DefaultRoute { interface: name.clone() });
                }
            }
            if let Some(controller) = controller {
                uses.insert(Use::Port { interface: interface.clone(), controller });
            }
        }
        uses.into_iter().collect()
    }

    /// A disk, its partitions, and what LVM, dm-crypt and MD put on top of them.
    fn stacked_on(&self, disk: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut left = vec![disk.to_owned()];
        while let Some(name) = left.pop() {
            if !found.insert(name.clone()) {
                continue;
            }
            let folder = self.sysfs.path("class/block").join(&name);
            left.extend(names(&folder.join("holders")));
            let partition =
                |part: &String| part.starts_with(&name) && folder.join(part).join("partition").exists();
            left.extend(names(&folder).into_iter().filter(partition));
            if let Some(mapped) = crate::sysfs::read_maybe(&folder.join("dm/name")) {
                found.insert(format!("mapper/{mapped}"));
            }
        }
        found
    }
}

/// `/dev/nvme0n1p2 / ext4 ...`: device below /dev and mount point.
fn mounts(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let device = device_name(fields.next()?)?;
        Some((device, fields.next()?.replace("\\040", " ")))
    };
    text.lines().filter_map(line).collect()
}

fn swaps(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| device_name(line.split_whitespace().next()?)).collect()
}

/// `/dev/sda1` and `/dev/disk/by-.../...` alike, as the name below /dev.
fn device_name(path: &str) -> Option<String> {
    if !path.starts_with("/dev/") {
        return None;
    }
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    Some(real.to_str()?.strip_prefix("/dev/")?.to_owned())
}

/// /proc/net/route: interface, destination, gateway, flags, ..., mask, all in hexadecimal.
fn ipv4_default(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, flags, _, _, _, mask, ..] = fields.as_slice() else { return None };
        let up = u32::from_str_radix(flags, 16).ok()? & 1 != 0;
        (*destination == "00000000" && *mask == "00000000" && up).then(|| (*interface).to_owned())
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// /proc/net/ipv6_route: destination, its length, ..., flags, interface.
fn ipv6_default(text: &str) -> BTreeSet<String> {
    const UP: u32 = 1;
    const REJECT: u32 = 0x200;
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, .., flags, interface] = fields.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let default = destination.bytes().all(|b| b == b'0')
            && *length == "00"
            && flags & UP != 0
            && flags & REJECT == 0;
        (default && *interface != "lo").then(|| (*interface).to_owned())
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_of_both_kinds_are_seen() {
        let four = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth1\t0009A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(ipv4_default(four), BTreeSet::from(["eth0".to_owned()]));
        let zero = "0".repeat(32);
        let six = format!(
            "{zero} 00 {zero} 00 fe80{} 00000400 00000001 00000000 00000003 eth2\n{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n",
            "0".repeat(28)
        );
        assert_eq!(ipv6_default(&six), BTreeSet::from(["eth2".to_owned()]));
    }

    #[test]
    fn a_disk_is_in_use_through_its_partition_and_through_lvm() {
        let root = tempfile::tempdir().unwrap();
        let block = root.path().join("class/block");
        for folder in ["nvme9n1/nvme9n1p1", "nvme9n1/holders", "nvme9n1p1/holders/dm-7", "dm-7/dm"] {
            std::fs::create_dir_all(block.join(folder)).unwrap();
        }
        std::fs::write(block.join("nvme9n1/nvme9n1p1/partition"), "1\n").unwrap();
        std::fs::write(block.join("dm-7/dm/name"), "vg-root\n").unwrap();
        let usage = Usage { sysfs: Sysfs::at(root.path()), ..Usage::default() };
        let names = usage.stacked_on("nvme9n1");
        assert_eq!(names, ["dm-7", "mapper/vg-root", "nvme9n1", "nvme9n1p1"].map(str::to_owned).into());
    }
}
