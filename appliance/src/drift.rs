//! Where the host is no longer as a file says, field by field. Pure: from the file and a snapshot.

use std::fmt;

use netconfig::{Bridge, LinkKind, LinkSettings, MacAddress, differences};
use serde::Serialize;
use vfio::PciAddress;
use vfio::bind::VFIO_PCI;

use crate::apply::Undo;
use crate::config::Config;
use crate::host::HostState;
use crate::plan::{HostPlan, Refusal, Step, Target, vf_fields, whole};

/// One field that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Drift {
    /// Whose: a link, a function, `VF 1 of 0000:01:00.0`, `huge pages of 2MiB`.
    pub object: String,
    /// Which: a key of the file, or `link` for the whole of one.
    pub field: String,
    /// What the file says.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, expected, actual } = self;
        write!(f, "{object}: {field} {expected} -> {actual}")
    }
}

impl Drift {
    fn new(
        object: impl fmt::Display,
        field: &str,
        expected: impl fmt::Display,
        actual: impl fmt::Display,
    ) -> Self {
        let (object, field) = (object.to_string(), field.to_owned());
        Self { object, field, expected: expected.to_string(), actual: actual.to_string() }
    }

    /// It is the same field of the same object.
    pub fn is_about(&self, other: &Self) -> bool {
        self.object == other.object && self.field == other.field
    }

    /// While this is so, nobody knows of the other: it is of something that is not there, or the file cannot be had at all.
    pub fn hides(&self, other: &Self) -> bool {
        match self.field.as_str() {
            "possible" => true,
            "link" => self.object == other.object,
            "num-vfs" | "eswitch-mode" => other.object.ends_with(&format!(" of {}", self.object)),
            _ => false,
        }
    }
}

/// Every field that is not as `config` says. `originals` are as for [`whole`]. A file that the host could not be given now is one
/// entry for each reason.
pub fn drifts(config: &Config, host: &HostState, originals: &[Undo]) -> Vec<Drift> {
    let mut found = match whole(config, host, originals) {
        Ok(plan) => of_plan(&plan, host),
        Err(refusals) => refusals.iter().map(impossible).collect(),
    };
    found.sort();
    found.dedup();
    found
}

fn impossible(refusal: &Refusal) -> Drift {
    let path = if refusal.path.is_empty() { "the file".to_owned() } else { refusal.path.join(".") };
    Drift::new(path, "possible", "yes", &refusal.message)
}

/// What the steps of a plan would make good.
fn of_plan(plan: &HostPlan, host: &HostState) -> Vec<Drift> {
    let remade = |pf: PciAddress| {
        plan.steps.iter().any(|planned| matches!(planned.step, Step::Resize { pf: of, .. } if of == pf))
    };
    plan.steps.iter().flat_map(|planned| of_step(&planned.step, host, &remade)).collect()
}

fn of_step(step: &Step, host: &HostState, remade: &dyn Fn(PciAddress) -> bool) -> Vec<Drift> {
    let one = |drift: Drift| vec![drift];
    match step {
        Step::BringUp { interface, .. } => one(Drift::new(interface, "up", "up", "down")),
        Step::Autoprobe { pf, on } => one(Drift::new(pf, "drivers-autoprobe", on, !on)),
        // To none and from none again: the mode is the difference.
        Step::Resize { pf, from, to } => {
            let now = host.inventory.function(*pf).and_then(|pf| Some(pf.sriov.as_ref()?.num_vfs));
            if now == Some(*from) { one(Drift::new(pf, "num-vfs", to, from)) } else { Vec::new() }
        }
        Step::SetVf { pf, .. } | Step::Lend(Target::Vf { pf, .. }) if remade(*pf) => Vec::new(),
        Step::SetVf { pf, vf, from, attributes, .. } => {
            let object = Target::Vf { pf: *pf, vf: *vf };
            let field = |(name, now, wanted): (&str, Option<String>, String)| {
                Drift::new(&object, name, wanted, now.unwrap_or_else(|| "unknown".to_owned()))
            };
            vf_fields(from.as_ref(), attributes).into_iter().map(field).collect()
        }
        Step::Lend(target) => {
            let driver = function_of(host, target).and_then(|function| function.driver.clone());
            one(Drift::new(target, "driver", VFIO_PCI, driver.as_deref().unwrap_or("none")))
        }
        Step::Hugepages { size, from, to } => {
            one(Drift::new(format_args!("huge pages of {size}"), "number", to, from))
        }
        Step::Eswitch { pf, from, to } => {
            let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
            one(Drift::new(pf, "eswitch-mode", to, from))
        }
        // A guest's own, which no plan of the host has.
        Step::Card { .. } => Vec::new(),
        Step::Link { name, to, .. } => of_link(name, to.as_deref(), host),
        Step::Nat { name, to, .. } => of_nat(name, to.is_some(), host),
        Step::Dhcp { link, to, .. } => one(of_dhcp(link, *to)),
        Step::Forward { link, macs, .. } => macs.iter().map(|mac| of_forward(link, *mac, true)).collect(),
        Step::Release(undo) => of_undo(undo, host),
    }
}

