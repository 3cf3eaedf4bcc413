//! Preparing the host for one guest, and giving back what it had.

use anyhow::{Context, bail};
use vfio::PciAddress;

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
        self.ledger.write(&self.claim)
    }

    fn note_own(&mut self, _: Undo) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Does what a plan says. What was done before a failure is put back.
pub fn apply(plan: &Plan, vm: &str, host: &Host, ledger: &Ledger) -> anyhow::Result<Applied> {
    let mut journal = Claiming { ledger, claim: Claim { holder: Holder::this(vm), undo: Vec::new() } };
    let done = plan.steps.iter().try_for_each(|step| steps::take(step, host, &mut journal));
    let slot = |slot: &SlotPlan| {
        let functions =
            slot.functions.iter().map(|target| find(&host.sysfs, target)).collect::<anyhow::Result<_>>()?;
        Ok((slot.name.clone(), functions))
    };
    let slots = done.and_then(|()| plan.slots.iter().map(slot).collect::<anyhow::Result<_>>());
    if slots.is_err()
        && let Err(error) = restore(&journal.claim, host, ledger)
    {
        tracing::error!("{error:#}");
    }
    slots.map(|slots| Applied { slots, cards: plan.cards.clone() })
}

/// Puts back what a claim says, last first, and forgets it when all is back. What fails is said, and the rest is done all the same.
pub fn restore(claim: &Claim, host: &Host, ledger: &Ledger) -> anyhow::Result<()> {
    let vm = &claim.holder.vm;
    if let Err(error) =
        steps::put_back(&claim.undo, host).with_context(|| format!("Putting devices of guest `{vm}` back"))
    {
        bail!(error);
    }
    ledger.forget(vm)
}
