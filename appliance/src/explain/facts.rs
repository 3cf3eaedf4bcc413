//! What is read of a function only when somebody asks about it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vfio::inventory::{Function, Inventory};
use vfio::isolation::{Isolation, from_root};
use vfio::{PciAddress, Sysfs};

use super::{Reason, Verdict};

/// The part of a function's state that can stand in a guest's way, and is not in the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How awake it is.
    pub power: Power,
    /// The firmware drew its screen with it: the ROM that can be read is a copy that the firmware has run.
    pub boot_display: bool,
    /// The host's text console is drawn by it: the framebuffer's name.
    pub console: Option<String>,
    /// The mode of the kernel's lockdown, where it is on: `integrity`, `confidentiality`.
    pub lockdown: Option<String>,
    /// Processes that have one of its device nodes open: node, process number and name.
    pub open: Vec<(String, u32, String)>,
}

/// Power state (PCI Bus Power Management 1.2, 5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// D0 to D3hot, or not known.
    #[default]
    On,
    /// Without power: config space reads all ones until it is woken.
    D3cold,
}

impl Facts {
    /// Reads them from sysfs and `proc` (`/proc`).
    pub fn read(sysfs: &Sysfs, proc: &Path, address: PciAddress) -> Self {
        let folder = sysfs.device(address);
        let text = |path: &Path| fs::read_to_string(path).map(|text| text.trim_end().to_owned()).ok();
        let power = match text(&folder.join("power_state")).as_deref() {
            Some("D3cold") => Power::D3cold,
            _ => Power::On,
        };
        let lockdown = text(&sysfs.path("kernel/security/lockdown")).and_then(|text| chosen(&text));
        Self {
            power,
            boot_display: text(&folder.join("boot_vga")).as_deref() == Some("1"),
            console: below(&folder.join("graphics")).into_iter().next(),
            lockdown: lockdown.filter(|mode| mode != "none"),
            open: open_nodes(&nodes(&folder), proc),
        }
    }

    /// Each fact that matters, as a reason.
    pub(super) fn remarks(&self, function: &Function) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut say = |weight, message: String, help: &str| {
            reasons.push(Reason { weight, message, help: Some(help.to_owned()) });
        };
        let address = function.address;
        if self.power == Power::D3cold {
            let help = "write `on` to its power/control in sysfs, and 0 to d3cold_allowed";
            say(
                Verdict::PossibleAfter,
                format!("{address} is without power (D3cold): its config space cannot be read"),
                help,
            );
        }
        for (node, pid, name) in &self.open {
            let help = "end that process: its driver does not let go of the device before";
            say(Verdict::PossibleAfter, format!("process {pid} ({name}) has {node} open"), help);
        }
        if function.reset_methods.is_empty() && !function.is_bridge() {
            let help =
                "power the host off and on between guests that do not trust each other, or use another card";
            say(
                Verdict::Ready,
                "The kernel knows no way to reset it: the next guest finds it as the last one left it"
                    .to_owned(),
                help,
            );
        }
        if self.boot_display {
            let help =
                "make another card the primary display in the firmware, or keep the guest from using its ROM";
            say(
                Verdict::Ready,
                "The firmware drew its screen with it: its ROM is a copy that has been run (shadowed)"
                    .to_owned(),
                help,
            );
        }
        if let Some(console) = &self.console {
            let help = "have a serial console or SSH at hand";
            say(
                Verdict::Ready,
                format!("The host's text console is on it ({console}): it stays dark while a guest has it"),
                help,
            );
        }
        if let Some(mode) = &self.lockdown {
            let help = "nothing is to be done for VFIO itself; modules must be signed, and raw access to devices is refused";
            say(Verdict::Ready, format!("The kernel is locked down (Secure Boot, mode {mode})"), help);
        }
        reasons
    }
}

/// What config space says about isolation: of the function, its device's other functions, what is above it, and its group with
/// what is above them.
pub fn isolation(
    sysfs: &Sysfs,
    inventory: &Inventory,
    address: PciAddress,
) -> BTreeMap<PciAddress, Isolation> {
    let members = inventory.group_of(address).into_iter().flat_map(|group| &group.members);
    let slot = |it: PciAddress| (it.domain, it.bus, it.device);
    let beside = inventory.functions.keys().copied().filter(|other| slot(*other) == slot(address));
    let mut wanted: Vec<PciAddress> = members
        .map(|member| member.address)
        .chain(beside)
        .flat_map(|member| from_root(inventory, member))
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.into_iter().filter_map(|one| Some((one, Isolation::read(sysfs, one)?))).collect()
}

/// The word in brackets of `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
}

fn below(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().to_str().map(str::to_owned)).collect();
    names.sort_unstable();
    names
}

/// Device nodes of what is below a function, from the `DEVNAME` of each `uevent`.
fn nodes(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![(folder.to_owned(), 0)];
    while let Some((at, depth)) = left.pop() {
        for name in below(&at) {
            let child = at.join(&name);
            // Functions below a bridge are not its own; symbolic links lead elsewhere.
            let own = child.symlink_metadata().is_ok_and(|data| data.is_dir());
            if !own || depth >= 5 || name.parse::<PciAddress>().is_ok() {
                continue;
            }
            let uevent = fs::read_to_string(child.join("uevent")).unwrap_or_default();
            found.extend(
                uevent.lines().filter_map(|line| Some(format!("/dev/{}", line.strip_prefix("DEVNAME=")?))),
            );
            left.push((child, depth + 1));
        }
    }
    found.sort_unstable();
    found
}

/// Who has one of `nodes` open. Processes of others are seen by root alone.
fn open_nodes(nodes: &[String], proc: &Path) -> Vec<(String, u32, String)> {
    let mut found = Vec::new();
    if nodes.is_empty() {
        return found;
    }
    for pid in below(proc).iter().filter_map(|name| name.parse::<u32>().ok()) {
        let folder = proc.join(pid.to_string());
        let links = below(&folder.join("fd")).into_iter();
        let mut open: Vec<String> = links
            .filter_map(|fd| fs::read_link(folder.join("fd").join(fd)).ok()?.to_str().map(str::to_owned))
            .filter(|target| nodes.contains(target))
            .collect();
        open.sort_unstable();
        open.dedup();
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        found.extend(open.into_iter().map(|node| (node, pid, name.trim_end().to_owned())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_mode_is_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(chosen("none"), None);
    }

    #[test]
    fn who_has_a_node_open_is_found() {
        let root = tempfile::tempdir().unwrap();
        let card = root.path().join("drm/card0");
        fs::create_dir_all(&card).unwrap();
        fs::write(card.join("uevent"), "MAJOR=226\nDEVNAME=null\n").unwrap();
        assert_eq!(nodes(root.path()), ["/dev/null"]);
        let held = fs::File::open("/dev/null").unwrap();
        let open = open_nodes(&nodes(root.path()), Path::new("/proc"));
        assert!(open.iter().any(|(node, pid, _)| node == "/dev/null" && *pid == std::process::id()));
        drop(held);
    }
}
