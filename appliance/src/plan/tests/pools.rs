//! Which VF a pool gives.

use netconfig::MacAddress;

use super::host::{at, hold, host, vf};
use super::{PF, Plan, Refusal, file, guest, plan_of};
use crate::config::{Document, derived_mac, load};
use crate::host::HostState;
use crate::plan::Target;

fn given(plan: &Plan) -> Vec<Target> {
    plan.slots.iter().flat_map(|slot| slot.functions.clone()).collect()
}

fn of_lan(index: u16) -> Target {
    Target::Vf { pf: at(PF), vf: index }
}

fn said(refusals: Result<Plan, Vec<Refusal>>) -> Vec<String> {
    let line = |refusal: &Refusal| format!("{}: {}", refusal.path.join("."), refusal.message);
    refusals.unwrap_err().iter().map(line).collect()
}

#[test]
fn a_vf_that_has_the_address_already_is_given_first() {
    let document = file(&guest("a", "nics: {any: {pool: vfs}}"));
    let mut host = host(4);
    assert_eq!(given(&plan_of(&document, &host, "a").unwrap()), [of_lan(1)]);
    host.vfs.get_mut(&at(PF)).unwrap()[3].mac_address = Some(derived_mac("a", "any"));
    assert_eq!(given(&plan_of(&document, &host, "a").unwrap()), [of_lan(3)]);
    hold(&mut host, vf(3), "b");
    assert_eq!(
        said(plan_of(&document, &host, "a")),
        [
            "vms.a.nics.any: The MAC address 02:21:bd:41:7e:fc, which is derived for this nic, is that of VF 3 of 0000:01:00.0 already"
        ]
    );
}

#[test]
fn a_derived_address_is_nobody_elses_on_the_host() {
    let document = file(&guest("a", "nics: {any: {pool: vfs}}"));
    let mut host = host(4);
    host.macs.insert("eth7".into(), derived_mac("a", "any"));
    assert_eq!(
        said(plan_of(&document, &host, "a")),
        [
            "vms.a.nics.any: The MAC address 02:21:bd:41:7e:fc, which is derived for this nic, is that of `eth7` of this host already"
        ]
    );
    // Unless that is the interface of a VF: it has the VF's address.
    host.inventory.functions.get_mut(&vf(1)).unwrap().interfaces = vec!["eth7".into()];
    assert!(plan_of(&document, &host, "a").is_ok());
    let own = file(&guest("a", "nics: {any: {pool: vfs, mac-address: \"02:00:00:00:00:01\"}}"));
    host.macs.insert("eth8".into(), MacAddress([2, 0, 0, 0, 0, 1]));
    assert!(plan_of(&own, &host, "a").is_ok(), "what a person chose is his to answer for");
}

/// The card on node 0, the graphics card on `gpu`, and another card on node 1.
fn two_nodes(gpu: Option<u32>) -> HostState {
    let mut host = host(4);
    let mut other = host.inventory.functions[&at(PF)].clone();
    (other.address, other.numa_node, other.interfaces) = (at("05:00.0"), Some(1), vec!["eth5".into()]);
    let able = other.sriov.as_mut().unwrap();
    (able.num_vfs, able.vfs) = (0, Vec::new());
    host.inventory.functions.insert(other.address, other);
    host.inventory.functions.get_mut(&at(PF)).unwrap().numa_node = Some(0);
    host.inventory.functions.get_mut(&at("03:00.0")).unwrap().numa_node = gpu;
    host
}

fn on_nodes(numa: &str, rest: &str) -> Document {
    let mut document = file(&guest("a", rest));
    let (from, to) = ("  lan: {match", "  far: {match: {address: \"05:00.0\"}}\n  lan: {match");
    document.text = document.text.replace(from, to).replace("sriov:\n", "sriov:\n  far: {num-vfs: 2}\n");
    document.text =
        document.text.replace("pf: [lan], vf-range: 1-3", &format!("pf: [lan, far], numa: {numa}"));
    load(&document).unwrap();
    document
}

#[test]
fn a_guest_gets_a_vf_of_the_node_of_its_devices() {
    let far = Target::Vf { pf: at("05:00.0"), vf: 0 };
    let gpu = "nics: {any: {pool: vfs}}, pci: {screen: {device: gpu}}";
    let first = |node, numa: &str, rest: &str| {
        let plan = plan_of(&on_nodes(numa, rest), &two_nodes(node), "a").unwrap();
        plan.slots.iter().find(|slot| slot.name == "any").unwrap().functions[0].clone()
    };
    assert_eq!(first(Some(1), "prefer", gpu), far);
    assert_eq!(first(Some(1), "require", gpu), far);
    assert_eq!(first(Some(0), "require", gpu), of_lan(0));
    assert_eq!(first(Some(1), "ignore", gpu), of_lan(0));
    assert_eq!(first(None, "prefer", gpu), of_lan(0));
    assert_eq!(first(Some(1), "prefer", "nics: {any: {pool: vfs}}"), of_lan(0));
    // Where none is left there, one of another node.
    let three = "nics: {a: {pool: vfs}, b: {pool: vfs}, any: {pool: vfs}}, pci: {screen: {device: gpu}}";
    let plan = plan_of(&on_nodes("prefer", three), &two_nodes(Some(1)), "a").unwrap();
    assert_eq!(given(&plan).iter().filter(|target| **target == of_lan(0)).count(), 1);
}

#[test]
fn a_node_that_is_required_must_be_known_and_have_one() {
    let gpu = "nics: {any: {pool: vfs}}, pci: {screen: {device: gpu}}";
    let refused = |node, rest: &str| said(plan_of(&on_nodes("require", rest), &two_nodes(node), "a"));
    assert_eq!(
        refused(Some(2), gpu),
        [
            "pools.vfs.numa: Pool `vfs` has no VF on NUMA node 2, where guest `a` is: `far` is on node 1, `lan` is on node 0"
        ]
    );
    assert!(refused(None, gpu)[0].contains(
        "which is not known: it has no `cpuset`, and no device that the file gives it by name has one"
    ));
    let both = "nics: {any: {pool: vfs}, near: {pf: lan, vf: 0}}, pci: {screen: {device: gpu}}";
    assert!(refused(Some(1), both)[0].contains("it is on nodes 0 and 1"));
}

#[test]
fn a_guest_is_where_its_processors_are() {
    let mut host = two_nodes(Some(0));
    host.nodes_of_processors = (0..8).map(|cpu| (cpu, cpu / 4)).collect();
    let with = |numa: &str, cpuset: &str| {
        let mut document = on_nodes(numa, "nics: {any: {pool: vfs}}, pci: {screen: {device: gpu}}");
        let cpus = format!("cpus: {{count: 2, cpuset: \"{cpuset}\"}}\n    nics: {{any");
        document.text = document.text.replace("nics: {any", &cpus);
        plan_of(&document, &host, "a")
    };
    let first = |plan: Plan| plan.slots.iter().find(|slot| slot.name == "any").unwrap().functions[0].clone();
    assert_eq!(first(with("require", "4-5").unwrap()), Target::Vf { pf: at("05:00.0"), vf: 0 });
    assert_eq!(first(with("require", "0,2").unwrap()), of_lan(0));
    assert!(said(with("require", "3-4"))[0].contains("it is on nodes 0 and 1"));
}
