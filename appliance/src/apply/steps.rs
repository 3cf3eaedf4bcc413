//! The steps themselves.

use std::path::Path;

use anyhow::{Context, bail};
use netconfig::blocking::with_network;
use netconfig::{Verdict, VfAttributes};
use vfio::bind::Binding;
use vfio::sriov::PhysicalFunction;
use vfio::{PciAddress, Sysfs};

use super::{Claim, Holder, Ledger, Undo};
use crate::plan::{Plan, Step, Target};

/// A guest's slots, with the functions found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Name and functions of each slot.
    pub slots: Vec<(String, Vec<PciAddress>)>,
}

/// Does what a plan says. What was done before a failure is put back.
pub fn apply(plan: &Plan, vm: &str, sysfs: &Sysfs, ledger: &Ledger) -> anyhow::Result<Applied> {
    let mut work = Work { sysfs, ledger, claim: Claim { holder: Holder::this(vm), undo: Vec::new() } };
    let done = plan.steps.iter().try_for_each(|step| {
        tracing::info!("{step}");
        work.step(step).with_context(|| format!("Doing the step `{step}`"))
    });
    let applied = done.and_then(|()| work.slots(plan));
    if applied.is_err()
        && let Err(error) = restore(&work.claim, sysfs, ledger)
    {
        tracing::error!("{error:#}");
    }
    applied
}

/// Puts back what a claim says, last first, and forgets it when all is back. What fails is said, and the rest is done all the same.
pub fn restore(claim: &Claim, sysfs: &Sysfs, ledger: &Ledger) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for undo in claim.undo.iter().rev() {
        if let Err(error) = put_back(undo, sysfs) {
            failures.push(format!("{error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("Putting devices of guest `{}` back: {}", claim.holder.vm, failures.join("; "));
    }
    ledger.forget(&claim.holder.vm)
}

fn put_back(undo: &Undo, sysfs: &Sysfs) -> anyhow::Result<()> {
    match undo {
        Undo::Driver { address, before } => {
            // A VF may be gone with its PF's number, or a card with its slot: there is nothing to put back.
            if !sysfs.device(*address).exists() {
                tracing::warn!("{address}: it is gone, so its driver cannot be put back");
                return Ok(());
            }
            Binding::of(sysfs, *address)?.restore(before).context("Putting its driver back")
        }
        Undo::Vf { pf, before } => {
            let Some(interface) = interface(sysfs, *pf)? else {
                tracing::warn!("{pf}: it has no interface any more, so VF {} cannot be put back", before.id);
                return Ok(());
            };
            let reports = match with_network(async |network| network.restore_vf(&interface, before).await) {
                Err(netconfig::Error::NoVf { .. }) => return Ok(()),
                reports => reports?,
            };
            for report in reports.iter().filter(|report| !report.holds()) {
                tracing::warn!("{pf}: putting VF {} back: {report}", before.id);
            }
            Ok(())
        }
    }
}

struct Work<'a> {
    sysfs: &'a Sysfs,
    ledger: &'a Ledger,
    claim: Claim,
}

impl Work<'_> {
    /// Notes an undo on disk: from now on it is put back, whatever happens.
    fn note(&mut self, undo: Undo) -> anyhow::Result<()> {
        self.claim.undo.push(undo);
        self.ledger.write(&self.claim)
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            // The box's own state, kept when the guest ends: docs/decisions/0005.
            Step::BringUp { interface, .. } => bring_up(interface),
            Step::Autoprobe { pf, on } => {
                if !PhysicalFunction::of(self.sysfs, *pf)?.set_autoprobe(*on)? {
                    tracing::debug!("{pf}: this kernel has no sriov_drivers_autoprobe");
                }
                Ok(())
            }
            Step::Resize { pf, to, .. } => Ok(PhysicalFunction::of(self.sysfs, *pf)?.resize(*to)?),
            Step::SetVf { pf, interface, vf, attributes } => self.set_vf(*pf, interface, *vf, attributes),
            Step::Lend(target) => {
                let address = self.find(target)?;
                let binding = Binding::of(self.sysfs, address)?;
                self.note(Undo::Driver { address, before: binding.state()? })?;
                load_vfio_pci(self.sysfs);
                Ok(binding.lend()?)
            }
        }
    }

    fn set_vf(
        &mut self,
        pf: PciAddress,
        interface: &str,
        vf: u16,
        wanted: &VfAttributes,
    ) -> anyhow::Result<()> {
        let id = u32::from(vf);
        let before = with_network(async |network| network.vf(interface, id).await)?;
        self.note(Undo::Vf { pf, before })?;
        let reports = with_network(async |network| network.set_vf(interface, id, wanted).await)?;
        let (kept, lost): (Vec<_>, Vec<_>) = reports.iter().partition(|report| report.holds());
        let kept: Vec<_> =
            kept.iter().map(|report| format!("{} {}", report.attribute, report.requested)).collect();
        tracing::info!("{pf}: VF {vf} reads back with {}", kept.join(", "));
        let mut refused = Vec::new();
        for report in lost {
            match report.verdict {
                Verdict::Unsupported | Verdict::Differs if !report.attribute.confines() => {
                    tracing::warn!("{pf}: VF {vf}: {report}");
                }
                _ => refused.push(report.to_string()),
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            bail!("{}; change it in the file or take it out, or use a card that has it", refused.join("; "))
        }
    }

    fn find(&self, target: &Target) -> anyhow::Result<PciAddress> {
        match target {
            Target::Function(address) => Ok(*address),
            Target::Vf { pf, vf } => {
                let vfs = PhysicalFunction::of(self.sysfs, *pf)?.vfs();
                let found = vfs.into_iter().find(|(index, _)| index == vf);
                found.map(|(_, address)| address).with_context(|| format!("{pf}: VF {vf} is not there"))
            }
        }
    }

    fn slots(&self, plan: &Plan) -> anyhow::Result<Applied> {
        let slot = |slot: &crate::plan::SlotPlan| {
            let functions =
                slot.functions.iter().map(|target| self.find(target)).collect::<anyhow::Result<_>>()?;
            Ok((slot.name.clone(), functions))
        };
        Ok(Applied { slots: plan.slots.iter().map(slot).collect::<anyhow::Result<_>>()? })
    }
}

fn interface(sysfs: &Sysfs, pf: PciAddress) -> anyhow::Result<Option<String>> {
    netconfig::blocking::interface_of(&sysfs.device(pf))
        .with_context(|| format!("{pf}: looking for its interface"))
}

fn bring_up(interface: &str) -> anyhow::Result<()> {
    Ok(with_network(async |network| {
        let link = network.link(interface).await?;
        if link.up { Ok(()) } else { network.set_up(interface, true).await }
    })?)
}

/// Where vfio-pci is a module that nobody has loaded yet, the kernel's own loader is asked for it.
fn load_vfio_pci(sysfs: &Sysfs) {
    if sysfs.path("bus/pci/drivers").join(vfio::bind::VFIO_PCI).exists() {
        return;
    }
    let modprobe = ["/usr/sbin/modprobe", "/sbin/modprobe"].into_iter().find(|path| Path::new(path).exists());
    let Some(modprobe) = modprobe else { return };
    match std::process::Command::new(modprobe).arg(vfio::bind::VFIO_PCI).status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!("modprobe vfio-pci: {status}"),
        Err(error) => tracing::warn!("{modprobe}: {error}"),
    }
}
