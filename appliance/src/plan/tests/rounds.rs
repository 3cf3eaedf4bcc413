//! Files one after another on any host: what is planned and done leaves nothing to do, and what no file names any more is as it
//! was before the first.

use std::collections::BTreeMap;
use std::fmt::Write;

use netconfig::{Bridge, EswitchMode, LinkKind, LinkMode, LinkSettings, VfState, VlanProtocol};
use proptest::prelude::*;
use vfio::inventory::Sriov;

use super::super::{HostPlan, whole};
use super::host::{at, card, carry_out, function, host, regroup, resize};
use super::{PF, Refusal, guest};
use crate::apply::{Record, State, originals};
use crate::config::{Config, Document, load};
use crate::drift::drifts;
use crate::host::{HostState, PfSettings};

/// A second card, whose switch has modes.
const SECOND: &str = "0000:05:00.0";

/// Attributes as a file has them, some of them.
fn attributes() -> impl Strategy<Value = String> {
    let spoken = |key: &'static str, values: &'static [&'static str]| {
        proptest::option::weighted(0.3, proptest::sample::select(values))
            .prop_map(move |value| value.map(|value| format!("{key}: {value}")))
    };
    let one = (
        spoken("vlan-id", &["1", "7", "4094"]),
        spoken("qos", &["0", "5"]),
        spoken("spoof-check", &["true", "false"]),
        spoken("trust", &["true", "false"]),
        spoken("link-state", &["auto", "enable", "disable"]),
        spoken("max-tx-rate", &["0", "100"]),
    );
    one.prop_map(|(vlan, qos, spoof, trust, link, rate)| {
        // A priority is part of a tag.
        let qos = qos.filter(|_| vlan.is_some());
        [vlan, qos, spoof, trust, link, rate].into_iter().flatten().collect::<Vec<_>>().join(", ")
    })
}

prop_compose! {
    fn sriov()(
        first in proptest::option::weighted(0.7, 0_u16..=7),
        second in proptest::option::of((0_u16..=4, proptest::option::of(any::<bool>()))),
        autoprobe in any::<[bool; 2]>(),
        defaults in attributes(),
        vfs in proptest::collection::btree_map(0_u16..7, attributes(), 0..3),
        named in proptest::collection::btree_map(0_u16..7, attributes(), 0..3),
        gpu in proptest::bool::weighted(0.3),
    ) -> String {
        let mut text = String::from("devices:\n  gpu: {match: {id: \"10de:2204\"}, group: all-endpoints}\n");
        let mut guests = String::new();
        let mut section = String::new();
        if let Some(count) = first {
            writeln!(text, "  lan: {{match: {{address: \"{PF}\"}}}}").unwrap();
            let own = vfs.iter().filter(|(id, _)| **id < count).map(|(id, own)| match own.as_str() {
                "" => format!("{{id: {id}}}"),
                own => format!("{{id: {id}, {own}}}"),
            });
            let own: Vec<String> = own.collect();
            writeln!(
                section,
                "  lan: {{num-vfs: {count}, drivers-autoprobe: {}, vf-defaults: {{{defaults}}}, vfs: [{}]}}",
                autoprobe[0],
                own.join(", ")
            ).unwrap();
            for (id, nic) in named.iter().filter(|(id, _)| **id < count) {
                let nic = if nic.is_empty() { String::new() } else { format!(", {nic}") };
                guests += &guest(&format!("g{id}"), &format!("nics: {{n: {{pf: lan, vf: {id}{nic}}}}}"));
            }
        }
        if let Some((count, switchdev)) = second {
            writeln!(text, "  fab: {{match: {{path: \"00:05.0/00.0\", id: \"8086:1572\"}}}}").unwrap();
            let mode = match switchdev {
                None => "",
                Some(true) => ", eswitch-mode: switchdev",
                Some(false) => ", eswitch-mode: legacy",
            };
            writeln!(section, "  fab: {{num-vfs: {count}, drivers-autoprobe: {}{mode}}}", autoprobe[1]).unwrap();
        }
        if gpu {
            guests += &guest("screen", "pci: {gpu: {device: gpu}}");
        }
        for (key, lines) in [("sriov", section), ("vms", guests)] {
            if !lines.is_empty() {
                write!(text, "{key}:\n{lines}").unwrap();
            }
        }
        text
    }
}

