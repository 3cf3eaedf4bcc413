//! The machine and the host's part of it, made beside each other.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use vmm::{Begun, Machine, VmSpec};

use super::super::failure::Failure;
use crate::apply::{Applied, Ledger};
use crate::config::Vm;
use crate::guest;
use crate::host;

/// Bytes of stack for making it.
const STACK: usize = 256 << 10;
/// How long a guest's start is left alone. Not as long as until the machine lets go of the code that only the start needed, which
/// would be mapped again.
const LATER: Duration = Duration::from_millis(5);

/// A machine, or why there is none.
pub(super) type Made = Result<Machine, vmm::machine::Error>;

/// Has the host prepared, and the machine made meanwhile where that does not depend on what it is given. What preparing says
/// comes first; a machine that cannot be made is told of with the machine, so that what was prepared is given back.
pub(super) fn beside(
    begun: Result<Begun, vmm::machine::Error>,
    name: &str,
    vm: &Vm,
    ledger: &Ledger,
    prepare: impl FnOnce() -> Result<Applied, Failure>,
) -> Result<(Made, Applied), Failure> {
    if !on_networks_alone(vm) {
        let applied = prepare()?;
        return Ok((machine(begun, name, vm, &applied), applied));
    }
    let (spec, ledger, name) = (spec(name, vm, &Applied::default()), ledger.clone(), name.to_owned());
    let (give, made) = mpsc::sync_channel(1);
    let (prepared, is_prepared) = mpsc::sync_channel(1);
    let making = move || {
        let _ = give.send(begun.and_then(|begun| Machine::new(spec, begun)));
        // Here, as another thread would cost the guest's start some more.
        if is_prepared.recv().is_ok() {
            settle(&ledger, &name);
        }
    };
    thread::Builder::new()
        .name("machine".to_owned())
        .stack_size(STACK)
        .spawn(making)
        .context("Starting a thread that makes the machine")
        .map_err(Failure::Fault)?;
    let applied = prepare();
    let made = made
        .recv()
        .map_err(|_| Failure::Fault(anyhow::anyhow!("The thread that makes the machine is gone")))?;
    let applied = applied?;
    let _ = prepared.send(());
    Ok((made, applied))
}

/// Has the claim survive a power cut, once the guest has had a little time for its own start.
fn settle(ledger: &Ledger, name: &str) {
    thread::sleep(LATER);
    let settled = ledger.lock().and_then(|_lock| ledger.settle(name));
    if let Err(error) = settled {
        tracing::warn!("{error:#}");
    }
}

/// Memory is near the functions that the guest is given.
pub(super) fn machine(
    begun: Result<Begun, vmm::machine::Error>,
    name: &str,
    vm: &Vm,
    applied: &Applied,
) -> Made {
    begun.and_then(|begun| Machine::new(spec(name, vm, applied), begun))
}

fn spec(name: &str, vm: &Vm, applied: &Applied) -> VmSpec {
    let affinity = host::affinity(Path::new("/sys"), &vm.cpus);
    let functions = applied.slots.iter().flat_map(|(_, functions)| functions.iter().copied());
    let policy = host::memory_policy(Path::new("/sys"), name, vm, functions);
    guest::spec(name, vm, affinity, policy)
}

/// It has none of the host's functions.
pub(super) fn on_networks_alone(vm: &Vm) -> bool {
    vm.pci.is_empty() && vm.nics.values().all(|nic| nic.network.is_some())
}
