//! Plans and refusals: what a host and a file come to.

mod host;
mod pools;
mod properties;
mod refusals;
mod rounds;
mod whole;

use host::{PF, at, host, vf};

use super::*;
use crate::config::{Document, load};

/// A file with the card as `lan`, a pool of VFs 1 to 3 of 4, and `rest` below `vms`.
fn file(rest: &str) -> Document {
    let text = format!(
        "version: 1
devices:
  lan: {{match: {{address: \"{PF}\"}}}}
  gpu: {{match: {{id: \"10de:2204\"}}, group: all-endpoints}}
  gpu-alone: {{match: {{address: \"03:00.0\"}}}}
  disk: {{match: {{address: \"02:00.0\"}}}}
  uplink: {{match: {{address: \"04:00.0\"}}}}
  absent: {{match: {{address: \"09:00.0\"}}}}
sriov:
  lan: {{num-vfs: 4, vf-defaults: {{spoof-check: true}}, vfs: [{{id: 0, vlan-id: 100}}]}}
pools:
  vfs: {{pf: [lan], vf-range: 1-3}}
vms:
{rest}"
    );
    Document { name: "box.yaml".into(), text }
}

/// A guest with `rest` in it.
fn guest(name: &str, rest: &str) -> String {
    format!(
        "  {name}:\n    memory: 1GiB\n    boot: {{kernel: /k}}\n    {}\n",
        rest.replace("}}, ", "}}\n    ")
    )
}

fn plan_of(document: &Document, host: &HostState, vm: &str) -> Result<Plan, Vec<Refusal>> {
    let config = load(document).unwrap();
    plan(&config, host, vm, &config.vms[vm])
}

/// Steps and slots as a person reads them.
fn read(plan: &Plan) -> Vec<String> {
    let steps = plan.steps.iter().map(ToString::to_string);
    let slots = plan.slots.iter().map(|slot| {
        let functions: Vec<_> = slot.functions.iter().map(ToString::to_string).collect();
        format!("slot {}: {}", slot.name, functions.join(" "))
    });
    steps.chain(slots).collect()
}

#[track_caller]
fn planned(host: &HostState, rest: &str) -> Vec<String> {
    read(&plan_of(&file(&guest("a", rest)), host, "a").unwrap())
}

#[test]
fn a_vf_from_a_pool_and_a_certain_one() {
    assert_eq!(
        planned(&host(0), "nics: {any: {pool: vfs}, first: {pf: lan, vf: 0}}"),
        [
            "0000:01:00.0: bring eth1 up",
            "0000:01:00.0: drivers-autoprobe -> false",
            "0000:01:00.0: num-vfs 0 -> 4",
            "0000:01:00.0: VF 1: mac-address -> 02:21:bd:41:7e:fc, spoof-check -> on",
            "VF 1 of 0000:01:00.0: driver -> vfio-pci",
            "0000:01:00.0: VF 0: mac-address -> 02:d8:3b:fd:3d:b9, vlan-id -> 100, spoof-check -> on",
            "VF 0 of 0000:01:00.0: driver -> vfio-pci",
            "slot any: VF 1 of 0000:01:00.0",
            "slot first: VF 0 of 0000:01:00.0",
        ]
    );
}

#[test]
fn vfs_that_are_there_are_left_there() {
    assert_eq!(
        planned(&host(4), "nics: {any: {pool: vfs}}"),
        [
            "0000:01:00.0: bring eth1 up",
            "0000:01:00.0: VF 1: mac-address -> 02:21:bd:41:7e:fc, spoof-check -> on",
            "VF 1 of 0000:01:00.0: driver -> vfio-pci",
            "slot any: VF 1 of 0000:01:00.0",
        ]
    );
}

#[test]
fn a_pool_passes_over_what_is_taken_or_spoken_for() {
    let mut host = host(4);
    host::hold(&mut host, vf(1), "other");
    let (a, b) = (guest("a", "nics: {any: {pool: vfs}}"), guest("b", "nics: {n: {pf: lan, vf: 2}}"));
    let plan = plan_of(&file(&[a, b].concat()), &host, "a").unwrap();
    assert_eq!(plan.slots[0].functions, [Target::Vf { pf: at(PF), vf: 3 }]);
}

#[test]
fn a_whole_device_goes_with_its_group_and_function_0_first() {
    assert_eq!(
        planned(&host(0), "pci: {screen: {device: gpu}}"),
        [
            "0000:03:00.0: driver -> vfio-pci",
            "0000:03:00.1: driver -> vfio-pci",
            "slot screen: 0000:03:00.0 0000:03:00.1",
        ]
    );
}

#[test]
fn what_vfio_pci_has_already_is_claimed_all_the_same() {
    let mut host = host(0);
    for address in ["03:00.0", "03:00.1"] {
        host.inventory.functions.get_mut(&at(address)).unwrap().driver = Some(VFIO_PCI.into());
    }
    host::regroup(&mut host);
    let steps = plan_of(&file(&guest("a", "pci: {screen: {device: gpu}}")), &host, "a").unwrap().steps;
    assert_eq!(steps, ["03:00.0", "03:00.1"].map(|address| Step::Lend(Target::Function(at(address)))));
}

#[test]
fn attributes_come_from_nic_then_vf_then_defaults_and_a_mac_is_derived() {
    let document =
        file(&guest("a", "nics: {n: {pf: lan, vf: 0, qos: 3}, o: {pool: vfs, spoof-check: false}}"));
    let steps = plan_of(&document, &host(4), "a").unwrap().steps;
    let set: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::SetVf { attributes, .. } => Some(attributes),
            _ => None,
        })
        .collect();
    assert_eq!((set[0].vlan_id, set[0].qos, set[0].spoof_check), (Some(100), Some(3), Some(true)));
    assert_eq!((set[1].vlan_id, set[1].qos, set[1].spoof_check), (None, None, Some(false)));
    let macs: BTreeSet<_> = set.iter().map(|attributes| attributes.mac_address.unwrap()).collect();
    assert_eq!(macs.len(), 2);
    assert!(macs.iter().all(|mac| mac.is_unicast() && mac.0[0] == 2));
}

#[test]
fn a_guest_without_devices_needs_no_iommu() {
    let mut host = host(0);
    host.inventory.iommu.units.clear();
    assert_eq!(planned(&host, "cpus: 1"), Vec::<String>::new());
}

#[test]
fn what_is_optional_may_be_missing() {
    let mut host = host(4);
    host.inventory.iommu.interrupt_remapping = Some(false);
    let mut document = file(&guest("a", "nics: {n: {pool: vfs}}"));
    assert!(plan_of(&document, &host, "a").is_err());
    document.text.push_str("host: {interrupt-remapping: optional}\n");
    assert!(plan_of(&document, &host, "a").is_ok());
    document.text = document.text.replace("host: {", "host: {iommu: optional, ");
    host.inventory.iommu.units.clear();
    assert!(plan_of(&document, &host, "a").is_ok());
}
