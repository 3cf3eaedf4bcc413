//! Whole functions: finding the one that a name means, and whether it may be given away.

use vfio::PciAddress;
use vfio::in_use::Use;
use vfio::inventory::{Function, same_serial};

use super::{Planner, SlotPlan, Step, Target};
use crate::apply::Holder;
use crate::config::{Device, GroupScope, Match, OnMismatch, Vm, pair};
use crate::host::HostState;

impl<'a> Planner<'a> {
    pub(super) fn pci(&mut self, vm: &Vm) {
        for (key, given) in &vm.pci {
            let path = ["vms", self.vm, "pci", key, "device"];
            let Some(device) = self.config.devices.get(&given.device) else { continue };
            let Some(function) = self.find(&given.device, device) else { continue };
            let refused = self.refusals.len();
            let functions = self.give(&path, function.address, device.group);
            if self.refusals.len() > refused {
                continue;
            }
            // One that vfio-pci has already is lent, too: the claim that says who holds it is made of what is lent.
            let lend = functions.iter().map(|address| Step::Lend(Target::Function(*address)));
            self.plan.steps.extend(lend);
            let functions = functions.into_iter().map(Target::Function).collect();
            self.plan.slots.push(SlotPlan { name: key.clone(), functions });
        }
    }

    /// The functions that go along with one, and whether they may.
    pub(super) fn give(&mut self, path: &[&str], address: PciAddress, scope: GroupScope) -> Vec<PciAddress> {
        let functions = self.scope(address, scope);
        self.guard(path, &functions);
        for address in &functions {
            self.may_go(path, *address, &functions);
        }
        functions
    }

    /// What the administrator comes by is never given away, nor what shares its group.
    fn guard(&mut self, path: &[&str], functions: &[PciAddress]) {
        let host = self.host;
        let own = functions.iter().find_map(|address| Some((address, self.management.by(host, *address)?)));
        if let Some((address, way)) = own {
            return self.refuse(path, way_in(*address, &way), Some(ANOTHER_WAY));
        }
        for address in functions {
            let group = host.inventory.group_of(*address).into_iter().flat_map(|group| &group.members);
            let shared = group
                .map(|member| member.address)
                .find_map(|member| Some((member, self.management.by(host, member)?)));
            if let Some((member, way)) = shared {
                let message = format!(
                    "{address} shares its IOMMU group with {member}, which is the way to this box: {way}"
                );
                return self.refuse(path, message, Some(ANOTHER_WAY));
            }
        }
    }

    /// What the host uses a function for, but for what [`Self::guard`] says of it already.
    fn other_uses(&self, address: PciAddress) -> impl Iterator<Item = &'a Use> + use<'a> {
        let way_in = self.management.by(self.host, address).is_some();
        let uses = self.host.uses.get(&address).into_iter().flatten();
        uses.filter(move |used| !way_in || !matches!(used, Use::DefaultRoute { .. }))
    }

    /// A VF that the host itself uses is not given away.
    pub(super) fn stays(&mut self, path: &[&str], address: PciAddress) {
        self.guard(path, &[address]);
        for used in self.other_uses(address) {
            self.refuse(path, used_for(address, used), Some(give_way(used)));
        }
    }

    /// The functions that go along with one, itself among them.
    pub(super) fn scope(&self, address: PciAddress, scope: GroupScope) -> Vec<PciAddress> {
        if scope == GroupScope::Single {
            return vec![address];
        }
        let group = self.host.inventory.group_of(address);
        let members = group.into_iter().flat_map(|group| &group.members);
        members.filter(|member| !member.bridge).map(|member| member.address).collect()
    }

