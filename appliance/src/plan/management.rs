//! The way that the administrator comes by: interface -> bridge or bond -> ports -> card.

use std::collections::BTreeSet;

use netconfig::LinkKind;
use vfio::PciAddress;

use super::Step;
use crate::apply::Undo;
use crate::config::Config;
use crate::host::HostState;

/// Links that must go on working so that somebody still comes in.
pub(super) struct Management {
    links: BTreeSet<String>,
}

impl Management {
    /// What the file names, else what default routes leave by; and what this session came in by.
    pub(super) fn of(config: &Config, host: &HostState) -> Self {
        let mut left: Vec<String> = match &config.management.interface {
            Some(interface) => vec![interface.clone()],
            None => {
                let routed = host.links.iter().filter(|(_, link)| !link.gateways.is_empty());
                routed.map(|(name, _)| name.clone()).collect()
            }
        };
        left.extend(host.session.iter().filter_map(|session| {
            let has =
                |link: &&netconfig::LinkSettings| link.addresses.iter().any(|own| own.address == *session);
            host.links.iter().find(|(_, link)| has(link)).map(|(name, _)| name.clone())
        }));
        let mut links = BTreeSet::new();
        while let Some(name) = left.pop() {
            let Some(link) = host.links.get(&name) else { continue };
            if !links.insert(name.clone()) {
                continue;
            }
            left.extend(match &link.kind {
                LinkKind::Vlan { base, .. } | LinkKind::Macvtap { base, .. } => Some(base.clone()),
                _ => None,
            });
            let ports = host.links.iter().filter(|(_, port)| port.controller.as_deref() == Some(&name));
            left.extend(ports.map(|(port, _)| port.clone()));
            left.extend(link.controller.clone());
        }
        Self { links }
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
        match step {
            Step::Link { name, to, .. } => {
                let joins = to.as_ref().and_then(|to| to.controller.as_ref());
                self.links.contains(name) || joins.is_some_and(|controller| self.links.contains(controller))
            }
            Step::Dhcp { link, .. } => self.links.contains(link),
            Step::Release(Undo::Link { name, .. } | Undo::Dhcp { name, .. }) => self.links.contains(name),
            Step::BringUp { interface, .. } | Step::SetVf { interface, .. } => {
                matches!(step, Step::BringUp { .. }) && self.links.contains(interface)
            }
            _ => false,
        }
    }
}
