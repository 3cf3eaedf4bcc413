//! Trees of sysfs in a folder, made from a short text: shapes of real machines for tests and benches.
//!
//! A line is a function, and what is below it is indented by two spaces more:
//!
//! ```text
//! 00:01.0 8086:1901 060400 port=root acs=none driver=pcieport group=1
//!   01:00.0 10de:2204 030000 multi driver=nouveau group=1 reset=bus
//!   01:00.1 10de:1aef 040300 multi driver=snd_hda_intel group=1
//! ```
//!
//! Address, vendor and device, class; then words: `port=` what it is on its link (`root`, `up`, `down`, `pci` for a bridge to a
//! conventional bus, `inside` for an endpoint of the root complex, `none` for a conventional function; an endpoint where nothing
//! is said), `acs=CAPABILITY/CONTROL` in hexadecimal or `none`, `multi`, `group=`, `driver=`, `reset=flr,bus`, `numa=`,
//! `subsystem=VENDOR:DEVICE`, `net=`, `disk=`, `vfs=THERE/TOTAL`, `vf=INDEX of the PF that was named last`, and `short` for a
//! config space of which only the first 64 bytes can be read. A line `iommu dmar0 ECAP` (or `iommu ivhd0`) is a unit; `#` begins a
//! comment.

mod config;
mod large;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub use large::large;

use crate::PciAddress;

/// What a line says of a function.
#[derive(Clone, Debug, Default)]
struct Line {
    address: PciAddress,
    vendor: u16,
    device: u16,
    class: u32,
    port: Port,
    acs: Option<(u16, u16)>,
    multi: bool,
    short: bool,
    group: Option<u32>,
    driver: Option<String>,
    reset: String,
    numa: Option<u32>,
    subsystem: (u16, u16),
    nets: Vec<String>,
    disks: Vec<String>,
    vfs: Option<(u16, u16)>,
    vf: Option<u16>,
}

/// What a function is on its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Port {
    #[default]
    Endpoint,
    Conventional,
    Root,
    Up,
    Down,
    ToPci,
    Inside,
}

/// Writes the tree that `text` describes below `root`, which is empty.
///
/// # Errors
/// A line that says something else, by its number, or a file that cannot be written.
pub fn write(root: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(root.join("bus/pci/devices"))?;
    let mut above: Vec<(usize, PathBuf)> = Vec::new();
    let mut pf = None;
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| io::Error::other(format!("line {}: {what}: {line}", number + 1));
        let words = line.trim_start();
        if words.is_empty() || words.starts_with('#') {
            continue;
        }
        if let Some(unit) = words.strip_prefix("iommu ") {
            match unit.split_once(' ') {
                Some((name, ecap)) => put(&root.join("class/iommu").join(name), "intel-iommu/ecap", ecap)?,
                None => fs::create_dir_all(root.join("class/iommu").join(unit))?,
            }
            continue;
        }
        let depth = line.len() - words.len();
        let function = parse(words).ok_or_else(|| wrong("this is no function"))?;
        above.retain(|(other, _)| *other < depth);
        let parent = above.last().map_or_else(
            || root.join(format!("devices/pci{:04x}:{:02x}", function.address.domain, function.address.bus)),
            |(_, folder)| folder.clone(),
        );
        let folder = parent.join(function.address.to_string());
        make(root, &folder, &function)?;
        if function.vfs.is_some() {
            pf = Some(folder.clone());
        }
        if let Some(index) = function.vf {
            let pf = pf.as_ref().ok_or_else(|| wrong("no PF is named before it"))?;
            symlink(format!("../{}", function.address), pf.join(format!("virtfn{index}")))?;
            let name = pf.file_name().ok_or_else(|| wrong("the PF has no name"))?;
            symlink(Path::new("..").join(name), folder.join("physfn"))?;
        }
        above.push((depth, folder));
    }
    Ok(())
}

