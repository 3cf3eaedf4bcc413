//! The host at one moment: what a plan is made from.

use std::collections::BTreeMap;
use std::path::Path;

use netconfig::MacAddress;
use netconfig::blocking::with_network;
use serde::Serialize;
use vfio::in_use::{Usage, Use};
use vfio::inventory::Inventory;
use vfio::{PciAddress, Sysfs};

use crate::apply::{Holder, Ledger};

/// One snapshot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostState {
    /// PCI functions and IOMMU groups.
    pub inventory: Inventory,
    /// What the host itself uses of them.
    pub uses: BTreeMap<PciAddress, Vec<Use>>,
    /// Functions that running guests hold.
    pub held: BTreeMap<PciAddress, Holder>,
    /// Burnt-in MAC addresses of interfaces.
    pub permanent_macs: BTreeMap<String, MacAddress>,
    /// Bytes of memory that could be had now.
    pub memory_available: u64,
}

impl HostState {
    /// Reads it. `macs` says whether burnt-in MAC addresses are needed.
    pub fn read(sysfs: &Sysfs, ledger: &Ledger, macs: bool) -> anyhow::Result<Self> {
        let inventory = Inventory::scan(sysfs);
        let usage = Usage::read(sysfs, Path::new("/proc"));
        let uses = inventory.functions.values().map(|function| (function.address, usage.of(function)));
        let uses = uses.filter(|(_, uses)| !uses.is_empty()).collect();
        let permanent_macs = if macs { permanent_macs()? } else { BTreeMap::new() };
        let memory_available = memory_available(Path::new("/proc"));
        Ok(Self { inventory, uses, held: ledger.held()?, permanent_macs, memory_available })
    }
}

/// MemAvailable of /proc/meminfo, in bytes; without end where it cannot be read.
pub fn memory_available(proc: &Path) -> u64 {
    let text = std::fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

/// Whether so many bytes are free at once, which costs less to ask than what could be made free.
pub fn memory_is_free(size: u64) -> bool {
    let info = rustix::system::sysinfo();
    info.freeram.saturating_mul(info.mem_unit.into()) >= size
}

/// Huge pages of `page` bytes that nobody has been promised; none where the kernel has no such pages.
pub fn huge_pages_free(sys: &Path, page: u64) -> u64 {
    let folder = sys.join(format!("kernel/mm/hugepages/hugepages-{}kB", page >> 10));
    let number = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    number("free_hugepages").saturating_sub(number("resv_hugepages"))
}

fn permanent_macs() -> anyhow::Result<BTreeMap<String, MacAddress>> {
    let links = with_network(async |network| network.links().await)?;
    let mac = |link: netconfig::Link| {
        let mac = link.permanent_mac.or(link.mac_address)?;
        Some((link.name, mac))
    };
    Ok(links.into_iter().filter_map(mac).collect())
}
