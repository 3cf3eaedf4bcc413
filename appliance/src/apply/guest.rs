//! Preparing the host for one guest, and giving back what it had: all of it, or one device while it runs.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use vfio::PciAddress;
use vfio::sriov::PhysicalFunction;

use super::steps::{self, Journal, find};
use super::{Claim, Holder, Host, Ledger, Undo};
use crate::plan::{Card, Plan, SlotPlan};

/// A guest's slots, with the functions found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Name and functions of each slot.
    pub slots: Vec<(String, Vec<PciAddress>)>,
    /// Virtio-net cards, whose links are made.
    pub cards: Vec<Card>,
}

/// What a guest has to give back: drivers and VFs' attributes. VFs themselves and links that were brought up are the box's
/// own state, which stays (docs/decisions/0005).
struct Claiming<'a> {
    ledger: &'a Ledger,
    claim: Claim,
}

impl Journal for Claiming<'_> {
    fn note(&mut self, undo: Undo) -> anyhow::Result<()> {
        self.claim.undo.push(undo);
        // A link ends with the kernel that has it, as does what is not on disk yet.
        let links_alone = self.claim.undo.iter().all(|undo| matches!(undo, Undo::Link { .. }));
        if links_alone { self.ledger.show(&self.claim) } else { self.ledger.write(&self.claim) }
    }

    fn note_own(&mut self, _: Undo) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Does what a plan says. What was done before a failure is put back.
pub fn apply(plan: &Plan, vm: &str, host: &Host, ledger: &Ledger) -> anyhow::Result<Applied> {
    claim(plan, Claim { holder: Holder::keeper(vm), undo: Vec::new() }, host, ledger)
}

/// The same for what this process' guest is given while it runs, beside what it has.
pub fn extend(plan: &Plan, vm: &str, host: &Host, ledger: &Ledger) -> anyhow::Result<Applied> {
    let (own, known) = (Holder::keeper(vm), ledger.claim(vm)?);
    if let Some(other) = known.as_ref().filter(|known| known.holder != own) {
        bail!("Guest `{vm}` runs as process {} too, and what that has is not this one's", other.holder.pid);
    }
    claim(plan, known.unwrap_or(Claim { holder: own, undo: Vec::new() }), host, ledger)
}

/// Does what a plan says, and adds what is to be put back to a claim.
fn claim(plan: &Plan, claim: Claim, host: &Host, ledger: &Ledger) -> anyhow::Result<Applied> {
    let before = claim.undo.len();
    let mut journal = Claiming { ledger, claim };
    let done = plan.steps.iter().try_for_each(|step| steps::take(step, host, &mut journal));
    let slot = |slot: &SlotPlan| {
        let functions =
            slot.functions.iter().map(|target| find(&host.sysfs, target)).collect::<anyhow::Result<_>>()?;
        Ok((slot.name.clone(), functions))
    };
    let slots = done.and_then(|()| plan.slots.iter().map(slot).collect::<anyhow::Result<_>>());
    if slots.is_err() {
        let Claim { holder, mut undo } = journal.claim;
        let fresh = undo.split_off(before);
        if let Err(error) = put_back(&holder, undo, &fresh, host, ledger) {
            tracing::error!("{error:#}");
        }
    }
    slots.map(|slots| Applied { slots, cards: plan.cards.clone() })
}

/// Puts back what one device of a running guest has changed; the rest of the guest's claim stays.
pub fn give_back(device: &Applied, vm: &str, host: &Host, ledger: &Ledger) -> anyhow::Result<()> {
    let Some(Claim { holder, undo }) = ledger.claim(vm)? else { return Ok(()) };
    let functions: BTreeSet<_> = device.slots.iter().flat_map(|(_, functions)| functions).copied().collect();
    let is_its = |undo: &Undo| match undo {
        Undo::Driver { address, .. } => functions.contains(address),
        Undo::Vf { pf, before } => {
            let vfs = PhysicalFunction::of(&host.sysfs, *pf).map(|pf| pf.vfs()).unwrap_or_default();
            let vf = vfs.into_iter().find(|(index, _)| u32::from(*index) == before.id);
            vf.is_some_and(|(_, address)| functions.contains(&address))
        }
        Undo::Link { name, .. } => device.cards.iter().any(|card| card.link == *name),
        _ => false,
    };
    let (its, rest) = undo.into_iter().partition(is_its);
    put_back(&holder, rest, &its, host, ledger)
}

/// Puts `its` back, and leaves a claim with the rest: without `its` only where that went well.
fn put_back(
    holder: &Holder,
    rest: Vec<Undo>,
    its: &[Undo],
    host: &Host,
    ledger: &Ledger,
) -> anyhow::Result<()> {
    let vm = &holder.vm;
    steps::put_back(its, host).with_context(|| format!("Putting devices of guest `{vm}` back"))?;
    if rest.is_empty() {
        return ledger.forget(vm);
    }
    ledger.write(&Claim { holder: holder.clone(), undo: rest })
}

/// Puts back what a claim says, last first, and forgets it when all is back. What fails is said, and the rest is done all the same.
pub fn restore(claim: &Claim, host: &Host, ledger: &Ledger) -> anyhow::Result<()> {
    put_back(&claim.holder, Vec::new(), &claim.undo, host, ledger)
}
