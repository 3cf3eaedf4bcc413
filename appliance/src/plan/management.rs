//! The way that the administrator comes by: interface -> bridge or bond -> ports -> card.

use std::collections::BTreeSet;

use netconfig::LinkKind;
use vfio::PciAddress;

use super::Step;
use crate::apply::Undo;
use crate::config::Config;
use crate::host::HostState;

/// What must go on working so that somebody still comes in.
pub(super) struct Management {
    links: BTreeSet<String>,
    /// PFs of functions whose interfaces are among these links, and such functions themselves.
    cards: BTreeSet<PciAddress>,
    /// VFs whose interfaces on the host are among these links, by PF.
    vfs: BTreeSet<(PciAddress, u32)>,
}

/// Links that carry who administers the box: the one he comes in by, and what is below it.
pub(crate) fn carries_the_administrator(config: &Config, host: &HostState) -> BTreeSet<String> {
    Management::of(config, host).links
}

impl Management {
    /// What the file names, else what default routes leave by; and what this session came in by.
    pub(super) fn of(config: &Config, host: &HostState) -> Self {
        let named = config.management.interface.as_ref();
        let mut left: Vec<String> = named.into_iter().cloned().collect();
        // One that is yet to be made carries nobody now.
        if named.is_none_or(|name| !host.links.contains_key(name)) {
            let routed = host.links.iter().filter(|(_, link)| !link.gateways.is_empty());
            left.extend(routed.map(|(name, _)| name.clone()));
        }
        left.extend(host.session.iter().flat_map(|session| {
            let has =
                |link: &netconfig::LinkSettings| link.addresses.iter().any(|own| own.address == *session);
            host.links.iter().filter(move |(_, link)| has(link)).map(|(name, _)| name.clone())
        }));
        left.extend(host.session_links.iter().cloned());
        let links = with_what_is_below(left, host);
        let mut carried = Self { links, cards: BTreeSet::new(), vfs: BTreeSet::new() };
        let functions = host.inventory.functions.values();
        for function in
            functions.filter(|function| function.interfaces.iter().any(|name| carried.links.contains(name)))
        {
            carried.cards.insert(function.address);
            if let (Some(pf), Some(vf)) = (function.physical_function, function.vf_index) {
                carried.cards.insert(pf);
                carried.vfs.insert((pf, vf.into()));
            }
        }
        carried
    }

    /// How a function carries the administrator: `eth0 of br0`.
    pub(super) fn by(&self, host: &HostState, address: PciAddress) -> Option<String> {
        let function = host.inventory.function(address)?;
        let interface = function.interfaces.iter().find(|name| self.links.contains(*name))?;
        let controller = host.links.get(interface).and_then(|link| link.controller.as_deref());
        Some(
            controller.map_or_else(
                || interface.clone(),
                |controller| format!("{interface}, a port of {controller}"),
            ),
        )
    }

    /// A step changes one of these links, or what it stands on.
    pub(super) fn touched_by(&self, step: &Step) -> bool {
        let joins = |controller: Option<&String>| controller.is_some_and(|name| self.links.contains(name));
        match step {
            Step::Link { name, to, .. } => {
                self.links.contains(name) || joins(to.as_ref().and_then(|to| to.controller.as_ref()))
            }
            Step::Dhcp { link, .. } => self.links.contains(link),
            Step::Release(Undo::Dhcp { name, .. }) => self.links.contains(name),
            Step::Release(Undo::Link { name, before }) => {
                self.links.contains(name)
                    || joins(before.as_ref().and_then(|before| before.controller.as_ref()))
            }
            Step::BringUp { interface, .. } => self.links.contains(interface),
            Step::Nat { name, .. } | Step::Release(Undo::Nat { name, .. }) => self.links.contains(name),
            // Drivers reset the port when its VFs are made, and its VFs with it.
            Step::Resize { pf, .. } | Step::Eswitch { pf, .. } | Step::Release(Undo::Sriov { pf, .. }) => {
                self.cards.contains(pf)
            }
            Step::SetVf { pf, vf, .. } => self.vfs.contains(&(*pf, u32::from(*vf))),
            Step::Release(Undo::Vf { pf, before }) => self.vfs.contains(&(*pf, before.id)),
            Step::Release(Undo::Driver { address, .. }) => self.cards.contains(address),
            // It joins a bridge that stays as it is.
            Step::Card { .. }
            | Step::Autoprobe { .. }
            | Step::Forward { .. }
            | Step::Release(Undo::Forward { .. })
            | Step::Lend(_)
            | Step::Hugepages { .. }
            | Step::Release(Undo::Hugepages { .. } | Undo::Routes { .. }) => false,
        }
    }
}

/// Links, what they stand on, and what stands in one bridge or bond with them.
fn with_what_is_below(mut left: Vec<String>, host: &HostState) -> BTreeSet<String> {
    let mut links = BTreeSet::new();
    while let Some(name) = left.pop() {
        if !links.insert(name.clone()) {
            continue;
        }
        let Some(link) = host.links.get(&name) else { continue };
        left.extend(match &link.kind {
            LinkKind::Vlan { base, .. } | LinkKind::Macvtap { base, .. } => Some(base.clone()),
            _ => None,
        });
        let ports = host.links.iter().filter(|(_, port)| port.controller.as_deref() == Some(&name));
        left.extend(ports.map(|(port, _)| port.clone()));
        left.extend(link.controller.clone());
    }
    links
}
