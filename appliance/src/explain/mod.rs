//! Everything about one function that decides whether a guest can have it: what it is, who shares its IOMMU group and why, and
//! a verdict with each reason and what to do about it. Pure: from a snapshot of the host and what was read of the function.

mod facts;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use vfio::PciAddress;
use vfio::inventory::{Function, Names};
use vfio::isolation::{Cause, Isolation, causes, from_root, parted_although};

pub use facts::{Facts, Power, isolation};

use crate::config::{Config, GroupScope};
use crate::host::HostState;
use crate::plan;

/// All that is known of one function.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Vendor and device in words.
    pub name: String,
    /// Its class in words.
    pub kind: Option<&'static str>,
    /// What the inventory has of it.
    #[serde(flatten)]
    pub function: Function,
    /// The bridges above it from the root on, itself last.
    pub from_root: Vec<Hop>,
    /// The other members of its IOMMU group.
    pub shares_group_with: Vec<Neighbour>,
    /// Why it shares its group with them.
    pub causes: Vec<SharedBecause>,
    /// What would join it with others by its registers, though the kernel has parted them.
    pub parted_although: Vec<Cause>,
    /// Whether a guest can have it now.
    pub verdict: Verdict,
    /// Each reason, the heaviest first.
    pub reasons: Vec<Reason>,
}

/// One step of the way from the root.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hop {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor and device in words.
    pub name: String,
    /// What it does for isolation; none where config space could not be read.
    pub isolation: Option<Isolation>,
}

/// Another function of the group.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Neighbour {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor and device in words.
    pub name: String,
    /// The driver that holds it.
    pub driver: Option<String>,
    /// It is a bridge.
    pub bridge: bool,
}

/// One cause and the functions that it joins to this one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SharedBecause {
    /// The cause.
    pub cause: Cause,
    /// Whom it joins.
    pub joins: Vec<PciAddress>,
}

/// Whether a guest can have a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Now.
    Ready,
    /// When what stands in the way is done.
    PossibleAfter,
    /// Never.
    NotPossible,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// The verdict that this reason alone would give. `ready` is a remark.
    pub weight: Verdict,
    /// What is so.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Explains one function. None where there is no such function. `scope` says whether its group is to go along.
pub fn explain(
    config: &Config,
    host: &HostState,
    isolation: &BTreeMap<PciAddress, Isolation>,
    facts: &Facts,
    address: PciAddress,
    scope: GroupScope,
) -> Option<Explanation> {
    let inventory = &host.inventory;
    let function = inventory.function(address)?;
    let names = Names::load();
    let name = |address: &PciAddress| {
        inventory.function(*address).map_or_else(String::new, |function| names.describe(function))
    };
    let hop = |address: &PciAddress| Hop {
        address: *address,
        name: name(address),
        isolation: isolation.get(address).copied(),
    };
    let members = inventory.group_of(address).into_iter().flat_map(|group| &group.members);
    let others = members.filter(|member| member.address != address).map(|member| Neighbour {
        address: member.address,
        name: name(&member.address),
        driver: member.driver.clone(),
        bridge: member.bridge,
    });
    let causes = causes(inventory, isolation, address);
    let (verdict, reasons) = judge(config, host, function, facts, scope);
    Some(Explanation {
        name: names.describe(function),
        kind: names.class(function.class),
        function: function.clone(),
        from_root: from_root(inventory, address).iter().map(hop).collect(),
        shares_group_with: others.collect(),
        causes: causes.into_iter().map(|(cause, joins)| SharedBecause { cause, joins }).collect(),
        parted_although: parted_although(inventory, isolation, address),
        verdict,
        reasons,
    })
}

/// The verdict of one function alone, with its reasons, the heaviest first.
pub fn judge(
    config: &Config,
    host: &HostState,
    function: &Function,
    facts: &Facts,
    scope: GroupScope,
) -> (Verdict, Vec<Reason>) {
    let reasons = reasons(config, host, function, facts, scope);
    (reasons.iter().map(|reason| reason.weight).max().unwrap_or(Verdict::Ready), reasons)
}

fn reasons(
    config: &Config,
    host: &HostState,
    function: &Function,
    facts: &Facts,
    scope: GroupScope,
) -> Vec<Reason> {
    let weight = if function.is_bridge() { Verdict::NotPossible } else { Verdict::PossibleAfter };
    let refusals = plan::may_give(config, host, function.address, scope).into_iter();
    let mut reasons: Vec<Reason> =
        refusals.map(|refusal| Reason { weight, message: refusal.message, help: refusal.help }).collect();
    reasons.extend(facts.remarks(function));
    let kept = function.interfaces.iter().filter_map(|name| Some((name, host.owners.get(name)?)));
    reasons.extend(kept.map(|(name, owner)| Reason {
        weight: Verdict::Ready,
        message: format!("{name} is kept by {owner}"),
        help: owner.release(name),
    }));
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.weight));
    reasons
}
