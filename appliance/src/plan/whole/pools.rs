//! Whether pools have enough for all guests of the file at once.

use std::collections::{BTreeMap, BTreeSet};

use vfio::PciAddress;

use super::Whole;
use crate::plan::pool::named;

/// A nic that takes any VF of a pool.
struct Wish<'a> {
    vm: &'a str,
    nic: &'a str,
    pool: &'a str,
}

impl<'a> Whole<'a> {
    /// Every nic gets a VF of its pool, were all guests to run together; nics that get none are said with their pool.
    pub(super) fn pools(&mut self) {
        let config = self.planner.config;
        let addresses: BTreeMap<&str, PciAddress> =
            self.pfs().into_iter().map(|(address, (name, _))| (name, address)).collect();
        let named = named(config);
        let mut vfs = BTreeMap::<(&str, &str), Vec<(PciAddress, u16)>>::new();
        for (name, pool) in &config.pools {
            for pf in &pool.pf {
                let Some(address) = addresses.get(pf.as_str()) else { continue };
                let indices = self.planner.indices(pf, pool, &named);
                let left = indices.into_iter().filter(|vf| !self.host_uses(*address, *vf));
                vfs.insert((name.as_str(), pf.as_str()), left.map(|vf| (*address, vf)).collect());
            }
        }
        let (mut wishes, mut candidates) = (Vec::new(), Vec::new());
        for (vm, guest) in &config.vms {
            for (nic, wanted) in &guest.nics {
                let Some((name, pool)) =
                    wanted.pool.as_deref().and_then(|name| config.pools.get_key_value(name))
                else {
                    continue;
                };
                // What is wrong with a PF is said already, as is a node that cannot be had.
                if pool.pf.iter().any(|pf| !addresses.contains_key(pf.as_str())) {
                    continue;
                }
                let Some(pfs) = self.planner.on_node(name, pool, vm) else { continue };
                let own = pfs.iter().filter_map(|pf| vfs.get(&(name.as_str(), *pf))).flatten();
                candidates.push(own.copied().collect::<Vec<_>>());
                wishes.push(Wish { vm, nic, pool: name });
            }
        }
        for pool in unmet(&candidates)
            .into_iter()
            .filter_map(|at| wishes.get(at))
            .map(|wish| wish.pool)
            .collect::<BTreeSet<_>>()
        {
            self.too_small(pool, &wishes, &vfs);
        }
    }

    fn too_small(
        &mut self,
        pool: &str,
        wishes: &[Wish<'_>],
        vfs: &BTreeMap<(&str, &str), Vec<(PciAddress, u16)>>,
    ) {
        let own = vfs.iter().filter(|((name, _), _)| *name == pool);
        let count = own.flat_map(|(_, vfs)| vfs).collect::<BTreeSet<_>>().len();
        let wanted: Vec<String> = wishes
            .iter()
            .filter(|wish| wish.pool == pool)
            .map(|wish| format!("vms.{}.nics.{}", wish.vm, wish.nic))
            .collect();
        let why = if wanted.len() > count {
            String::new()
        } else {
            ", of which other pools, or NUMA nodes, leave too few".to_owned()
        };
        let vfs = if count == 1 { "VF" } else { "VFs" };
        let message = format!(
            "Pool `{pool}` has {count} {vfs} to give{why}, and the file wants {} of it: {}",
            wanted.len(),
            wanted.join(", ")
        );
        let help = "widen its vf-range, raise num-vfs, add a PF, or take a nic out";
        self.planner.refuse(&["pools", pool], message, Some(help));
    }

    fn host_uses(&self, pf: PciAddress, vf: u16) -> bool {
        let host = self.planner.host;
        let Some(sriov) = host.inventory.function(pf).and_then(|pf| pf.sriov.as_ref()) else { return false };
        sriov.vfs.get(usize::from(vf)).is_some_and(|address| host.uses.contains_key(address))
    }
}

/// Those of some lists, by their place, that get nothing when each is to get one of its own (a greatest matching, by
/// augmenting paths).
fn unmet(candidates: &[Vec<(PciAddress, u16)>]) -> Vec<usize> {
    let mut owner = BTreeMap::<(PciAddress, u16), usize>::new();
    (0..candidates.len()).filter(|at| !augment(candidates, *at, &mut owner)).collect()
}

/// Gives list `start` something: what is free, or what another can do without.
fn augment(
    candidates: &[Vec<(PciAddress, u16)>],
    start: usize,
    owner: &mut BTreeMap<(PciAddress, u16), usize>,
) -> bool {
    // Breadth first: from whom each was reached, so that the way can be gone back.
    let mut from = BTreeMap::<(PciAddress, u16), usize>::new();
    let mut left = std::collections::VecDeque::from([start]);
    while let Some(at) = left.pop_front() {
        let Some(wanted) = candidates.get(at) else { continue };
        let free = wanted.iter().find(|vf| !owner.contains_key(*vf));
        if let Some(free) = free {
            let (mut vf, mut at) = (*free, at);
            loop {
                // What it had until now goes to whom it was reached from.
                let had = owner.iter().find(|(_, owner)| **owner == at).map(|(vf, _)| *vf);
                owner.insert(vf, at);
                if at == start {
                    return true;
                }
                let Some((had, before)) = had.and_then(|had| Some((had, *from.get(&had)?))) else {
                    return true;
                };
                (vf, at) = (had, before);
            }
        }
        for vf in wanted {
            if let Some(other) = owner.get(vf)
                && !from.contains_key(vf)
            {
                from.insert(*vf, at);
                left.push_back(*other);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lists(of: &[&[u16]]) -> Vec<Vec<(PciAddress, u16)>> {
        of.iter().map(|list| list.iter().map(|vf| (PciAddress::default(), *vf)).collect()).collect()
    }

    #[test]
    fn one_gives_way_to_another() {
        assert_eq!(unmet(&lists(&[&[0, 1], &[0], &[1, 2]])), [0; 0]);
        assert_eq!(unmet(&lists(&[&[0, 1], &[0], &[1, 0]])), [2]);
        assert_eq!(unmet(&lists(&[&[]])), [0]);
    }

    /// The most that can be served, by trying everything.
    fn most(lists: &[Vec<(PciAddress, u16)>], taken: &mut Vec<(PciAddress, u16)>) -> usize {
        let Some((first, rest)) = lists.split_first() else { return 0 };
        let mut best = most(rest, taken);
        for vf in first {
            if !taken.contains(vf) {
                taken.push(*vf);
                best = best.max(1 + most(rest, taken));
                taken.pop();
            }
        }
        best
    }

    proptest! {
        #[test]
        fn as_many_are_served_as_can_be(
            wanted in proptest::collection::vec(proptest::collection::btree_set(0_u16..5, 0..4), 0..6),
        ) {
            let of: Vec<Vec<u16>> = wanted.into_iter().map(|set| set.into_iter().collect()).collect();
            let lists = lists(&of.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(lists.len() - unmet(&lists).len(), most(&lists, &mut Vec::new()));
        }
    }
}