prop_compose! {
    fn networks()(
        bridge in proptest::option::weighted(0.7, (any::<[bool; 9]>(), proptest::sample::select(&[1280_u32, 1500, 9000][..]), 10_u32..400)),
        tags in (1_u16..4095, 1_u16..4000),
        old in any::<bool>(),
        vlan in proptest::option::of((any::<bool>(), 1_u16..4095)),
        bond in proptest::option::of((proptest::sample::select(&["active-backup", "802.3ad", "balance-xor"][..]), 50_u32..200)),
        tap in proptest::option::of(proptest::sample::select(&["bridge", "vepa", "private", "passthru"][..])),
        nat in proptest::option::of(any::<[bool; 2]>()),
    ) -> String {
        let mut text = String::new();
        if let Some(([filtering, stp, address, gateway, first, second, card, asks, guests], mtu, ageing)) = bridge {
            let vlan = |text: String| if filtering { format!("{{vlan: {text}}}") } else { "{}".to_owned() };
            let mut ports = Vec::new();
            if first {
                ports.push(format!("eth2: {}", vlan(format!("{{mode: access, tag: {}}}", tags.0))));
            }
            if second {
                let trunk = format!("{{mode: trunk, trunk-tags: [{}, \"{}-{}\"]}}", tags.0, tags.1, tags.1 + 3);
                ports.push(format!("eth5: {}", vlan(trunk)));
            }
            if card {
                // With guests on the bridge, the card is told of them.
                ports.push("eth1: {}".to_owned());
            }
            let guests = if guests { ", guest-macs: [\"52:54:00:00:05:02\"]" } else { "" };
            write!(
                text,
                "  br0: {{type: bridge, vlan-filtering: {filtering}, stp: {{enabled: {stp}}}, mtu: {mtu}, ageing-time: {ageing}, ports: {{{}}}{guests}",
                ports.join(", ")
            ).unwrap();
            if asks {
                text.push_str(", dhcp4: true");
            } else if address {
                text.push_str(", addresses: [10.3.0.1/24, \"fd00:3::1/64\"]");
                if gateway {
                    text.push_str(", gateway: 10.3.0.254");
                }
            }
            text.push_str("}\n");
        }
        if old {
            text.push_str("  old: {type: bridge, ageing-time: 30}\n");
        }
        if let Some((on_bridge, id)) = vlan {
            let base = if on_bridge && bridge.is_some() { "br0" } else { "eth0" };
            writeln!(text, "  v: {{type: vlan, base-iface: {base}, id: {id}, addresses: [10.1.0.1/24]}}").unwrap();
        }
        if let Some((mode, miimon)) = bond {
            writeln!(text, "  bond0: {{type: bond, mode: {mode}, miimon: {miimon}, ports: {{eth6: {{}}}}}}").unwrap();
        }
        if let Some(mode) = tap {
            writeln!(text, "  tap: {{type: macvtap, base-iface: eth7, mode: {mode}}}").unwrap();
        }
        if let Some([isolated, dhcp]) = nat {
            let dhcp = if dhcp { ", dhcp: {range: 10.7.0.10-10.7.0.20}" } else { "" };
            writeln!(text, "  n: {{type: nat, addresses: [10.7.0.1/24], isolated: {isolated}{dhcp}}}").unwrap();
        }
        if text.is_empty() { text } else { format!("networks:\n{text}") }
    }
}

prop_compose! {
    /// A file with some of everything.
    fn any_file()(
        sriov in sriov(),
        networks in networks(),
        pages in proptest::option::of(0_u64..100),
    ) -> String {
        let pages = pages.map_or(String::new(), |pages| format!("host: {{hugepages: {{2MiB: {pages}}}}}\n"));
        format!("version: 1\n{pages}{sriov}{networks}")
    }
}

prop_compose! {
    /// A VF as somebody left it; what its driver does not report is absent.
    fn any_vf()(
        vlan in 0_u16..10, qos in 0_u8..8, rate in proptest::option::of(0_u32..200),
        [spoof, trust, service] in any::<[bool; 3]>(), silent in proptest::bool::weighted(0.2),
    ) -> VfState {
        VfState {
            id: 0,
            mac_address: None,
            vlan_id: Some(vlan),
            qos: Some(qos),
            vlan_proto: Some(if service { VlanProtocol::Ieee8021Ad } else { VlanProtocol::Ieee8021Q }),
            spoof_check: (!silent).then_some(spoof),
            trust: (!silent).then_some(trust),
            link_state: Some(LinkMode::Auto),
            min_tx_rate: rate.map(|_| 0),
            max_tx_rate: rate,
        }
    }
}

