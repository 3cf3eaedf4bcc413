//! Interrupt routes: the pins of the PIC and I/O APIC as on a PC, and one MSI message for each GSI above them.

use std::collections::{BTreeMap, BTreeSet};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;

use super::Error;
use crate::layout::IOAPIC_PINS;

/// KVM_MAX_IRQ_ROUTES on x86.
const MOST_GSIS: u32 = 4096;

/// A message signalled interrupt: a write of `data` to `address` (Intel SDM 3, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Where: 0xFEEx_xxxx, and destination bits 31:8 in the upper half where the guest uses extended destinations.
    pub address: u64,
    /// What: vector, delivery mode, trigger.
    pub data: u32,
}

impl MsiMessage {
    fn halves(self) -> (u32, u32) {
        let low = u32::try_from(self.address & 0xffff_ffff).unwrap_or(0);
        (low, u32::try_from(self.address >> 32).unwrap_or(0))
    }
}

impl From<MsiMessage> for kvm_msi {
    fn from(message: MsiMessage) -> Self {
        let (address_lo, address_hi) = message.halves();
        Self { address_lo, address_hi, data: message.data, ..Default::default() }
    }
}

/// The routes as KVM has them. KVM takes the whole table at each change.
pub(super) struct Routes {
    next: u32,
    free: BTreeSet<u32>,
    messages: BTreeMap<u32, MsiMessage>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { next: IOAPIC_PINS, free: BTreeSet::new(), messages: BTreeMap::new() }
    }

    pub(super) fn allocate(&mut self) -> Result<u32, Error> {
        if let Some(gsi) = self.free.pop_first() {
            return Ok(gsi);
        }
        if self.next >= MOST_GSIS {
            return Err(Error::Exhausted("interrupt route (GSI)"));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    pub(super) fn release(&mut self, vm: &VmFd, gsi: u32) -> Result<(), Error> {
        self.set(vm, gsi, None)?;
        self.free.insert(gsi);
        Ok(())
    }

    pub(super) fn set(&mut self, vm: &VmFd, gsi: u32, message: Option<MsiMessage>) -> Result<(), Error> {
        let before = match message {
            Some(message) => self.messages.insert(gsi, message),
            None => self.messages.remove(&gsi),
        };
        if before == message {
            return Ok(());
        }
        let result = self.commit(vm, gsi);
        if result.is_err() {
            match before {
                Some(message) => self.messages.insert(gsi, message),
                None => self.messages.remove(&gsi),
            };
        }
        result
    }

    fn commit(&self, vm: &VmFd, gsi: u32) -> Result<(), Error> {
        let table = KvmIrqRouting::from_entries(&self.entries())
            .map_err(|_| Error::Exhausted("entry in the interrupt routing table"))?;
        vm.set_gsi_routing(&table).map_err(Error::call(format!("Routing GSI {gsi}")))
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pins = (0..IOAPIC_PINS).flat_map(|gsi| {
            let pic = match gsi {
                // The cascade has no line of its own.
                2 | 16.. => None,
                0..8 => Some(pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
                8.. => Some(pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            };
            // The timer's line is wired to input 2 (MADT says so by an interrupt source override).
            let ioapic = match gsi {
                0 => Some(pin(gsi, KVM_IRQCHIP_IOAPIC, 2)),
                2 => None,
                _ => Some(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
            };
            pic.into_iter().chain(ioapic)
        });
        pins.chain(self.messages.iter().map(|(gsi, message)| msi(*gsi, *message))).collect()
    }
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    }
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = message.halves();
    let msi = kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_wired_as_on_a_pc() {
        let entries = Routes::new().entries();
        let of = |gsi| entries.iter().filter(|entry| entry.gsi == gsi).count();
        assert_eq!((of(0), of(2), of(4), of(9), of(16), of(23)), (2, 0, 2, 2, 1, 1));
        assert_eq!(entries.iter().map(|entry| entry.gsi).max(), Some(23));
    }

    #[test]
    fn gsis_start_above_the_pins_and_run_out() {
        let mut routes = Routes::new();
        assert_eq!(routes.allocate().unwrap(), 24);
        routes.next = MOST_GSIS;
        assert!(matches!(routes.allocate(), Err(Error::Exhausted(_))));
    }

    #[test]
    fn a_message_keeps_its_upper_half() {
        let kvm: kvm_msi = MsiMessage { address: 0x1_fee0_1000, data: 0x41 }.into();
        assert_eq!((kvm.address_lo, kvm.address_hi, kvm.data), (0xfee0_1000, 1, 0x41));
    }
}