fn parse(words: &str) -> Option<Line> {
    let hex = |text: &str| u16::from_str_radix(text, 16).ok();
    let pair = |text: &str| {
        let (one, other) = text.split_once(':')?;
        Some((hex(one)?, hex(other)?))
    };
    let mut words = words.split_whitespace();
    let mut line = Line { address: words.next()?.parse().ok()?, ..Line::default() };
    (line.vendor, line.device) = pair(words.next()?)?;
    line.class = u32::from_str_radix(words.next()?, 16).ok()?;
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "port" => {
                line.port = match value {
                    "root" => Port::Root,
                    "up" => Port::Up,
                    "down" => Port::Down,
                    "pci" => Port::ToPci,
                    "inside" => Port::Inside,
                    "none" => Port::Conventional,
                    _ => return None,
                }
            }
            "acs" if value == "none" => line.acs = None,
            "acs" => {
                let (capability, control) = value.split_once('/')?;
                line.acs = Some((hex(capability)?, hex(control)?));
            }
            "multi" => line.multi = true,
            "short" => line.short = true,
            "group" => line.group = Some(value.parse().ok()?),
            "driver" => line.driver = Some(value.to_owned()),
            "reset" => line.reset = value.replace(',', " "),
            "numa" => line.numa = Some(value.parse().ok()?),
            "subsystem" => line.subsystem = pair(value)?,
            "net" => line.nets.push(value.to_owned()),
            "disk" => line.disks.push(value.to_owned()),
            "vfs" => {
                let (there, total) = value.split_once('/')?;
                line.vfs = Some((there.parse().ok()?, total.parse().ok()?));
            }
            "vf" => line.vf = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(line)
}

/// A function's folder with the attributes that a kernel of today has, and the links that lead to it.
fn make(root: &Path, folder: &Path, line: &Line) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, value) in attributes(line) {
        fs::write(folder.join(name), format!("{value}\n"))?;
    }
    let config = config::space(line);
    fs::write(folder.join("config"), config.get(..64).filter(|_| line.short).unwrap_or(&config))?;
    for name in ["remove", "rescan", "reset"] {
        fs::write(folder.join(name), "")?;
    }
    for (name, value) in [("control", "auto"), ("runtime_status", "active"), ("runtime_usage", "0")] {
        put(folder, &format!("power/{name}"), value)?;
    }
    symlink("../../../bus/pci", folder.join("subsystem"))?;
    if let Some(group) = line.group {
        symlink(format!("../../../kernel/iommu_groups/{group}"), folder.join("iommu_group"))?;
    }
    if let Some(driver) = &line.driver {
        symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver"))?;
        put(folder, "msi_irqs/40", "msix")?;
    }
    for net in &line.nets {
        put(folder, &format!("net/{net}/mtu"), "1500")?;
    }
    for disk in &line.disks {
        let controller = disk.rsplit_once('n').map_or(disk.as_str(), |(controller, _)| controller);
        put(folder, &format!("nvme/{controller}/{disk}/queue/rotational"), "0")?;
        put(folder, &format!("nvme/{controller}/{disk}/size"), "1000215216")?;
        put(folder, &format!("nvme/{controller}/model"), "a disk")?;
    }
    // As the kernel has it: relative.
    let real = Path::new("../../..").join(folder.strip_prefix(root).unwrap_or(folder));
    symlink(real, root.join("bus/pci/devices").join(line.address.to_string()))
}

fn attributes(line: &Line) -> Vec<(&'static str, String)> {
    let hex = |number: u16| format!("{number:#06x}");
    let mut list = vec![
        ("vendor", hex(line.vendor)),
        ("device", hex(line.device)),
        ("class", format!("{:#08x}", line.class)),
        ("revision", "0x01".to_owned()),
        ("subsystem_vendor", hex(line.subsystem.0)),
        ("subsystem_device", hex(line.subsystem.1)),
        ("numa_node", line.numa.map_or("-1".to_owned(), |node| node.to_string())),
        ("driver_override", "(null)".to_owned()),
        ("resource", resource(line)),
        ("uevent", uevent(line)),
        ("power_state", "D0".to_owned()),
        ("irq", "0".to_owned()),
        ("enable", "1".to_owned()),
        ("modalias", modalias(line)),
        ("local_cpulist", "0-127".to_owned()),
        ("ari_enabled", "1".to_owned()),
        ("broken_parity_status", "0".to_owned()),
        ("consistent_dma_mask_bits", "64".to_owned()),
        ("dma_mask_bits", "64".to_owned()),
        ("d3cold_allowed", "1".to_owned()),
        ("msi_bus", "1".to_owned()),
    ];
    if !line.reset.is_empty() {
        list.push(("reset_method", line.reset.clone()));
    }
    if !matches!(line.port, Port::Conventional | Port::Inside) {
        list.extend([
            ("current_link_speed", "16.0 GT/s PCIe".to_owned()),
            ("current_link_width", "8".to_owned()),
            ("max_link_speed", "16.0 GT/s PCIe".to_owned()),
            ("max_link_width", "16".to_owned()),
        ]);
    }
    if let Some((there, total)) = line.vfs {
        list.extend([
            ("sriov_numvfs", there.to_string()),
            ("sriov_totalvfs", total.to_string()),
            ("sriov_drivers_autoprobe", "0".to_owned()),
            ("sriov_offset", "8".to_owned()),
            ("sriov_stride", "1".to_owned()),
            ("sriov_vf_device", "1889".to_owned()),
        ]);
    }
    list
}

