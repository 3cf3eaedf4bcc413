//! What has to be done so that the host is as the whole file says. Pure.

mod devices;
mod forward;
mod networks;
mod owners;
mod pools;
mod release;
mod sriov;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use vfio::PciAddress;

use super::management::Management;
use super::{Planner, Refusal, Step, Target};
use crate::apply::{Undo, backwards};
use crate::config::{Config, Sriov};
use crate::host::HostState;

/// All that is to be done to the host, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostPlan {
    /// Steps, each with what it does to others.
    pub steps: Vec<Planned>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Planned {
    /// What is done.
    pub step: Step,
    /// Who else feels it.
    pub blast: Vec<String>,
    /// It changes the way that the administrator comes by.
    pub management: bool,
}

impl HostPlan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// It changes the way that the administrator comes by, so somebody must say that he still comes in.
    pub fn needs_confirmation(&self) -> bool {
        self.steps.iter().any(|planned| planned.management)
    }
}

impl fmt::Display for HostPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("Nothing is to be done: the host is as the file says.");
        }
        for (at, planned) in self.steps.iter().enumerate() {
            writeln!(f, "{:>3}. {}", at + 1, planned.step)?;
            planned.blast.iter().try_for_each(|blast| writeln!(f, "       {blast}"))?;
            if planned.management {
                writeln!(f, "       ! this is the way to this box")?;
            }
        }
        let count = self.steps.len();
        write!(f, "{count} step{}.", if count == 1 { "" } else { "s" })?;
        if self.needs_confirmation() {
            f.write_str("\nAfter it `apply` waits for `throughway confirm`, and puts everything back where nobody does.")?;
        }
        Ok(())
    }
}

/// Plans the whole file. `originals` are things as they were before Throughway first changed them: what the file does not name
/// any more goes back to that.
pub fn whole(config: &Config, host: &HostState, originals: &[Undo]) -> Result<HostPlan, Vec<Refusal>> {
    let mut whole = Whole { planner: Planner::new(config, host, ""), originals, steps: Vec::new() };
    whole.way_in();
    whole.hugepages();
    whole.release();
    whole.sriov();
    whole.networks();
    whole.nats();
    whole.dhcp();
    whole.forward();
    whole.devices();
    whole.pools();
    whole.derived_macs();
    let Whole { planner, steps, .. } = whole;
    if planner.refusals.is_empty() { Ok(HostPlan { steps }) } else { Err(planner.refusals) }
}

/// Plans to put things back, last first: what is so already is left out.
pub fn release(config: &Config, host: &HostState, undo: &[Undo]) -> HostPlan {
    let management = Management::of(config, host);
    let steps = backwards(undo).into_iter().filter(|undo| !host.is(undo)).map(|undo| {
        let step = Step::Release(undo.clone());
        Planned { management: management.touched_by(&step), step, blast: Vec::new() }
    });
    HostPlan { steps: steps.collect() }
}

struct Whole<'a> {
    planner: Planner<'a>,
    /// How things were before Throughway first changed them.
    originals: &'a [Undo],
    steps: Vec<Planned>,
}

impl<'a> Whole<'a> {
    fn step(&mut self, step: Step, blast: Vec<String>) {
        let management = self.planner.management.touched_by(&step);
        if !self.steps.iter().any(|planned| planned.step == step) {
            self.steps.push(Planned { step, blast, management });
        }
    }

    /// A way in that neither is there nor is made would guard nothing.
    fn way_in(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        let Some(name) = &config.management.interface else { return };
        if !host.links.contains_key(name) && !config.networks.contains_key(name) {
            let message = format!("There is no network interface `{name}`, and this file makes none");
            let help =
                "write the one that you come in by; without this key it is the one of the default route";
            self.planner.refuse(&["management", "interface"], message, Some(help));
        }
    }

    fn hugepages(&mut self) {
        let (config, host) = (self.planner.config, self.planner.host);
        for (size, to) in &config.host.hugepages {
            let Some(from) = host.hugepages.get(&size.0).copied() else {
                let path = ["host", "hugepages", &size.to_string()];
                let help = Some("1GiB pages need a processor that has pdpe1gb");
                self.planner.refuse(&path, format!("This host has no huge pages of {size}"), help);
                continue;
            };
            if from != *to {
                self.step(Step::Hugepages { size: *size, from, to: *to }, Vec::new());
            }
        }
    }

    /// The PFs that the file names, each with its section and name.
    fn pfs(&mut self) -> BTreeMap<PciAddress, (&'a str, &'a Sriov)> {
        let config = self.planner.config;
        let mut found = BTreeMap::new();
        for (name, sriov) in &config.sriov {
            let Some(device) = config.devices.get(name) else { continue };
            if let Some(function) = self.planner.find(name, device) {
                found.insert(function.address, (name.as_str(), sriov));
            }
        }
        found
    }

    /// What the file gives to guests by name, so that it can be made ready: whole functions, and VFs that nics name.
    fn lent(&mut self) -> Vec<Target> {
        let config = self.planner.config;
        let mut lent = Vec::new();
        for vm in config.vms.values() {
            for given in vm.pci.values() {
                let Some(device) = config.devices.get(&given.device) else { continue };
                if let Some(function) = self.planner.find(&given.device, device) {
                    lent.extend(
                        self.planner.scope(function.address, device.group).into_iter().map(Target::Function),
                    );
                }
            }
            for nic in vm.nics.values() {
                let (Some(name), Some(vf)) = (&nic.pf, nic.vf) else { continue };
                let Some(device) = config.devices.get(name) else { continue };
                if let Some(pf) = self.planner.find(name, device) {
                    lent.push(Target::Vf { pf: pf.address, vf });
                }
            }
        }
        lent
    }

    /// Where a target is now; none for a VF that is yet to be made.
    fn address(&self, target: &Target) -> Option<PciAddress> {
        match target {
            Target::Function(address) => Some(*address),
            Target::Vf { pf, vf } => {
                let sriov = self.planner.host.inventory.function(*pf)?.sriov.as_ref()?;
                sriov.vfs.get(usize::from(*vf)).copied()
            }
        }
    }
}
