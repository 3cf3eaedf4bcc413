//! The machine and the host's part of it, made beside each other.

use std::path::Path;
use std::thread;

use anyhow::Context;
use vmm::{Begun, Machine};

use super::super::failure::Failure;
use crate::apply::Applied;
use crate::config::Vm;
use crate::guest;
use crate::host;

/// A machine, or why there is none.
pub(super) type Made = Result<Machine, vmm::machine::Error>;

/// Has the host prepared, and the machine made meanwhile where that does not depend on what it is given. What preparing says
/// comes first; a machine that cannot be made is told of with the machine, so that what was prepared is given back.
pub(super) fn beside(
    begun: Result<Begun, vmm::machine::Error>,
    name: &str,
    vm: &Vm,
    prepare: impl FnOnce() -> Result<Applied, Failure>,
) -> Result<(Made, Applied), Failure> {
    if !on_networks_alone(vm) {
        let applied = prepare()?;
        return Ok((machine(begun, name, vm, &applied), applied));
    }
    thread::scope(|scope| {
        let making = thread::Builder::new()
            .name("machine".to_owned())
            .spawn_scoped(scope, || machine(begun, name, vm, &Applied::default()));
        let making = making.context("Starting a thread that makes the machine").map_err(Failure::Fault)?;
        let applied = prepare();
        let made = making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((made, applied?))
    })
}

/// Memory is near the functions that the guest is given.
pub(super) fn machine(
    begun: Result<Begun, vmm::machine::Error>,
    name: &str,
    vm: &Vm,
    applied: &Applied,
) -> Made {
    let affinity = host::affinity(Path::new("/sys"), &vm.cpus);
    let functions = applied.slots.iter().flat_map(|(_, functions)| functions.iter().copied());
    let policy = host::memory_policy(Path::new("/sys"), name, vm, functions);
    begun.and_then(|begun| Machine::new(guest::spec(name, vm, affinity, policy), begun))
}

/// It has none of the host's functions.
pub(super) fn on_networks_alone(vm: &Vm) -> bool {
    vm.pci.is_empty() && vm.nics.values().all(|nic| nic.network.is_some())
}
