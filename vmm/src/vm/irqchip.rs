//! The in-kernel interrupt controllers and timer, back to power-on.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::Error;

/// The state of the shared controllers after power-on. The local APICs belong to their vCPUs.
pub struct IrqchipState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl IrqchipState {
    pub(super) fn capture(vm: &VmFd) -> Result<Self, Error> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].into_iter().map(chip);
        let chips =
            chips.collect::<Result<_, _>>().map_err(Error::call("Reading the interrupt controllers"))?;
        let pit = vm.get_pit2().map_err(Error::call("Reading the interval timer"))?;
        Ok(Self { chips, pit })
    }

    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(Error::call("Resetting the interrupt controllers"))?;
        }
        vm.set_pit2(&self.pit).map_err(Error::call("Resetting the interval timer"))
    }
}
