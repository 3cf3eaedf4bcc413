//! Which of the three kinds of interrupt a function uses now. They exclude one another.

use std::sync::Arc;

use vfio::{IrqKind, PciFunction};

use super::config::ConfigSpace;
use super::intx::Intx;
use super::msi::{self, Msi, MsiLayout};
use super::msix::{Msix, MsixLayout};
use crate::vm::Vm;

/// MSI-X Message Control: MSI-X is on.
pub(super) const MSIX_ENABLE: u16 = 1 << 15;
/// MSI-X Message Control: all vectors are masked.
pub(super) const MSIX_FUNCTION_MASK: u16 = 1 << 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    Intx,
    Msi,
    Msix,
}

/// All interrupts of one function.
pub(super) struct Interrupts {
    vm: Arc<Vm>,
    function: Arc<dyn PciFunction>,
    intx_gsi: u32,
    has_pin: bool,
    active: Kind,
    intx: Option<Intx>,
    msi: Option<Msi>,
    msix: Option<Msix>,
}

impl Interrupts {
    pub(super) fn new(
        vm: &Arc<Vm>,
        function: &Arc<dyn PciFunction>,
        intx_gsi: u32,
        msi: Option<MsiLayout>,
        msix: Option<MsixLayout>,
    ) -> Self {
        Self {
            vm: Arc::clone(vm),
            function: Arc::clone(function),
            intx_gsi,
            has_pin: function.irq_info(IrqKind::Intx).count > 0,
            active: Kind::None,
            intx: None,
            msi: msi.map(|layout| Msi::new(vm, function, layout)),
            msix: msix.map(|layout| Msix::new(vm, function, layout)),
        }
    }

    pub(super) fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref()
    }

    pub(super) fn msix(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut()
    }

    /// Brings the function's interrupts to what config space says now.
    pub(super) fn update(&mut self, config: &ConfigSpace) {
        let wanted = self.wanted(config);
        if wanted != self.active {
            self.leave();
            self.enter(wanted, config);
            return;
        }
        match (wanted, &mut self.msi, &mut self.msix) {
            (Kind::Msi, Some(msi), _) => msi.update(config),
            (Kind::Msix, _, Some(msix)) => {
                let control = config.u16(msix.layout().capability + 2);
                msix.mask_function(control & MSIX_FUNCTION_MASK != 0);
            }
            _ => {}
        }
    }

    fn wanted(&self, config: &ConfigSpace) -> Kind {
        let msix = self.msix.as_ref().map_or(0, |msix| config.u16(msix.layout().capability + 2));
        let msi = self.msi.as_ref().map_or(0, |msi| config.u16(msi.layout().control()));
        if msix & MSIX_ENABLE != 0 {
            Kind::Msix
        } else if msi & msi::ENABLE != 0 {
            Kind::Msi
        } else if self.has_pin && config.pin_may_fire() {
            Kind::Intx
        } else {
            Kind::None
        }
    }

    fn enter(&mut self, kind: Kind, config: &ConfigSpace) {
        self.active = kind;
        match (kind, &mut self.msi, &mut self.msix) {
            (Kind::Intx, ..) => match Intx::new(&self.vm, &self.function, self.intx_gsi) {
                Ok(intx) => self.intx = Some(intx),
                Err(error) => tracing::error!("Enabling INTx: {error}"),
            },
            (Kind::Msi, Some(msi), _) => msi.update(config),
            (Kind::Msix, _, Some(msix)) => {
                let control = config.u16(msix.layout().capability + 2);
                msix.enable(control & MSIX_FUNCTION_MASK != 0);
            }
            _ => {}
        }
        tracing::debug!("{}: interrupts by {:?}", self.function.label(), self.active);
    }

    /// Ends whatever is on.
    pub(super) fn leave(&mut self) {
        self.intx = None;
        if let Some(msi) = &mut self.msi {
            msi.disable();
        }
        if let Some(msix) = &mut self.msix {
            msix.disable();
        }
        self.active = Kind::None;
    }

    /// Ends whatever is on and forgets the vectors' table, as a reset does.
    pub(super) fn reset(&mut self) {
        self.leave();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
    }
}
