//! What all parts of a machine stand on.

use std::sync::Arc;

use super::Error;
use crate::VmSpec;
use crate::bus::Bus;
use crate::mailbox::Mailbox;
use crate::memory::{GuestRam, KvmSlots};
use crate::vcpu::Buses;
use crate::vm::Vm;

/// The VM with its memory and interrupt controllers, the buses, and the mailbox.
#[derive(Clone)]
pub(super) struct Board {
    pub(super) vm: Arc<Vm>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) buses: Buses,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Board {
    /// Makes all of it on a VM that has nothing yet.
    pub(super) fn new(vm: Arc<Vm>, spec: &VmSpec) -> Result<Self, Error> {
        let ram = Arc::new(GuestRam::with_policy(&spec.memory, &spec.memory_policy)?);
        ram.listen(Arc::new(KvmSlots::new(Arc::clone(&vm))))?;
        vm.create_interrupt_controllers()?;
        let buses = Buses { pio: Arc::new(Bus::new()), mmio: Arc::new(Bus::new()) };
        let mailbox = Arc::new(Mailbox::new().map_err(Error::io("Making the machine's mailbox"))?);
        Ok(Self { vm, ram, buses, mailbox })
    }
}