/// As `pci_bus_type` of the kernel says what it is (scripts/mod/file2alias.c).
fn modalias(line: &Line) -> String {
    let [_, class, subclass, interface] = line.class.to_be_bytes();
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{class:02X}sc{subclass:02X}i{interface:02X}",
        line.vendor, line.device, line.subsystem.0, line.subsystem.1
    )
}

/// One 64-bit register for an endpoint, in a place of its own.
fn resource(line: &Line) -> String {
    let address = line.address;
    let number = u64::from(address.bus) << 8 | u64::from(address.device) << 3 | u64::from(address.function);
    let start = 0x20_0000_0000 + (number << 16);
    let first = if line.class >> 16 == 6 {
        "0x0000000000000000 0x0000000000000000 0x0000000000000000".to_owned()
    } else {
        format!("{start:#018x} {:#018x} 0x000000000014220c", start + 0xffff)
    };
    let none = "\n0x0000000000000000 0x0000000000000000 0x0000000000000000";
    first + &none.repeat(6)
}

fn uevent(line: &Line) -> String {
    let driver = line.driver.as_ref().map(|driver| format!("DRIVER={driver}\n")).unwrap_or_default();
    format!(
        "{driver}PCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\nPCI_SLOT_NAME={}",
        line.class, line.vendor, line.device, line.subsystem.0, line.subsystem.1, line.address
    )
}

