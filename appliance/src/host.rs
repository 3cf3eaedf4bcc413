//! The host at one moment: what a plan is made from.

mod cards;
mod memory;
mod processors;
pub(crate) mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
pub use memory::{memory_policy, node_has_room};
use netconfig::blocking::with_network;
use netconfig::devlink::{self, Eswitch};
use netconfig::dhcp::DhcpTool;
use netconfig::nat::Nat;
use netconfig::{Difference, EswitchMode, LinkSettings, MacAddress, Owner, VfState, owner};
pub use processors::{affinity, nodes_of_processors, processors_online};
use serde::{Deserialize, Serialize};
use vfio::in_use::{Usage, Use};
use vfio::inventory::{Function, Inventory, serials};
use vfio::sriov::PhysicalFunction;
use vfio::{PciAddress, Sysfs};

use crate::apply::{Holder, Host, Ledger, Undo};
use crate::config::{Config, CpuList};

/// One snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct HostState {
    /// PCI functions and IOMMU groups.
    pub inventory: Inventory,
    /// What the host itself uses of them.
    pub uses: BTreeMap<PciAddress, Vec<Use>>,
    /// Functions that running guests hold.
    pub held: BTreeMap<PciAddress, Holder>,
    /// Burnt-in MAC addresses of interfaces.
    pub permanent_macs: BTreeMap<String, MacAddress>,
    /// MAC addresses of interfaces now.
    pub macs: BTreeMap<String, MacAddress>,
    /// Serial numbers of functions, where the file asks for some.
    pub serials: BTreeMap<PciAddress, BTreeSet<String>>,
    /// What functions were burnt in that vfio-pci has now, so that it cannot be read of them.
    pub remembered: BTreeMap<PciAddress, Burnt>,
    /// Bytes of memory that could be had now.
    pub memory_available: u64,
    /// The NUMA node of each processor, where the file says which a guest runs on.
    pub nodes_of_processors: BTreeMap<u32, u32>,
    /// Links, by name.
    pub links: BTreeMap<String, LinkSettings>,
    /// VFs of each PF, by index.
    pub vfs: BTreeMap<PciAddress, Vec<VfState>>,
    /// How PFs make their VFs.
    pub pfs: BTreeMap<PciAddress, PfSettings>,
    /// What makes bridges NAT networks, by the bridge's name.
    pub nats: BTreeMap<String, Nat>,
    /// What of NAT networks is not as it was made, by the bridge's name; such a one is among `nats` too.
    pub nat_differences: BTreeMap<String, Vec<Difference>>,
    /// Addresses that links are told to take beside their own (`bridge fdb show self`).
    pub forwarded: BTreeMap<String, BTreeSet<MacAddress>>,
    /// Who asks for the box's own addresses.
    pub dhcp: DhcpState,
    /// Huge pages that are set aside, by their size in bytes.
    pub hugepages: BTreeMap<u64, u64>,
    /// The address of this box that the person at the keyboard came in by, when it was over the network.
    pub session: Option<IpAddr>,
    /// The links that this person's packets come in and leave by: that of the scope, and the way back.
    pub session_links: BTreeSet<String>,
    /// Who else keeps a link as his own files say.
    pub owners: BTreeMap<String, Owner>,
}

/// What is burnt into a device and told by its own driver only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Burnt {
    /// MAC address of its interface.
    pub permanent_mac: Option<MacAddress>,
    /// Its serial numbers.
    pub serials: BTreeSet<String>,
}

/// The box's own DHCP clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct DhcpState {
    /// The one that can be started for a link; none where the box has none.
    pub client: Option<DhcpTool>,
    /// Links on which one that Throughway started asks.
    pub running: BTreeSet<String>,
}

/// How a PF makes its VFs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct PfSettings {
    /// sriov_drivers_autoprobe; none where the kernel does not have it.
    pub drivers_autoprobe: Option<bool>,
    /// How the card's switch is run; none where the driver does not say.
    pub eswitch_mode: Option<EswitchMode>,
}

impl HostState {
    /// Reads it. `macs` says whether MAC addresses are needed, of interfaces and of VFs.
    pub fn read(sysfs: &Sysfs, ledger: &Ledger, macs: bool) -> anyhow::Result<Self> {
        let inventory = Inventory::scan(sysfs);
        let usage = Usage::read(sysfs, Path::new("/proc"));
        let uses = inventory.functions.values().map(|function| (function.address, usage.of(function)));
        let uses = uses.filter(|(_, uses)| !uses.is_empty()).collect();
        let memory_available = memory_available(Path::new("/proc"));
        let mut host = Self { inventory, uses, held: ledger.held()?, memory_available, ..Self::default() };
        if macs {
            host.read_macs(sysfs)?;
        }
        Ok(host)
    }

    /// Reads links too, and how the administrator comes in by them.
    pub fn read_links(&mut self) -> anyhow::Result<()> {
        self.links = with_network(async |network| network.settings().await)?;
        self.read_session()
    }