fn function_of<'a>(host: &'a HostState, target: &Target) -> Option<&'a vfio::inventory::Function> {
    let address = match target {
        Target::Function(address) => *address,
        Target::Vf { pf, vf } => *host.inventory.function(*pf)?.sriov.as_ref()?.vfs.get(usize::from(*vf))?,
    };
    host.inventory.function(address)
}

fn of_link(name: &str, to: Option<&LinkSettings>, host: &HostState) -> Vec<Drift> {
    let bridges = match (to.map(|to| &to.kind), host.links.get(name).map(|link| &link.kind)) {
        (Some(LinkKind::Bridge(wanted)), Some(LinkKind::Bridge(actual))) => bridge(name, *wanted, *actual),
        _ => Vec::new(),
    };
    let found = differences(name, to, &host.links).into_iter();
    // A bridge's kind is told field by field.
    let rest = found.filter(|found| found.field != "kind" || bridges.is_empty());
    let rest = rest.map(|found| Drift::new(name, &found.field, found.wanted, found.actual));
    let mut all: Vec<Drift> = rest.chain(bridges.iter().cloned()).collect();
    if all.is_empty() {
        all.push(Drift::new(name, "settings", "as the file says", "otherwise"));
    }
    all
}

fn bridge(name: &str, wanted: Bridge, actual: Bridge) -> Vec<Drift> {
    let fields = [
        ("stp", wanted.stp.to_string(), actual.stp.to_string()),
        ("ageing-time", wanted.ageing_time.to_string(), actual.ageing_time.to_string()),
        ("vlan-filtering", wanted.vlan_filtering.to_string(), actual.vlan_filtering.to_string()),
    ];
    let different = fields.into_iter().filter(|(_, wanted, actual)| wanted != actual);
    different.map(|(field, wanted, actual)| Drift::new(name, field, wanted, actual)).collect()
}

fn of_nat(name: &str, wanted: bool, host: &HostState) -> Vec<Drift> {
    let object = format!("NAT of {name}");
    if let Some(found) = host.nat_differences.get(name) {
        return found
            .iter()
            .map(|found| Drift::new(&object, &found.field, &found.wanted, &found.actual))
            .collect();
    }
    let in_words = |there: bool| if there { "a NAT network" } else { "none" };
    let there = host.nats.contains_key(name);
    let actual = if there == wanted { "with other settings" } else { in_words(there) };
    vec![Drift::new(object, "nat", in_words(wanted), actual)]
}

/// Whether a client asks for a link's address.
fn of_dhcp(link: &str, wanted: bool) -> Drift {
    let in_words = |on: bool| if on { "a client asks" } else { "nobody asks" };
    Drift::new(link, "dhcp4", in_words(wanted), in_words(!wanted))
}

/// Whether a card is told of an address on its bridge.
fn of_forward(link: &str, mac: MacAddress, wanted: bool) -> Drift {
    let in_words = |there: bool| if there { "told" } else { "not told" };
    Drift::new(link, &format!("fdb {mac}"), in_words(wanted), in_words(!wanted))
}

/// Something that was given back is not as it was before.
fn of_undo(undo: &Undo, host: &HostState) -> Vec<Drift> {
    match undo {
        Undo::Link { name, before } => of_link(name, before.as_deref(), host),
        Undo::Hugepages { size, before } => {
            let now = host.hugepages.get(&size.0).copied().unwrap_or(0);
            vec![Drift::new(format_args!("huge pages of {size}"), "number", before, now)]
        }
        Undo::Sriov { pf, before, .. } => {
            let now = host.inventory.function(*pf).and_then(|pf| Some(pf.sriov.as_ref()?.num_vfs));
            let now = now.unwrap_or(0);
            if now == before.num_vfs {
                vec![Drift::new(pf, "settings", "as they were", "otherwise")]
            } else {
                vec![Drift::new(pf, "num-vfs", before.num_vfs, now)]
            }
        }
        Undo::Driver { address, before, .. } => {
            let now = host.inventory.function(*address).and_then(|function| function.driver.as_deref());
            vec![Drift::new(
                address,
                "driver",
                before.driver.as_deref().unwrap_or("none"),
                now.unwrap_or("none"),
            )]
        }
        // They follow addresses, and are never a wish of their own.
        Undo::Routes { .. } => Vec::new(),
        Undo::Nat { name, before } => of_nat(name, before.is_some(), host),
        Undo::Dhcp { name, before } => vec![of_dhcp(name, *before)],
        Undo::Forward { link, mac, before } => vec![of_forward(link, *mac, *before)],
        Undo::Vf { pf, before } => {
            vec![Drift::new(
                format_args!("VF {} of {pf}", before.id),
                "settings",
                "as they were",
                "otherwise",
            )]
        }
    }
}
