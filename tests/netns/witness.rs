//! Links as values: read, realized, and held against what ip(8) and bridge(8) see.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use netconfig::blocking::with_network;
use netconfig::{Address, Bridge, LinkKind, LinkSettings, MacAddress};

use crate::namespace::ip;

/// Of the card that tests use, so that addresses do not depend on the day.
const MAC: &str = "02:00:00:00:00:01";
/// Set where the kernel has every kind of link, and a test must not skip one.
const WHOLE_KERNEL: &str = "THROUGHWAY_TEST_WHOLE_KERNEL";

pub(crate) fn settings() -> BTreeMap<String, LinkSettings> {
    with_network(async |network| network.settings().await).unwrap()
}

pub(crate) fn settings_of(name: &str) -> LinkSettings {
    settings().remove(name).unwrap()
}

pub(crate) fn try_realize(name: &str, wanted: Option<&LinkSettings>) -> Result<(), netconfig::Error> {
    with_network(async |network| network.realize(name, wanted).await)
}

/// Makes it so, finds it so, and that doing it again changes nothing.
pub(crate) fn realize(name: &str, wanted: Option<&LinkSettings>) {
    try_realize(name, wanted).unwrap();
    let now = settings();
    assert_eq!(netconfig::differences(name, wanted, &now), []);
    try_realize(name, wanted).unwrap();
    assert_eq!(settings(), now);
}

pub(crate) fn mac(text: &str) -> MacAddress {
    text.parse().unwrap()
}

pub(crate) fn addresses(list: &[&str]) -> BTreeSet<Address> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

pub(crate) fn link(kind: LinkKind) -> LinkSettings {
    LinkSettings {
        kind,
        up: true,
        mtu: 1500,
        mac_address: Some(mac("02:00:00:00:00:b0")),
        controller: None,
        addresses: BTreeSet::new(),
        gateways: BTreeSet::new(),
        vlans: BTreeMap::new(),
        forwarded: BTreeSet::new(),
    }
}

pub(crate) fn bridge() -> LinkSettings {
    link(LinkKind::Bridge(Bridge { stp: false, ageing_time: 300, vlan_filtering: false }))
}

/// Two ends of a cable: this is what a card is here.
pub(crate) fn cable() {
    ip(&format!("link add tw0 address {MAC} type veth peer name tw1"));
    ip("link set tw1 up");
}

/// Every one of `steps` from what was before, and back to it.
pub(crate) fn there_and_back(name: &str, steps: &[LinkSettings]) {
    let before = settings();
    for step in steps {
        realize(name, Some(step));
    }
    realize(name, before.get(name));
    assert_eq!(settings(), before);
    for step in steps {
        realize(name, Some(step));
        realize(name, before.get(name));
        assert_eq!(settings(), before);
    }
}

pub(crate) fn bridge_tool(arguments: &str) -> String {
    let output = Command::new("bridge").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "bridge {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every kind of link has to be there.
pub(crate) fn whole_kernel() -> bool {
    std::env::var_os(WHOLE_KERNEL).is_some()
}

/// Whether the kernel takes `ip link add ARGUMENTS`; tests of a kind that it lacks are made in the lab's box instead.
pub(crate) fn kernel_has(what: &str, arguments: &str) -> bool {
    let made = Command::new("ip").args(["link", "add", "kind0"]).args(arguments.split_whitespace()).output();
    let made = made.unwrap();
    if made.status.success() {
        ip("link del kind0");
        return true;
    }
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(!whole_kernel(), "the kernel lacks {what}: {said}");
    eprintln!("skipped: this kernel lacks {what}: {}", said.trim());
    false
}

/// A bridge with VLAN filtering can be made.
pub(crate) fn kernel_filters_vlans() -> bool {
    kernel_has("bridges with VLAN filtering", "type bridge vlan_filtering 1")
}

/// VLANs on links can be made.
pub(crate) fn kernel_has_vlans() -> bool {
    ip("link add kind1 type bridge");
    let has = kernel_has("VLANs on links", "link kind1 type vlan id 7");
    ip("link del kind1");
    has
}

/// Bonds can be made.
pub(crate) fn kernel_has_bonds() -> bool {
    kernel_has("bonds", "type bond")
}