    fn read_session(&mut self) -> anyhow::Result<()> {
        if let Some(session) = session::Session::current() {
            self.session_links = session.links();
            self.session = Some(session.own);
        }
        self.owners = owners(Path::new("/"))?;
        Ok(())
    }

    /// Interfaces' MAC addresses, and VFs, which have one each.
    fn read_macs(&mut self, sysfs: &Sysfs) -> anyhow::Result<()> {
        let physical: Vec<_> = self.physical().collect();
        let (links, vfs) = with_network(async |network| {
            let mut vfs = BTreeMap::new();
            for (pf, interface) in &physical {
                if let Some(interface) = interface {
                    match network.vfs(interface).await {
                        Ok(found) => drop(vfs.insert(*pf, found)),
                        // It went away just now, or is in another network namespace than this process.
                        Err(netconfig::Error::Absent(_)) => tracing::debug!("{pf}: {interface} is not here"),
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok((network.links().await?, vfs))
        })?;
        self.vfs = vfs;
        for (pf, vfs) in &mut self.vfs {
            let able = self.inventory.functions.get(pf).and_then(|pf| pf.sriov.as_ref());
            for (address, vf) in able.iter().flat_map(|able| &able.vfs).zip(vfs) {
                let function = self.inventory.functions.get(address);
                if function.is_some_and(|function| !function.interfaces.is_empty()) {
                    without_chosen_mac(sysfs, *address, vf);
                }
            }
        }
        self.take_macs(links);
        Ok(())
    }

    fn take_macs(&mut self, links: Vec<netconfig::Link>) {
        for link in links {
            if let Some(mac) = link.permanent_mac.or(link.mac_address) {
                self.permanent_macs.insert(link.name.clone(), mac);
            }
            self.macs.extend(link.mac_address.map(|mac| (link.name, mac)));
        }
    }

    /// The NUMA nodes of these processors.
    pub fn nodes_of(&self, processors: &CpuList) -> BTreeSet<u32> {
        processors.0.iter().filter_map(|cpu| self.nodes_of_processors.get(cpu).copied()).collect()
    }

    /// Functions that offer VFs, each with its interface.
    fn physical(&self) -> impl Iterator<Item = (PciAddress, Option<String>)> {
        let physical = self.inventory.functions.values().filter(|function| function.sriov.is_some());
        physical.map(|pf| (pf.address, pf.interfaces.first().cloned()))
    }

    /// Reads what devices are recognized by, where a file needs it, and remembers what was read of those that are lent by now.
    pub fn recognize(&mut self, place: &Host, config: &Config) -> anyhow::Result<()> {
        let matches = || config.devices.values().map(|device| &device.matches);
        if config.vms.values().any(|vm| vm.cpus.cpuset().is_some()) {
            self.nodes_of_processors = nodes_of_processors(Path::new("/sys"));
        }
        if matches().any(|matches| matches.serial.is_some()) {
            self.read_serials(&place.sysfs);
        }
        if matches().any(|matches| matches.serial.is_some() || matches.permanent_mac.is_some()) {
            self.remembered = place.sightings.read()?.remembered(&self.inventory);
        }
        Ok(())
    }

    /// Reads all serial numbers. VFs have none of their own.
    pub fn read_serials(&mut self, sysfs: &Sysfs) {
        let whole = self.inventory.functions.values().filter(|function| function.physical_function.is_none());
        let read = whole.map(|function| (function.address, serials(sysfs, function.address)));
        self.serials = read.filter(|(_, serials)| !serials.is_empty()).collect();
    }

    /// The MAC address that is burnt into a function.
    pub fn permanent_mac(&self, function: &Function) -> Option<MacAddress> {
        let interface = function.interfaces.first();
        match interface {
            Some(interface) => self.permanent_macs.get(interface).copied(),
            None => self.remembered.get(&function.address)?.permanent_mac,
        }
    }

    /// The serial numbers of a function, those among them that only its own driver tells.
    pub fn serials(&self, address: PciAddress) -> impl Iterator<Item = &String> {
        let remembered = self.remembered.get(&address).map(|burnt| &burnt.serials);
        self.serials.get(&address).into_iter().chain(remembered).flatten()
    }

    /// Reads it with links, VFs and huge pages: what the whole file is planned on.
    pub fn read_all(place: &Host, ledger: &Ledger) -> anyhow::Result<Self> {
        let sysfs = &place.sysfs;
        let mut host = Self::read(sysfs, ledger, true)?;
        let physical: Vec<PciAddress> = host.physical().map(|(pf, _)| pf).collect();
        (host.links, host.forwarded) = with_network(async |network| {
            // Only cards with VFs have to be told of anybody.
            let told = if physical.is_empty() { BTreeMap::new() } else { network.forwarded().await? };
            Ok((network.settings().await?, told))
        })?;
        for pf in physical {
            let drivers_autoprobe = PhysicalFunction::of(sysfs, pf)?.state()?.drivers_autoprobe;
            host.pfs.insert(pf, PfSettings { drivers_autoprobe, eswitch_mode: eswitch_mode(pf)? });
        }
        for (name, nat) in place.nats.settings()? {
            let differences = place.nats.differences(&name, Some(&nat))?;
            if !differences.is_empty() {
                host.nat_differences.insert(name.clone(), differences);
            }
            host.nats.insert(name, nat);
        }
        let running = place.dhcp.links().context("Reading which DHCP clients run")?;
        host.dhcp = DhcpState { client: place.dhcp.client(), running };
        let sys = Path::new("/sys");
        let sizes = [0x20_0000, 0x4000_0000].into_iter().filter(|size| hugepage_folder(sys, *size).is_dir());
        host.hugepages = sizes.map(|size| (size, huge_pages(sys, size))).collect();
        host.read_session()?;
        Ok(host)
    }

    /// Whether something is as an undo would make it.
    pub fn is(&self, undo: &Undo) -> bool {
        match undo {
            Undo::Hugepages { size, before } => self.hugepages.get(&size.0).is_none_or(|now| now == before),
            Undo::Link { name, before } => self.links.get(name) == before.as_deref(),
            Undo::Nat { name, before } => {
                self.nats.get(name) == before.as_deref() && !self.nat_differences.contains_key(name)
            }
            // Put back with the links, and never a wish of its own.
            Undo::Routes { .. } => true,
            Undo::Forward { link, mac, before } => {
                self.forwarded.get(link).is_some_and(|told| told.contains(mac)) == *before
            }
            Undo::Dhcp { name, before } => self.dhcp.running.contains(name) == *before,
            Undo::Sriov { pf, before, eswitch_mode } => {
                let sriov = self.inventory.function(*pf).and_then(|pf| pf.sriov.as_ref());
                let settings = self.pfs.get(pf).copied().unwrap_or_default();
                sriov.is_none_or(|sriov| sriov.num_vfs == before.num_vfs)
                    && settings.drivers_autoprobe == before.drivers_autoprobe
                    && settings.eswitch_mode == *eswitch_mode
            }
            Undo::Driver { address, before, .. } => {
                self.inventory.function(*address).is_none_or(|function| {
                    function.driver == before.driver && function.driver_override == before.driver_override
                })
            }
            Undo::Vf { pf, before } => {
                let now = self.vfs.get(pf).and_then(|vfs| vfs.iter().find(|vf| vf.id == before.id));
                now.is_none_or(|now| now == before)
            }
        }
    }
}

/// Huge pages of `page` bytes that are set aside.
pub fn huge_pages(sys: &Path, page: u64) -> u64 {
    let text = std::fs::read_to_string(hugepage_folder(sys, page).join("nr_hugepages"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Sets huge pages of `page` bytes aside, and says how many there are then: the kernel gives what it finds.
pub fn set_huge_pages(sys: &Path, page: u64, number: u64) -> anyhow::Result<u64> {
    let path = hugepage_folder(sys, page).join("nr_hugepages");
    std::fs::write(&path, number.to_string())
        .with_context(|| format!("Writing {number} to {}", path.display()))?;
    Ok(huge_pages(sys, page))
}

fn hugepage_folder(sys: &Path, page: u64) -> PathBuf {
    sys.join(format!("kernel/mm/hugepages/hugepages-{}kB", page >> 10))
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
    let folder = hugepage_folder(sys, page);
    let number = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    number("free_hugepages").saturating_sub(number("resv_hugepages"))
}

/// An address that the VF's own driver on this host made up (NET_ADDR_RANDOM, include/uapi/linux/netdevice.h) reads at the PF as if
/// it were the administrator's. To put it back as such would make it stick to the VF: it is no address.
pub fn without_chosen_mac(sysfs: &Sysfs, address: PciAddress, vf: &mut VfState) {
    let interfaces = std::fs::read_dir(sysfs.device(address).join("net")).into_iter().flatten().flatten();
    let mut chosen = interfaces.filter_map(|interface| {
        let read = |name: &str| std::fs::read_to_string(interface.path().join(name)).ok();
        let mac = read("address")?.trim().parse().ok()?;
        (read("addr_assign_type")?.trim() == "1").then_some(mac)
    });
    if chosen.any(|mac: MacAddress| vf.mac_address == Some(mac)) {
        vf.mac_address = Some(MacAddress([0; 6]));
    }
}

/// Who else keeps each link; `root` is `/`.
pub fn owners(root: &Path) -> anyhow::Result<BTreeMap<String, Owner>> {
    let links = with_network(async |network| network.links().await)?;
    let owned =
        |link: netconfig::Link| Some((link.name.clone(), owner::owner(root, &link.name, link.index)?));
    Ok(links.into_iter().filter_map(owned).collect())
}

/// How a PF's switch is run; none where its driver does not say.
pub fn eswitch_mode(pf: PciAddress) -> anyhow::Result<Option<EswitchMode>> {
    Ok(match devlink::eswitch_mode("pci", &pf.to_string())? {
        Eswitch::Mode(mode) => Some(mode),
        Eswitch::Unsupported(_) => None,
    })
}

/// Has a PF's switch run so.
pub fn set_eswitch_mode(pf: PciAddress, mode: EswitchMode) -> anyhow::Result<()> {
    Ok(devlink::set_eswitch_mode("pci", &pf.to_string(), mode)?)
}