/// A file some folders down.
fn put(folder: &Path, name: &str, value: &str) -> io::Result<()> {
    let path = folder.join(name);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sysfs;
    use crate::inventory::{Inventory, Modules};
    use crate::isolation::{Isolation, Kind};

    #[test]
    fn what_is_written_is_what_is_read() {
        let root = tempfile::tempdir().unwrap();
        let text = "iommu dmar0 f00f5a\n\
                    00:01.0 8086:1901 060400 port=root acs=5f/1d driver=pcieport group=1\n\
                    \x20 01:00.0 8086:10c9 020000 subsystem=8086:a03c multi driver=igb group=2 reset=flr,bus numa=1 net=eth1 vfs=1/7\n\
                    \x20 01:10.0 8086:10ca 020000 group=3 vf=0\n\
                    00:1d.0 144d:a808 010802 port=inside disk=nvme0n1\n";
        write(root.path(), text).unwrap();

        let sysfs = Sysfs::at(root.path());
        let mut inventory = Inventory::scan(&sysfs);
        inventory.look_closely(&sysfs, &Modules::default(), None);

        assert_eq!((inventory.functions.len(), inventory.iommu.interrupt_remapping), (4, Some(true)));
        let pf = inventory.function("01:00.0".parse().unwrap()).unwrap();
        assert_eq!((pf.vendor, pf.device, pf.class, pf.revision), (0x8086, 0x10c9, 0x02_0000, 1));
        assert_eq!((pf.subsystem_device, pf.numa_node), (0xa03c, Some(1)));
        assert_eq!((pf.path.as_deref(), pf.driver.as_deref()), (Some("00:01.0/00.0"), Some("igb")));
        assert_eq!((pf.interfaces.join(" "), pf.reset_methods.join(" ")), ("eth1".into(), "flr bus".into()));
        assert_eq!(pf.sriov.as_ref().unwrap().vfs, ["01:10.0".parse().unwrap()]);
        let vf = inventory.function("01:10.0".parse().unwrap()).unwrap();
        assert_eq!((vf.vf_index, vf.physical_function, vf.revision), (Some(0), Some(pf.address), 1));
        assert_eq!(inventory.function("00:1d.0".parse().unwrap()).unwrap().block_devices, ["nvme0n1"]);
        let port = Isolation::read(&sysfs, "00:01.0".parse().unwrap()).unwrap();
        assert_eq!((port.kind, port.gap()), (Kind::RootPort, None));
    }

    #[test]
    fn virtual_functions_are_read_in_part_and_looked_at_closely_when_asked() {
        let root = tempfile::tempdir().unwrap();
        let text = "01:00.0 8086:10c9 020000 multi driver=igb net=eth1 vfs=3/7\n\
                    01:10.0 8086:10ca 020000 driver=igbvf net=eth2 vf=0 reset=flr\n\
                    01:10.2 8086:10ca 020000 driver=vfio-pci vf=1 reset=flr\n\
                    01:10.4 8086:10ca 020000 vf=2 reset=flr\n";
        write(root.path(), text).unwrap();
        let sysfs = Sysfs::at(root.path());
        let devices = root.path().join("bus/pci/devices");
        fs::write(devices.join("0000:01:10.4/driver_override"), "vfio-pci\n").unwrap();
        // One whose attribute with all of it cannot be read.
        fs::remove_file(devices.join("0000:01:10.2/uevent")).unwrap();
        fs::write(root.path().join("modules.alias"), "alias pci:v00008086d000010CAsv*sd*bc*sc*i* igbvf\n")
            .unwrap();
        let modules = Modules::read(root.path());

        let mut inventory = Inventory::scan(&sysfs);

        let seen = |inventory: &Inventory, vf: &str| inventory.function(vf.parse().unwrap()).unwrap().clone();
        let (first, second, third) =
            (seen(&inventory, "01:10.0"), seen(&inventory, "01:10.2"), seen(&inventory, "01:10.4"));
        assert_eq!(first.interfaces, ["eth2"]);
        let drivers = [&first, &second, &third].map(|vf| vf.driver.as_deref());
        assert_eq!(drivers, [Some("igbvf"), Some("vfio-pci"), None]);
        for (index, vf) in (0..).zip([&first, &second, &third]) {
            assert_eq!((vf.vf_index, vf.device, vf.class), (Some(index), 0x10ca, 0x02_0000));
            assert!(vf.bars.is_empty() && vf.link.is_none() && vf.modules.is_empty());
        }
        assert_eq!(third.driver_override.as_deref(), Some("vfio-pci"));
        inventory.look_closely(&sysfs, &modules, Some(third.address));
        let third = seen(&inventory, "01:10.4");
        assert_eq!((third.bars.len(), third.revision, third.reset_methods.join(" ")), (1, 1, "flr".into()));
        assert_eq!((third.link.unwrap().max_width, third.modules), (16, vec!["igbvf".to_owned()]));
        assert!(seen(&inventory, "01:10.0").bars.is_empty());
        inventory.look_closely(&sysfs, &modules, None);
        assert_eq!(seen(&inventory, "01:10.0").bars.len(), 1);
    }

    #[test]
    fn a_line_that_says_something_else_is_named() {
        let root = tempfile::tempdir().unwrap();
        for (text, line) in
            [("\n00:01.0 8086:1901\n", "line 2"), ("00:01.0 8086:1901 060400 colour=red", "line 1")]
        {
            assert!(write(root.path(), text).unwrap_err().to_string().starts_with(line));
        }
    }

    #[test]
    fn the_large_machine_has_500_functions() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &large([64, 64, 48, 48, 32, 32, 40, 56])).unwrap();
        let inventory = Inventory::scan(&Sysfs::at(root.path()));
        assert_eq!(inventory.functions.len(), 500);
        let pfs = inventory.functions.values().filter_map(|function| function.sriov.as_ref());
        assert_eq!(pfs.map(|sriov| sriov.vfs.len()).sum::<usize>(), 384);
        assert!(inventory.iommu.is_on());
    }
}
