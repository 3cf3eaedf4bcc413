//! Pools: any free VF of some physical functions, on the guest's NUMA node where that is asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::Planner;
use super::nic::Choice;
use crate::config::{Config, Pool, PoolNuma, derived_mac, range};

/// Where a guest is, as far as the devices say that the file gives it by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// All of them are on this one.
    Known(u32),
    /// They are on several.
    Several(BTreeSet<u32>),
    /// It has none, or the firmware does not say where they are.
    Unknown,
}

impl Node {
    fn of(nodes: BTreeSet<u32>) -> Self {
        match nodes.first() {
            None => Self::Unknown,
            Some(node) if nodes.len() == 1 => Self::Known(*node),
            Some(_) => Self::Several(nodes),
        }
    }
}

/// VFs that nics of the file name for themselves: no pool gives them.
pub(super) fn named(config: &Config) -> BTreeSet<(&str, u16)> {
    let nics = config.vms.values().flat_map(|vm| vm.nics.values());
    nics.filter_map(|nic| Some((nic.pf.as_deref()?, nic.vf?))).collect()
}

impl<'a> Planner<'a> {
    /// A free VF: one that has the nic's address already, so that no other keeps it, else the first.
    pub(super) fn any_of(&mut self, key: &str, name: &str) -> Option<Choice<'a>> {
        let pool = self.config.pools.get(name)?;
        let named = named(self.config);
        let (mut unfit, mut busy, mut free) = (false, Vec::new(), Vec::new());
        let pfs = self.on_node(name, pool, self.vm)?;
        for pf in &pfs {
            let indices = self.indices(pf, pool, &named);
            if indices.is_empty() {
                continue;
            }
            let Some(any) = self.physical(pf, 0) else {
                unfit = true;
                continue;
            };
            for vf in indices {
                let choice = Choice { vf, ..any.clone() };
                match self.busy(&choice) {
                    None => free.push(choice),
                    Some((why, _)) => busy.push(why),
                }
            }
        }
        let mac = derived_mac(self.vm, key);
        let host = self.host;
        let has_it = |choice: &Choice<'_>| {
            let vfs = host.vfs.get(&choice.pf.address).filter(|_| choice.address().is_some());
            vfs.into_iter()
                .flatten()
                .any(|state| state.id == u32::from(choice.vf) && state.mac_address == Some(mac))
        };
        let best = free.iter().position(has_it).unwrap_or(0);
        if best < free.len() {
            let choice = free.swap_remove(best);
            self.say_where(name, pool, &choice);
            return Some(self.take(choice));
        }
        if !unfit {
            self.exhausted(key, name, &busy);
        }
        None
    }

    fn exhausted(&mut self, key: &str, pool: &str, busy: &[String]) {
        const MOST: usize = 8;
        let path = ["vms", self.vm, "nics", key, "pool"];
        if busy.is_empty() {
            let message = format!("Pool `{pool}` has no VF to give");
            let help = "its range and num-vfs leave none but those that nics of this file name for themselves: widen the \
                        range, or raise num-vfs";
            return self.refuse(&path, message, Some(help));
        }
        let more = match busy.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!("; and so on, {more} more"),
        };
        let shown: Vec<&str> = busy.iter().take(MOST).map(String::as_str).collect();
        let message = format!("No VF of pool `{pool}` is free: {}{more}", shown.join("; "));
        self.refuse(&path, message, Some("stop a guest that has one, or raise num-vfs while none is in use"));
    }

    /// The VFs of a pool on one PF that no nic of the file names for itself.
    pub(super) fn indices(&self, pf: &str, pool: &Pool, named: &BTreeSet<(&str, u16)>) -> Vec<u16> {
        let Some(sriov) = self.config.sriov.get(pf) else { return Vec::new() };
        let (first, last) = pool.vf_range.as_deref().and_then(range).unwrap_or((0, u16::MAX));
        (first..=last).take_while(|vf| *vf < sriov.num_vfs).filter(|vf| !named.contains(&(pf, *vf))).collect()
    }

    /// The PFs of a pool that a guest may get a VF of, in the order in which they are looked at. None where its node is required
    /// and cannot be had, which is said.
    pub(super) fn on_node(&mut self, name: &str, pool: &'a Pool, vm: &str) -> Option<Vec<&'a str>> {
        let mut pfs: Vec<&str> = pool.pf.iter().map(String::as_str).collect();
        if pool.numa == PoolNuma::Ignore {
            return Some(pfs);
        }
        let node = self.node_of_guest(vm);
        let nodes: BTreeMap<&str, Option<u32>> = pfs.iter().map(|pf| (*pf, self.node_of(pf))).collect();
        let is_on = |pf: &str, node: u32| nodes.get(pf) == Some(&Some(node));
        if pool.numa == PoolNuma::Prefer {
            if let Node::Known(node) = node {
                pfs.sort_by_key(|pf| !is_on(pf, node));
            }
            return Some(pfs);
        }
        let path = ["pools", name, "numa"];
        let known = match node {
            Node::Known(node) => node,
            Node::Several(several) => {
                let several: Vec<String> = several.iter().map(u32::to_string).collect();
                let message = format!(
                    "Pool `{name}` is to give guest `{vm}` a VF of its NUMA node, and it is on nodes {}",
                    several.join(" and ")
                );
                self.refuse(&path, message, Some("write `numa: prefer`, or name the VF: `pf` and `vf`"));
                return None;
            }
            Node::Unknown => {
                let message = format!(
                    "Pool `{name}` is to give guest `{vm}` a VF of its NUMA node, which is not known: it has no \
                     `cpuset`, and no device that the file gives it by name has one"
                );
                self.refuse(&path, message, Some("write `numa: prefer`, or name the VF: `pf` and `vf`"));
                return None;
            }
        };
        pfs.retain(|pf| is_on(pf, known));
        if pfs.is_empty() {
            let where_they_are: Vec<String> = nodes
                .iter()
                .map(|(pf, node)| match node {
                    Some(node) => format!("`{pf}` is on node {node}"),
                    None => format!("of `{pf}` the firmware does not say it"),
                })
                .collect();
            let message = format!(
                "Pool `{name}` has no VF on NUMA node {known}, where guest `{vm}` is: {}",
                where_they_are.join(", ")
            );
            self.refuse(&path, message, Some("add a PF of that node, or write `numa: prefer`"));
            return None;
        }
        Some(pfs)
    }

    /// Where a VF of another node is given after all.
    fn say_where(&mut self, name: &str, pool: &Pool, choice: &Choice<'_>) {
        if pool.numa != PoolNuma::Prefer {
            return;
        }
        let (vm, vf, pf) = (self.vm, choice.vf, choice.pf.address);
        match (self.node_of_guest(vm), choice.pf.numa_node) {
            (Node::Known(guest), Some(node)) if guest != node => tracing::warn!(
                "Guest `{vm}` is on NUMA node {guest}, and gets VF {vf} of {pf} on node {node}: pool `{name}` has none free there"
            ),
            (Node::Known(_), _) => {}
            (Node::Several(_) | Node::Unknown, node) => tracing::info!(
                "The NUMA node of guest `{vm}` is not known, so pool `{name}` gives any VF: VF {vf} of {pf} on node {}",
                node.map_or_else(|| "unknown".to_owned(), |node| node.to_string())
            ),
        }
    }

    fn node_of(&mut self, device: &str) -> Option<u32> {
        let device = (device, self.config.devices.get(device)?);
        self.find(device.0, device.1)?.numa_node
    }

    /// The node of the processors that a guest runs on, else of the devices that the file gives it by name.
    fn node_of_guest(&mut self, vm: &str) -> Node {
        let Some(vm) = self.config.vms.get(vm) else { return Node::Unknown };
        if let Some(nodes) =
            vm.cpus.cpuset().map(|cpuset| self.host.nodes_of(cpuset)).filter(|nodes| !nodes.is_empty())
        {
            return Node::of(nodes);
        }
        let given = vm.pci.values().map(|given| given.device.as_str());
        let given: Vec<&str> = given.chain(vm.nics.values().filter_map(|nic| nic.pf.as_deref())).collect();
        let nodes: BTreeSet<u32> = given.into_iter().filter_map(|device| self.node_of(device)).collect();
        Node::of(nodes)
    }
}