prop_compose! {
    /// A host with whatever somebody did to it.
    fn any_host()(
        first in proptest::collection::vec((any_vf(), proptest::option::of(proptest::sample::select(&["igbvf", "vfio-pci"][..]))), 0..=7),
        second in 0_u16..=4,
        switchdev in any::<bool>(),
        autoprobe in any::<[bool; 2]>(),
        up in any::<[bool; 4]>(),
        pages in 0_u64..50,
        bridges in any::<[bool; 3]>(),
        gpu in proptest::sample::select(&["nouveau", "vfio-pci", ""][..]),
    ) -> HostState {
        let mut host = host(u16::try_from(first.len()).unwrap());
        let (pf, fab) = (at(PF), at(SECOND));
        for (index, (vf, driver)) in first.into_iter().enumerate() {
            let vfs = host.vfs.get_mut(&pf).unwrap();
            vfs[index] = VfState { id: vfs[index].id, mac_address: vfs[index].mac_address, ..vf };
            let address = host.inventory.functions[&pf].sriov.as_ref().unwrap().vfs[index];
            host.inventory.functions.get_mut(&address).unwrap().driver = driver.map(str::to_owned);
        }
        let mut card_two = function(SECOND, 0x02_0000, (0x8086, 0x1572), "i40e", 6);
        card_two.path = Some("00:05.0/00.0".to_owned());
        card_two.interfaces = vec!["eth3".to_owned()];
        card_two.sriov = Some(Sriov { total_vfs: 7, num_vfs: 0, vfs: Vec::new() });
        host.inventory.functions.insert(fab, card_two);
        let eswitch_mode = Some(if switchdev { EswitchMode::Switchdev } else { EswitchMode::Legacy });
        host.pfs.insert(fab, PfSettings { drivers_autoprobe: Some(autoprobe[1]), eswitch_mode });
        host.pfs.get_mut(&pf).unwrap().drivers_autoprobe = Some(autoprobe[0]);
        resize(&mut host, fab, second);
        for (name, up) in ["eth3", "eth5", "eth6", "eth7"].into_iter().zip(up) {
            host.links.insert(name.to_owned(), LinkSettings { up, ..card(&[], None) });
        }
        host.hugepages.insert(0x20_0000, pages);
        let bridge = |ageing_time| LinkKind::Bridge(Bridge { stp: false, ageing_time, vlan_filtering: false });
        if bridges[0] {
            host.links.insert("old".to_owned(), LinkSettings { kind: bridge(100), mtu: 1400, ..card(&[], None) });
        }
        if bridges[1] {
            host.links.insert("br0".to_owned(), LinkSettings { kind: bridge(200), ..card(&["10.9.0.1/24"], None) });
            if bridges[2] {
                host.links.get_mut("eth5").unwrap().controller = Some("br0".to_owned());
            }
        }
        for address in ["03:00.0", "03:00.1"] {
            let driver = (!gpu.is_empty()).then(|| gpu.to_owned());
            host.inventory.functions.get_mut(&at(address)).unwrap().driver = driver;
        }
        regroup(&mut host);
        host
    }
}

/// Changes as the history has them.
#[derive(Default)]
struct Box {
    records: Vec<Record>,
}

impl Box {
    fn plan(&self, config: &Config, host: &HostState) -> Result<HostPlan, Vec<Refusal>> {
        whole(config, host, &originals(&self.records))
    }

    /// Does what a plan says, and writes it down.
    fn apply(&mut self, plan: &HostPlan, host: HostState) -> HostState {
        let (after, undo) = carry_out(plan.steps.iter().map(|planned| &planned.step), host);
        let released = plan.steps.iter().filter_map(|planned| match &planned.step {
            super::Step::Release(undo) => Some(undo.object()),
            _ => None,
        });
        self.records.push(Record {
            id: u64::try_from(self.records.len()).unwrap() + 1,
            user: 0,
            by: None,
            started: 0,
            boot: String::new(),
            title: String::new(),
            file: None,
            restores: None,
            text: None,
            steps: Vec::new(),
            undo,
            released: released.collect(),
            state: State::Committed,
        });
        after
    }
}

