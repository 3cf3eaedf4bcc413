//! Links, and NAT networks on them.

use netconfig::LinkSettings;
use netconfig::merge::{Problem, merge, nats};

use super::Whole;
use crate::apply::Undo;
use crate::plan::Step;

impl Whole<'_> {
    pub(super) fn networks(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        for (controller, section) in &config.networks {
            section.ports.keys().for_each(|port| self.port_is_free(controller, port));
        }
        let wanted = match merge(&config.networks, &host.links) {
            Ok(wanted) => wanted,
            Err(problems) => return self.refuse_networks(problems),
        };
        let new_bridges = self.macs_of_new_bridges();
        for (name, mut to) in wanted {
            let from = host.links.get(&name).cloned();
            // An address that the kernel chose is no wish of the file's.
            if let Some(from) = &from
                && config.networks.get(&name).is_none_or(|section| section.mac_address.is_none())
            {
                to.mac_address = from.mac_address;
            }
            to.mac_address = to.mac_address.or_else(|| new_bridges.get(&name).copied());
            self.without_dhcp(&name, &mut to);
            if from.as_ref() == Some(&to) {
                continue;
            }
            self.nobody_else_keeps(&name, &to);
            let blast = blast_of_link(from.as_ref(), &to);
            self.step(Step::Link { name, from: from.map(Box::new), to: Some(Box::new(to)) }, blast);
        }
    }

    /// After the links: NAT networks are bridges first.
    pub(super) fn nats(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let wanted = match nats(&config.networks) {
            Ok(wanted) => wanted,
            Err(problems) => return self.refuse_networks(problems),
        };
        for (name, to) in wanted {
            let from = host.nats.get(&name).cloned();
            let differences = host.nat_differences.get(&name).cloned().unwrap_or_default();
            if from.as_ref() != Some(&to) || !differences.is_empty() {
                let differences = if from.as_ref() == Some(&to) { differences } else { Vec::new() };
                let (from, to) = (from.map(Box::new), Some(Box::new(to)));
                self.step(Step::Nat { name, from, to, differences }, Vec::new());
            }
        }
    }

    /// What DHCP gave a link goes with it: the link has again what it had before.
    fn without_dhcp(&self, name: &str, to: &mut LinkSettings) {
        let (config, host) = (self.planner.config, self.planner.host);
        let Some(section) = config.networks.get(name) else { return };
        if section.dhcp4 || !host.dhcp.running.contains(name) {
            return;
        }
        let before = self.originals.iter().find_map(|undo| match undo {
            Undo::Link { name: of, before } if of == name => before.as_deref(),
            _ => None,
        });
        if section.addresses.is_none() {
            to.addresses = before.map(|before| before.addresses.clone()).unwrap_or_default();
        }
        if section.gateway.is_none() {
            to.gateways = before.map(|before| before.gateways.clone()).unwrap_or_default();
        }
    }

    /// After the links: the box's own addresses by DHCP.
    pub(super) fn dhcp(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        for (name, _) in config.networks.iter().filter(|(_, section)| section.dhcp4) {
            // A client does not go along from a link that is gone to its successor.
            let made = self.steps.iter().any(|planned| match &planned.step {
                Step::Link { name: of, from, to: Some(to) } if of == name => {
                    from.as_ref().is_none_or(|from| {
                        std::mem::discriminant(&from.kind) != std::mem::discriminant(&to.kind)
                    })
                }
                _ => false,
            });
            let from = host.dhcp.running.contains(name) && !made;
            if host.dhcp.client.is_none() {
                let message =
                    format!("`{name}` is to get its address by DHCP, and this box has no DHCP client");
                let help = "install the Debian package isc-dhcp-client or udhcpc, or give it `addresses`";
                self.planner.refuse(&["networks", name, "dhcp4"], message, Some(help));
            } else if !from {
                self.step(Step::Dhcp { link: name.clone(), from, to: true }, Vec::new());
            }
        }
    }

    fn refuse_networks(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            let path: Vec<&str> =
                std::iter::once("networks").chain(problem.path.iter().map(String::as_str)).collect();
            self.planner.refuse(&path, problem.message, problem.help);
        }
    }

    /// A bridge's port that a guest has is none.
    fn port_is_free(&mut self, controller: &str, name: &str) {
        let host = self.planner.host;
        let function =
            host.inventory.functions.values().find(|function| function.interfaces.iter().any(|i| i == name));
        let Some(function) = function else { return };
        let path = ["networks", controller, "ports", name];
        if let Some(holder) = host.held.get(&function.address) {
            let message = format!("`{name}` is {} and in use by guest `{}`", function.address, holder.vm);
            self.planner.refuse(&path, message, Some("stop that guest first"));
        } else if let Some(target) =
            self.lent().into_iter().find(|target| self.address(target) == Some(function.address))
        {
            let message = format!("`{name}` is {target}, which this file gives to a guest");
            self.planner.refuse(&path, message, Some("a function is either the host's or a guest's"));
        }
    }
}

fn blast_of_link(from: Option<&LinkSettings>, to: &LinkSettings) -> Vec<String> {
    let Some(from) = from else { return Vec::new() };
    let mut blast = Vec::new();
    let lost = from.addresses.difference(&to.addresses);
    blast.extend(lost.map(|address| format!("{address} is taken away")));
    if let Some(controller) = from.controller.as_ref().filter(|_| from.controller != to.controller) {
        blast.push(format!("leaves {controller}"));
    }
    let routes = from.gateways.difference(&to.gateways);
    blast.extend(routes.map(|gateway| format!("the default route by {gateway} is taken away")));
    blast
}
