//! What holds for every host and every file.

use std::collections::BTreeSet;
use std::fmt::Write;

use proptest::prelude::*;
use vfio::in_use::Use;

use super::host::{address_of, after, at, hold, host, regroup, vf};
use super::{PF, Plan, Step, Target, guest, plan_of};
use crate::config::Document;
use crate::host::HostState;

/// What a nic asks for: any VF of the pool, or a certain one.
fn nic() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![Just(None), (0_u16..6).prop_map(Some)]
}

/// A file with guests `a` and `b`, of which `a` may want the graphics card too.
fn document(num_vfs: u16, nics: [&[Option<u16>]; 2], gpu: bool) -> Document {
    let mut text = format!(
        "version: 1
devices:
  lan: {{match: {{address: \"{PF}\"}}}}
  gpu: {{match: {{id: \"10de:2204\"}}, group: all-endpoints}}
sriov: {{lan: {{num-vfs: {num_vfs}}}}}
pools: {{vfs: {{pf: [lan]}}}}
vms:
"
    );
    for (vm, wanted) in ["a", "b"].into_iter().zip(nics) {
        let mut rest = String::from("nics: {");
        for (number, nic) in wanted.iter().enumerate() {
            match nic.filter(|vf| *vf < num_vfs) {
                Some(vf) => write!(rest, "n{number}: {{pf: lan, vf: {vf}}}, ").unwrap(),
                None => write!(rest, "n{number}: {{pool: vfs}}, ").unwrap(),
            }
        }
        rest.push('}');
        if gpu && vm == "a" {
            rest.push_str("\n    pci: {screen: {device: gpu}}");
        }
        text.push_str(&guest(vm, &rest));
    }
    Document { name: "box.yaml".into(), text }
}

prop_compose! {
    /// A host with some VFs, of which guests and the host use some and drivers have some.
    fn any_host()(
        there in 0_u16..=7,
        held in proptest::collection::btree_set(0_u16..7, 0..3),
        used in proptest::collection::btree_set(0_u16..7, 0..2),
        bound in proptest::collection::btree_set(0_u16..7, 0..4),
        shared in proptest::option::of((0_u16..7, 0_u16..7)),
    ) -> HostState {
        let mut host = host(there);
        for index in held.into_iter().filter(|index| *index < there) {
            hold(&mut host, vf(index), "other");
        }
        for index in used.into_iter().filter(|index| *index < there) {
            host.uses.insert(vf(index), vec![Use::DefaultRoute { interface: format!("eth{index}") }]);
        }
        for index in bound.into_iter().filter(|index| *index < there) {
            host.inventory.functions.get_mut(&vf(index)).unwrap().driver = Some("igbvf".into());
        }
        if let Some((one, other)) = shared.filter(|(one, other)| *one.max(other) < there) {
            let group = host.inventory.functions[&vf(other)].iommu_group;
            host.inventory.functions.get_mut(&vf(one)).unwrap().iommu_group = group;
        }
        regroup(&mut host);
        host
    }
}

/// All that a plan gives, each once.
fn given(plan: &Plan) -> BTreeSet<Target> {
    let all: Vec<_> = plan.slots.iter().flat_map(|slot| slot.functions.clone()).collect();
    let set: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(all.len(), set.len(), "something is given twice: {all:?}");
    set
}

/// Steps that do nothing where it is so already.
fn repeatable(step: &Step) -> bool {
    matches!(step, Step::BringUp { .. } | Step::SetVf { .. } | Step::Lend(_))
}

proptest! {
    #[test]
    fn the_same_question_has_the_same_answer(
        host in any_host(), num_vfs in 1_u16..7, nics in proptest::collection::vec(nic(), 0..4), gpu: bool,
    ) {
        let document = document(num_vfs, [&nics, &[]], gpu);
        prop_assert_eq!(plan_of(&document, &host, "a"), plan_of(&document, &host, "a"));
    }

    #[test]
    fn a_refusal_has_a_place_in_the_file_and_comes_once(
        host in any_host(), num_vfs in 1_u16..7, nics in proptest::collection::vec(nic(), 0..4), gpu: bool,
    ) {
        let document = document(num_vfs, [&nics, &[]], gpu);
        if let Err(refusals) = plan_of(&document, &host, "a") {
            prop_assert!(!refusals.is_empty());
            for (index, refusal) in refusals.iter().enumerate() {
                let problem = document.at_path(&refusal.path, refusal.message.clone(), refusal.help.clone());
                prop_assert!(problem.line > 0 && problem.help.is_some());
                prop_assert!(!refusals[..index].contains(refusal));
            }
        }
    }

    #[test]
    fn nothing_that_is_in_use_is_given_and_once_done_there_is_nothing_to_make(
        host in any_host(), num_vfs in 1_u16..7, nics in proptest::collection::vec(nic(), 0..4), gpu: bool,
    ) {
        let document = document(num_vfs, [&nics, &[]], gpu);
        let Ok(plan) = plan_of(&document, &host, "a") else { return Ok(()) };
        let done = after(&plan.steps, host);
        let targets = given(&plan);
        for target in &targets {
            let address = address_of(&done, target);
            prop_assert!(!done.held.contains_key(&address) && !done.uses.contains_key(&address));
            prop_assert_eq!(done.inventory.functions[&address].driver.as_deref(), Some("vfio-pci"));
            let lent: Vec<_> = targets.iter().map(|target| address_of(&done, target)).collect();
            prop_assert_eq!(done.inventory.group_of(address).unwrap().blockers(&lent).count(), 0);
        }
        let again = plan_of(&document, &done, "a").unwrap();
        prop_assert!(again.steps.iter().all(repeatable), "{:?}", again.steps);
        prop_assert_eq!(again.slots, plan.slots);
    }

    #[test]
    fn two_guests_never_get_the_same(
        num_vfs in 1_u16..7,
        nics in proptest::collection::vec(nic(), 1..3),
        others in proptest::collection::vec(nic(), 0..3),
    ) {
        let (document, host) = (document(num_vfs, [&nics, &others], false), host(0));
        let Ok(first) = plan_of(&document, &host, "a") else { return Ok(()) };
        let mut host = after(&first.steps, host);
        for target in given(&first) {
            let address = address_of(&host, &target);
            hold(&mut host, address, "a");
        }
        if let Ok(second) = plan_of(&document, &host, "b") {
            prop_assert!(given(&first).is_disjoint(&given(&second)));
            let resized = second.steps.iter().any(|step| matches!(step, Step::Resize { .. }));
            prop_assert!(!resized);
        }
    }

    #[test]
    fn a_pool_is_exhausted_only_when_all_its_vfs_are_given(count in 1_usize..9, num_vfs in 1_u16..8) {
        let nics = vec![None; count];
        let plan = plan_of(&document(num_vfs, [&nics, &[]], false), &host(0), "a");
        prop_assert_eq!(plan.is_ok(), count <= usize::from(num_vfs));
    }
}

/// The strategies are worth something: they come to plans and to refusals.
#[test]
fn what_is_tried_comes_to_both_ends() {
    let nics = [None, Some(0)];
    assert!(plan_of(&document(4, [&nics, &[]], true), &host(2), "a").is_ok());
    let mut used = host(2);
    hold(&mut used, vf(1), "other");
    hold(&mut used, at("03:00.0"), "other");
    assert_eq!(plan_of(&document(4, [&nics, &[]], true), &used, "a").unwrap_err().len(), 2);
}
