//! Names of vendors, devices and classes: the host's own list where there is one, the built-in one otherwise.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use super::Function;

/// The built-in list: that of the crate `pci-ids`, as text (`build.rs` says why), read when it is first asked for.
static BUILT_IN: LazyLock<Names> =
    LazyLock::new(|| Names::parse(include_str!(concat!(env!("OUT_DIR"), "/names"))));
/// `CCSS  Name`: class and subclass.
const CLASSES: &str = include_str!(concat!(env!("OUT_DIR"), "/classes"));

/// Where distributions keep the list.
const HOST_LIST: &str = "/usr/share/misc/pci.ids";

/// A list of names. The host's is newer than ours, as a rule, and is read once.
#[derive(Debug, Default)]
pub struct Names {
    vendors: HashMap<u16, String>,
    devices: HashMap<(u16, u16), String>,
}

impl Names {
    /// The host's list, as far as it can be read.
    pub fn load() -> Self {
        Self::load_from(Path::new(HOST_LIST))
    }

    /// The list at `path`; empty where it cannot be read.
    pub fn load_from(path: &Path) -> Self {
        // Not all of these lists are UTF-8.
        std::fs::read(path).map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
    }

    /// `VVVV  Name`, and below it `<tab>DDDD  Name`; two tabs are subsystems, `C ` begins classes.
    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let mut vendor = None;
        for line in text.lines() {
            if line.starts_with("C ") {
                break;
            }
            if line.is_empty() || line.starts_with('#') || line.starts_with("\t\t") {
                continue;
            }
            let Some((id, name)) = line.trim_start().split_once("  ") else { continue };
            let Ok(id) = u16::from_str_radix(id, 16) else { continue };
            match (line.starts_with('\t'), vendor) {
                (false, _) => {
                    vendor = Some(id);
                    list.vendors.insert(id, name.to_owned());
                }
                (true, Some(vendor)) => {
                    list.devices.insert((vendor, id), name.to_owned());
                }
                (true, None) => {}
            }
        }
        list
    }

    /// A vendor's name.
    pub fn vendor(&self, vendor: u16) -> Option<&str> {
        self.vendors.get(&vendor).or_else(|| BUILT_IN.vendors.get(&vendor)).map(String::as_str)
    }

    /// A device's name.
    pub fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        let id = (vendor, device);
        self.devices.get(&id).or_else(|| BUILT_IN.devices.get(&id)).map(String::as_str)
    }

    /// What kind of function it is: `Ethernet controller`.
    pub fn class(&self, class: u32) -> Option<&'static str> {
        let id = format!("{:04x}  ", class >> 8 & 0xffff);
        CLASSES.lines().find_map(|line| line.strip_prefix(&id))
    }

    /// `Intel Corporation 82576 Virtual Function`, or the numbers where nobody knows a name.
    pub fn describe(&self, function: &Function) -> String {
        let vendor =
            self.vendor(function.vendor).map_or_else(|| format!("[{:04x}]", function.vendor), str::to_owned);
        let device = self.device(function.vendor, function.device);
        format!("{vendor} {}", device.map_or_else(|| format!("[{:04x}]", function.device), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_list_wins_and_the_built_in_one_fills_gaps() {
        let list = "# a comment\n8086  Intel\n\t10ca  A new name\n\t\t1028 0001  A subsystem\nC 02  Network\n\t00  Ethernet\n";
        let names = Names::parse(list);
        assert_eq!(names.vendor(0x8086), Some("Intel"));
        assert_eq!(names.device(0x8086, 0x10ca), Some("A new name"));
        assert_eq!(names.device(0x8086, 0x10c9), Some("82576 Gigabit Network Connection"));
        assert_eq!(names.class(0x02_0000), Some("Ethernet controller"));
        let nobody = (1..u16::MAX).find(|id| !BUILT_IN.vendors.contains_key(id)).unwrap();
        assert_eq!(names.vendor(nobody), None);
    }
}