    /// The one function that a device's name means. It is looked for once: every nic of a card asks for it.
    pub(super) fn find(&mut self, name: &str, device: &Device) -> Option<&'a Function> {
        if let Some(known) = self.found.get(name) {
            return *known;
        }
        let found = self.look_for(name, device);
        self.found.insert(name.to_owned(), found);
        found
    }

    fn look_for(&mut self, name: &str, device: &Device) -> Option<&'a Function> {
        let path = ["devices", name, "match"];
        let host = self.host;
        let fitting: Vec<&Function> = host
            .inventory
            .functions
            .values()
            .filter(|function| fits(host, &device.matches, function))
            .collect();
        match fitting.as_slice() {
            [function] => Some(function),
            [] => self.nearly(&path, device),
            several => {
                let addresses: Vec<_> = several.iter().map(|function| function.address.to_string()).collect();
                let message = format!("{} functions fit this: {}", several.len(), addresses.join(", "));
                self.refuse(
                    &path,
                    message,
                    Some("add a path, a serial, an address or a permanent-mac that only one has"),
                );
                None
            }
        }
    }

    /// Nothing fits: perhaps something else sits at the place.
    fn nearly(&mut self, path: &[&str], device: &Device) -> Option<&'a Function> {
        let place = Match {
            address: device.matches.address.clone(),
            path: device.matches.path.clone(),
            ..Match::default()
        };
        let host = self.host;
        let there = (place != Match::default())
            .then(|| host.inventory.functions.values().find(|function| fits(host, &place, function)))
            .flatten();
        let Some(function) = there else {
            let help = match device.matches.serial {
                Some(_) if host.serials.is_empty() => {
                    "no serial number could be read, which takes root; `throughway devices` lists those that there are"
                }
                _ => {
                    "`throughway devices` lists those that there are; `throughway devices adopt` re-points a name"
                }
            };
            self.refuse(path, "There is no such PCI function", Some(help));
            return None;
        };
        if device.on_mismatch == OnMismatch::Warn {
            tracing::warn!(
                "{}: it is not what `devices` describes; used all the same, as `on-mismatch: warn` asks",
                function.address
            );
            return Some(function);
        }
        let serials: Vec<&str> = host.serials(function.address).map(String::as_str).collect();
        let serial = match device.matches.serial {
            Some(_) if serials.is_empty() => ", without a serial number".to_owned(),
            Some(_) => format!(", serial {}", serials.join(" and ")),
            None => String::new(),
        };
        let message = format!(
            "Another device is there now: {} is {:04x}:{:04x}, subsystem {:04x}:{:04x}{serial}",
            function.address,
            function.vendor,
            function.device,
            function.subsystem_vendor,
            function.subsystem_device
        );
        self.refuse(
            path,
            message,
            Some(
                "a card was moved or exchanged: `throughway devices adopt` shows both and re-points the name",
            ),
        );
        None
    }

    /// Whether a function may leave the host, together with those in `given`.
    fn may_go(&mut self, path: &[&str], address: PciAddress, given: &[PciAddress]) {
        let host = self.host;
        let Some(function) = host.inventory.function(address) else { return };
        if function.is_bridge() {
            self.refuse(
                path,
                format!("{address} is a bridge"),
                Some("only endpoints can be given to a guest"),
            );
        }
        if let Some(holder) = host.held.get(&address) {
            self.refuse(path, held_by(address, holder), Some(STOP_IT));
        }
        for used in self.other_uses(address) {
            self.refuse(path, used_for(address, used), Some(give_way(used)));
        }
        if function.sriov.as_ref().is_some_and(|sriov| sriov.num_vfs > 0) {
            self.refuse(
                path,
                format!("{address} has virtual functions, which would vanish with it"),
                Some(
                    "give VFs instead (`sriov:`), or remove them first: write 0 to its sriov_numvfs in sysfs",
                ),
            );
        }
        if !self.taken.insert(Target::Function(address)) {
            self.refuse(
                path,
                format!("{address} is given to this guest already"),
                Some("a function can be given once: take one of the two out"),
            );
        }
        self.viable(path, address, given);
    }

    /// An IOMMU group is given away whole or not at all.
    pub(super) fn viable(&mut self, path: &[&str], address: PciAddress, given: &[PciAddress]) {
        let host = self.host;
        let Some(group) = host.inventory.group_of(address) else { return };
        let others = group.members.iter().filter(|member| !given.contains(&member.address));
        for (member, holder) in
            others.filter_map(|member| Some((member.address, host.held.get(&member.address)?)))
        {
            let message = format!(
                "{address} shares IOMMU group {} with {member}, which guest `{}` (process {}) has",
                group.number, holder.vm, holder.pid
            );
            self.refuse(
                path,
                message,
                Some("one group goes to one guest: stop that guest, or give both to it"),
            );
        }
        let blockers: Vec<String> = group
            .blockers(given)
            .map(|member| format!("{} ({})", member.address, member.driver.as_deref().unwrap_or("no driver")))
            .collect();
        if !blockers.is_empty() {
            let message = format!(
                "IOMMU group {} of {address} is not viable: host drivers hold {}",
                group.number,
                blockers.join(", ")
            );
            let help = if path.contains(&"nics") {
                "unbind those drivers, or move the card to a slot whose root port has ACS: then each VF has a group of its own"
            } else {
                "give the whole group with `group: all-endpoints`, unbind those drivers, or use a slot whose root port has ACS"
            };
            self.refuse(path, message, Some(help));
        }
    }
}

pub(super) const ANOTHER_WAY: &str =
    "give another card, or let the administrator come another way (`management.interface`)";

pub(super) fn way_in(address: PciAddress, way: &str) -> String {
    format!("{address} is the way to this box: {way}")
}

pub(super) const STOP_IT: &str = "stop that guest first";

pub(super) fn held_by(address: PciAddress, holder: &Holder) -> String {
    format!("{address} is in use by guest `{}` (process {})", holder.vm, holder.pid)
}

pub(super) fn used_for(address: PciAddress, used: &Use) -> String {
    format!("{address} is in use by the host: {used}")
}

/// What to do about a use.
pub(super) fn give_way(used: &Use) -> &'static str {
    match used {
        Use::Mount { .. } => "unmount it first, or give another disk",
        Use::Swap { .. } => "switch that swap off first (swapoff), or give another disk",
        Use::DefaultRoute { .. } => {
            "this box would be cut off: give another card, or move the default route first"
        }
        Use::Port { .. } => "take the interface out of it first (ip link set INTERFACE nomaster)",
    }
}

/// Whether all that is given of a match holds for a function.
pub(super) fn fits(host: &HostState, matches: &Match, function: &Function) -> bool {
    let same = |wanted: &Option<String>, vendor: u16, device: u16| {
        wanted.as_deref().is_none_or(|text| pair(text) == Some((vendor, device)))
    };
    let address = matches.address.as_deref().is_none_or(|text| text.parse() == Ok(function.address));
    let mac = matches.permanent_mac.is_none_or(|mac| {
        let remembered = host.remembered.get(&function.address).filter(|_| function.interfaces.is_empty());
        let lent = remembered.is_some_and(|burnt| burnt.permanent_mac == Some(mac));
        let has = |interface: &String| host.permanent_macs.get(interface) == Some(&mac);
        function.physical_function.is_none() && (lent || function.interfaces.iter().any(has))
    });
    let serial = matches.serial.as_deref().is_none_or(|serial| {
        function.physical_function.is_none()
            && host.serials(function.address).any(|own| same_serial(own, serial))
    });
    let path = matches.path.as_deref().is_none_or(|path| function.path.as_deref() == Some(path));
    address
        && mac
        && serial
        && path
        && same(&matches.id, function.vendor, function.device)
        && same(&matches.subsystem_id, function.subsystem_vendor, function.subsystem_device)
}
