//! The whole file: what it comes to.

use super::super::{HostPlan, whole};
use super::host::{after, carry_out, hold, host, vf};
use super::{PF, Refusal, guest};
use crate::config::{Config, Document, load};
use crate::host::HostState;

fn config(text: &str) -> Config {
    load(&Document { name: "box.yaml".into(), text: format!("version: 1\n{text}") }).unwrap()
}

fn steps(plan: &HostPlan) -> Vec<String> {
    let step = |planned: &super::super::Planned| {
        let mark = if planned.management { " !" } else { "" };
        format!(
            "{}{mark}{}",
            planned.step,
            planned.blast.iter().fold(String::new(), |text, b| text + "; " + b)
        )
    };
    plan.steps.iter().map(step).collect()
}

fn planned(host: &HostState, text: &str) -> Vec<String> {
    steps(&whole(&config(text), host, &[]).unwrap())
}

fn refused(host: &HostState, text: &str) -> Vec<String> {
    let line = |refusal: Refusal| format!("{}: {}", refusal.path.join("."), refusal.message);
    whole(&config(text), host, &[]).unwrap_err().into_iter().map(line).collect()
}

fn card(vfs: u16) -> String {
    format!(
        "devices:\n  lan: {{match: {{address: \"{PF}\"}}}}\nsriov:\n  lan: {{num-vfs: {vfs}, vfs: [{{id: 0, vlan-id: 100}}]}}\n"
    )
}

#[test]
fn virtual_functions_are_made_and_set() {
    let found = planned(&host(0), &card(2));
    assert_eq!(
        found,
        [
            format!("{PF}: bring eth1 up"),
            format!("{PF}: drivers-autoprobe -> false"),
            format!("{PF}: num-vfs 0 -> 2"),
            format!("{PF}: VF 0: vlan-id -> 100"),
        ]
    );
}

#[test]
fn a_resize_says_whom_it_hurts_and_is_refused_when_a_guest_would_be() {
    let mut there = host(2);
    there.inventory.functions.get_mut(&vf(1)).unwrap().driver = Some("igbvf".into());
    let found = planned(&there, &card(4));
    assert!(found.iter().any(|line| line.contains("num-vfs 2 -> 4; VF 0 (0000:01:10.0) is made anew; VF 1 (0000:01:10.1), which igbvf has, is made anew")), "{found:#?}");
    hold(&mut there, vf(0), "a");
    let found = refused(&there, &card(4));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("num-vfs 2 -> 4 would take 0000:01:10.0 from guest `a`"), "{found:#?}");
}

#[test]
fn the_way_to_the_box_is_marked_and_never_given_away() {
    let bridge = "networks:\n  br0: {type: bridge, addresses: [192.0.2.7/24], gateway: 192.0.2.1, ports: {eth0: {}}}\n";
    let found = planned(&host(0), bridge);
    assert_eq!(
        found,
        [
            "br0: make bridge addresses +192.0.2.7/24, gateways +192.0.2.1",
            "eth0: controller none -> br0, addresses -192.0.2.7/24, gateways -192.0.2.1 !; 192.0.2.7/24 is taken away; the default route by 192.0.2.1 is taken away",
        ]
    );
    let given = format!(
        "management: {{interface: eth2}}\ndevices:\n  it: {{match: {{address: \"04:00.0\"}}}}\nvms:\n{}",
        guest("a", "pci: {card: {device: it}}")
    );
    let mut there = host(0);
    there.uses.clear();
    there.inventory.functions.get_mut(&"04:00.0".parse().unwrap()).unwrap().interfaces = vec!["eth2".into()];
    let found = refused(&there, &given);
    assert_eq!(found, ["vms.a.pci.card.device: 0000:04:00.0 is the way to this box: eth2"]);
}

#[test]
fn what_the_file_forgets_goes_back_to_what_it_was() {
    let before = host(0);
    let first = whole(&config(&format!("{}host: {{hugepages: {{2MiB: 8}}}}\nnetworks: {{br0: {{type: bridge, ports: {{eth2: {{}}}}}}}}\n", card(3))), &before, &[]).unwrap();
    let (then, kept) = carry_out(first.steps.iter().map(|planned| &planned.step), before.clone());
    let back = whole(&config(""), &then, &kept).unwrap();
    let again = after(back.steps.iter().map(|planned| &planned.step), then);
    assert_eq!(again.links, before.links);
    assert_eq!(again.hugepages, before.hugepages);
    assert_eq!(again.inventory.functions[&PF.parse().unwrap()].sriov.as_ref().unwrap().num_vfs, 0);
    assert!(whole(&config(""), &again, &kept).unwrap().is_empty());
}