fn config(text: &str) -> Config {
    load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap_or_else(|problems| {
        panic!("{text}\n{}", problems.iter().map(|p| p.render()).collect::<String>())
    })
}

fn steps(plan: &HostPlan) -> Vec<String> {
    plan.steps.iter().map(|planned| planned.step.to_string()).collect()
}

/// What a file can change of a host, with what the kernel or a driver chooses left out.
fn state(host: &HostState) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, link) in &host.links {
        all.insert(format!("link {name}"), format!("{link:?}"));
    }
    for (name, nat) in &host.nats {
        all.insert(format!("NAT {name}"), format!("{nat:?}"));
    }
    for (size, pages) in &host.hugepages {
        all.insert(format!("pages {size}"), pages.to_string());
    }
    for (link, macs) in host.forwarded.iter().filter(|(_, macs)| !macs.is_empty()) {
        all.insert(format!("told {link}"), format!("{macs:?}"));
    }
    all.insert("DHCP".to_owned(), format!("{:?}", host.dhcp.running));
    for (pf, settings) in &host.pfs {
        all.insert(format!("PF {pf}"), format!("{settings:?}"));
    }
    for (address, function) in &host.inventory.functions {
        let vfs = function.sriov.as_ref().map(|sriov| sriov.num_vfs);
        all.insert(format!("function {address}"), format!("{:?} {vfs:?}", function.driver));
    }
    for (pf, vfs) in &host.vfs {
        for vf in vfs {
            let vf = VfState { mac_address: None, ..vf.clone() };
            all.insert(format!("VF {} of {pf}", vf.id), format!("{vf:?}"));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn planning_again_is_empty_and_forgetting_all_gives_the_host_back(
        before in any_host(), files in proptest::collection::vec(any_file(), 1..4),
    ) {
        let (mut book, mut now) = (Box::default(), before.clone());
        for text in files.iter().map(String::as_str).chain(["version: 1\n"]) {
            let config = config(text);
            let plan = book.plan(&config, &now);
            prop_assert_eq!(&plan, &book.plan(&config, &now), "it is pure");
            let plan = plan.map_err(|refusals| TestCaseError::fail(format!("{text}\n{refusals:#?}")))?;
            // What is told of drift is what there is to do.
            let told = drifts(&config, &now, &originals(&book.records));
            prop_assert_eq!(told.is_empty(), plan.is_empty(), "{:?}", steps(&plan));
            now = book.apply(&plan, now);
            let left = book.plan(&config, &now).map_err(|refusals| TestCaseError::fail(format!("{refusals:#?}")))?;
            prop_assert!(left.is_empty(), "{}\ndone: {:#?}\nleft: {:#?}", text, steps(&plan), steps(&left));
        }
        let (left, right) = (state(&now), state(&before));
        let keys = left.keys().chain(right.keys()).filter(|key| left.get(*key) != right.get(*key));
        let other: Vec<_> = keys.map(|key| (key, left.get(key), right.get(key))).collect();
        prop_assert!(other.is_empty(), "not as before: {other:#?}");
    }
}

/// The strategies are worth something: they come to steps of every kind.
#[test]
fn what_is_tried_has_every_kind_of_step() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut kinds = BTreeMap::<String, usize>::new();
    for _ in 0..200 {
        let mut one = || any_file().new_tree(&mut runner).unwrap().current();
        let files = [one(), one(), "version: 1\n".to_owned()];
        let mut now = any_host().new_tree(&mut runner).unwrap().current();
        let mut book = Box::default();
        for text in files {
            let Ok(plan) = book.plan(&config(&text), &now) else { continue };
            for planned in &plan.steps {
                let kind = format!("{:?}", planned.step);
                let kind = kind.split([' ', '(']).take(if kind.starts_with("Release") { 2 } else { 1 });
                *kinds.entry(kind.collect::<Vec<_>>().join(" ")).or_default() += 1;
            }
            now = book.apply(&plan, now);
        }
    }
    let found: Vec<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(
        found,
        [
            "Autoprobe",
            "BringUp",
            "Dhcp",
            "Eswitch",
            "Forward",
            "Hugepages",
            "Lend",
            "Link",
            "Nat",
            "Release Dhcp",
            "Release Driver",
            "Release Forward",
            "Release Hugepages",
            "Release Link",
            "Release Nat",
            "Release Sriov",
            "Release Vf",
            "Resize",
            "SetVf",
        ],
        "{kinds:#?}"
    );
}
