//! MSI: up to 32 messages that differ in their low data bits (PCIe 6.0, 7.7.1).
//!
//! The capability is emulated in the shadow of config space; here is what it means.

use std::sync::Arc;

use vfio::{IrqKind, PciFunction};

use super::config::ConfigSpace;
use crate::vm::vector::Vector;
use crate::vm::{self, MsiMessage, Vm};

/// Message Control: MSI is on.
pub(super) const ENABLE: u16 = 1;

/// Where the registers of the capability lie, and what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiLayout {
    /// Offset of the capability.
    pub(super) capability: u16,
    /// It has an upper address register.
    pub(super) wide: bool,
    /// It has mask and pending bits.
    pub(super) maskable: bool,
    /// Log2 of the most messages, 0 to 5.
    pub(super) most_log2: u8,
}

impl MsiLayout {
    /// Offset of Message Control.
    pub(super) fn control(&self) -> u16 {
        self.capability + 2
    }

    /// Offset of Message Data.
    pub(super) fn data(&self) -> u16 {
        self.capability + if self.wide { 12 } else { 8 }
    }

    /// Offset of the mask bits, where there are any.
    pub(super) fn mask(&self) -> Option<u16> {
        self.maskable.then(|| self.data() + 4)
    }

    /// Offset of the pending bits, where there are any.
    pub(super) fn pending(&self) -> Option<u16> {
        self.maskable.then(|| self.data() + 8)
    }

    /// Length of the capability in bytes.
    pub(super) fn size(&self) -> u16 {
        let data = if self.wide { 14 } else { 10 };
        if self.maskable { data + 10 } else { data }
    }
}

/// The MSI side of one function.
pub(super) struct Msi {
    vm: Arc<Vm>,
    function: Arc<dyn PciFunction>,
    layout: MsiLayout,
    vectors: Vec<Vector>,
    /// Messages in use; 0 while it is off.
    active: usize,
}

impl Msi {
    pub(super) fn new(vm: &Arc<Vm>, function: &Arc<dyn PciFunction>, layout: MsiLayout) -> Self {
        Self { vm: Arc::clone(vm), function: Arc::clone(function), layout, vectors: Vec::new(), active: 0 }
    }

    pub(super) fn layout(&self) -> &MsiLayout {
        &self.layout
    }

    /// Turns MSI on as the capability says, or follows it where it is on already.
    pub(super) fn update(&mut self, config: &ConfigSpace) {
        let wanted = self.wanted(config);
        if wanted != self.active {
            self.disable();
        }
        if let Err(error) = self.route(config, wanted) {
            tracing::warn!("{}: MSI: {error}", self.function.label());
        }
        if self.active == wanted {
            return;
        }
        let triggers: Vec<_> =
            self.vectors.iter().take(wanted).map(|vector| Some(vector.trigger())).collect();
        if let Err(error) = self.function.set_irqs(IrqKind::Msi, 0, &triggers) {
            tracing::error!("Enabling {wanted} MSI messages: {error}");
        }
        self.active = wanted;
    }

    /// Messages that the guest has enabled: no more than the function offers.
    fn wanted(&self, config: &ConfigSpace) -> usize {
        let multiple = config.u16(self.layout.control()) >> 4 & 7;
        1 << u32::from(multiple).min(self.layout.most_log2.into())
    }

    fn route(&mut self, config: &ConfigSpace, count: usize) -> Result<(), vm::Error> {
        while self.vectors.len() < count {
            self.vectors.push(Vector::new(&self.vm)?);
        }
        let at = self.layout.capability;
        let high = if self.layout.wide { config.u32(at + 8) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(config.u32(at + 4));
        let masked = self.layout.mask().map_or(0, |mask| config.u32(mask));
        // The function changes as many low bits of the data as it needs for the message's number (7.7.1.4).
        let data = u32::from(config.u16(self.layout.data())) & !u32::try_from(count - 1).unwrap_or(0);
        for (vector, number) in self.vectors.iter_mut().take(count).zip(0_u32..) {
            if masked >> number & 1 == 1 {
                vector.hold()?;
            } else {
                vector.deliver(MsiMessage { address, data: data | number })?;
            }
        }
        Ok(())
    }

    /// The pending bits.
    pub(super) fn pending(&self) -> u32 {
        let active = self.vectors.iter().take(self.active).zip(0_u32..);
        active.filter(|(vector, _)| vector.is_pending()).fold(0, |bits, (_, number)| bits | 1 << number)
    }

    /// Turns MSI off in the function.
    pub(super) fn disable(&mut self) {
        if self.active == 0 {
            return;
        }
        self.active = 0;
        if let Err(error) = self.function.disable_irqs(IrqKind::Msi) {
            tracing::debug!("Disabling MSI: {error}");
        }
        for vector in &mut self.vectors {
            if let Err(error) = vector.hold() {
                tracing::warn!("{}: {error}", self.function.label());
            }
            vector.forget();
        }
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        self.disable();
    }
}
