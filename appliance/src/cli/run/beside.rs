//! What is done beside each other at a guest's start: its process makes the machine while the host is prepared.

use std::path::Path;
use std::thread;
use std::time::Duration;

use vmm::VmSpec;

use crate::apply::{Applied, Ledger};
use crate::config::Vm;
use crate::guest;
use crate::host;

/// Bytes of stack for a thread that waits for the disk.
const STACK: usize = 256 << 10;
/// How long a guest's start is left alone. Not as long as until the machine lets go of the code that only the start needed, which
/// would be mapped again.
const LATER: Duration = Duration::from_millis(5);

/// Has the claim of a guest that has links alone survive a power cut, once the guest has had a little time for its own start.
pub(super) fn settle_later(ledger: &Ledger, name: &str) {
    let (ledger, name) = (ledger.clone(), name.to_owned());
    let settle = move || {
        thread::sleep(LATER);
        let settled = ledger.lock().and_then(|_lock| ledger.settle(&name));
        if let Err(error) = settled {
            tracing::warn!("{error:#}");
        }
    };
    let begun = thread::Builder::new().name("claim".to_owned()).stack_size(STACK).spawn(settle);
    if let Err(error) = begun {
        tracing::warn!("Starting a thread that has the guest's claim survive a power cut: {error}");
    }
}

/// What the machine is. Memory is near the functions that the guest is given.
pub(super) fn spec(name: &str, vm: &Vm, applied: &Applied) -> VmSpec {
    let affinity = host::affinity(Path::new("/sys"), &vm.cpus);
    let functions = applied.slots.iter().flat_map(|(_, functions)| functions.iter().copied());
    let policy = host::memory_policy(Path::new("/sys"), name, vm, functions);
    guest::spec(name, vm, affinity, policy)
}

/// It has none of the host's functions: what it is given says nothing of what the machine is.
pub(super) fn on_networks_alone(vm: &Vm) -> bool {
    vm.pci.is_empty() && vm.nics.values().all(|nic| nic.network.is_some())
}
