//! The legacy pin: level-triggered, carried by a resampling irqfd.
//!
//! The device asserts its pin; VFIO masks it and signals `trigger`; KVM asserts the GSI. When the guest ends the
//! interrupt KVM lowers the GSI and signals `resample`; VFIO unmasks the pin, which fires again if it is still asserted
//! (`KVM_IRQFD_FLAG_RESAMPLE`; VFIO's automasked INTx). No exit to us in all that.

use std::sync::Arc;

use vfio::{IrqKind, PciFunction};

use super::Error;
use crate::vm::Vm;
use crate::vm::vector::Signal;

/// A pin that is wired.
pub(super) struct Intx {
    vm: Arc<Vm>,
    function: Arc<dyn PciFunction>,
    gsi: u32,
    trigger: Signal,
    resample: Signal,
}

impl Intx {
    /// Wires the function's pin to `gsi`.
    pub(super) fn new(vm: &Arc<Vm>, function: &Arc<dyn PciFunction>, gsi: u32) -> Result<Self, Error> {
        let label = function.label();
        let signal = || Signal::new().map_err(Error::host(label, "Making an eventfd for INTx"));
        let (trigger, resample) = (signal()?, signal()?);
        let failed = |source| Error::Vm { function: label.to_owned(), source };
        vm.attach_level_irqfd(trigger.eventfd(), resample.eventfd(), gsi).map_err(failed)?;
        // From here on `drop` undoes it all.
        let wired = Self { vm: Arc::clone(vm), function: Arc::clone(function), gsi, trigger, resample };
        function.set_irqs(IrqKind::Intx, 0, &[Some(wired.trigger.fd())])?;
        // After the trigger: the kernel takes an unmask eventfd only for an INTx that is on. One that fires in between
        // is not lost, as the kernel looks whether the eventfd is signalled when it takes it.
        function.set_intx_unmask(Some(wired.resample.fd()))?;
        Ok(wired)
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        let quiet = self.function.set_intx_unmask(None).and(self.function.disable_irqs(IrqKind::Intx));
        if let Err(error) = quiet {
            tracing::debug!("Unwiring INTx: {error}");
        }
        // Lowers the line as well.
        if let Err(error) = self.vm.detach_irqfd(self.trigger.eventfd(), self.gsi) {
            tracing::warn!("{}: {error}", self.function.label());
        }
    }
}
