//! What sits behind one root port, and how the port reaches the guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio::{IoAddressSpace, PciFunction};

use super::Error;
use crate::firmware::BootKind;
use crate::layout;
use crate::memory::GuestRam;
use crate::passthrough::{DmaMap, PassthroughDevice, Placement};
use crate::pci::{Devfn, PciDevice, PortInterrupt};
use crate::spec::{NewDevice, Slot, VirtioSlot};
use crate::virtio::{Class, VirtioFunction};
use crate::vm::{MsiMessage, Vm};

/// Owners of pins: those of virtio devices count up from 1.
const FIRST_OWNER: u64 = 1 << 63;
/// A processor that is in the middle of an access to a function holds it for that long at most.
const ACCESS: Duration = Duration::from_secs(2);

/// A root port's interrupts, as KVM delivers them.
pub(super) struct Wire {
    vm: Arc<Vm>,
    device: u8,
}

impl Wire {
    /// For the root port at `device` on bus 0.
    pub(super) fn new(vm: &Arc<Vm>, device: u8) -> Self {
        Self { vm: Arc::clone(vm), device }
    }
}

impl PortInterrupt for Wire {
    fn message(&self, message: MsiMessage) {
        if let Err(error) = self.vm.signal_msi(message) {
            tracing::debug!("The interrupt of root port {}: {error}", self.device);
        }
    }

    fn pin(&self, asserted: bool) {
        let gsi = layout::intx_gsi(self.device, 0);
        if let Err(error) = self.vm.set_shared_line(gsi, FIRST_OWNER + u64::from(self.device), asserted) {
            tracing::error!("The interrupt pin of root port {}: {error}", self.device);
        }
    }
}

/// The functions behind one root port.
pub(super) struct Card {
    /// `wan` for functions of the host, `nic lan`, `disk root` for virtio devices.
    pub(super) name: String,
    /// By their numbers, from 0 on.
    pub(super) functions: Vec<Arc<dyn PciDevice>>,
    /// The same, where it is one of ours; until it has its seat.
    pub(super) virtio: Option<Arc<VirtioFunction>>,
    /// What it stands on ends with it, and is not had a second time: it stays to the guest's end.
    pub(super) stays: bool,
    /// How firmware boots from it.
    pub(super) kind: BootKind,
    /// Where the functions' DMA goes, each once.
    pub(super) spaces: Vec<Arc<dyn IoAddressSpace>>,
}

impl Card {
    /// Makes it for the root port at `port`. Functions of the host are reset; their DMA must be mapped already.
    pub(super) fn new(
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
        port: Devfn,
        device: NewDevice,
    ) -> Result<Self, Error> {
        match device {
            NewDevice::Functions(slot) => Self::of_functions(vm, port, slot),
            NewDevice::Virtio(slot) => Self::of_virtio(vm, ram, port, slot),
        }
    }

    fn of_virtio(vm: &Arc<Vm>, ram: &Arc<GuestRam>, port: Devfn, slot: VirtioSlot) -> Result<Self, Error> {
        let gsi = layout::intx_gsi(port.device(), 0);
        let stays = matches!(slot.device.class(), Class::Console | Class::Socket);
        let kind = match slot.device.class() {
            Class::Block => BootKind::VirtioDisk,
            Class::Scsi => BootKind::CdDrive,
            _ => BootKind::Other,
        };
        let device = Arc::new(VirtioFunction::new(vm, ram, &slot.name, slot.device, gsi)?);
        let functions: Vec<Arc<dyn PciDevice>> = vec![Arc::clone(&device) as _];
        Ok(Self { name: slot.name, functions, virtio: Some(device), stays, kind, spaces: Vec::new() })
    }

    fn of_functions(vm: &Arc<Vm>, port: Devfn, slot: Slot) -> Result<Self, Error> {
        let placement = Placement {
            intx_gsi: layout::intx_gsi(port.device(), 0),
            multifunction: slot.functions.len() > 1,
            rom: slot.rom,
            peer_to_peer: false,
        };
        let spaces = spaces(&slot.functions);
        let mut functions = Vec::<Arc<dyn PciDevice>>::with_capacity(slot.functions.len());
        for function in slot.functions {
            function.reset().or_else(|error| reset_not_possible(&*function, error))?;
            functions.push(Arc::new(PassthroughDevice::new(vm, function, placement)?));
        }
        Ok(Self { name: slot.name, functions, virtio: None, stays: false, kind: BootKind::Other, spaces })
    }

    /// The name in the guest's file: `disk root` is `root` there.
    pub(super) fn short_name(&self) -> &str {
        self.name.split_once(' ').map_or(&*self.name, |(_, name)| name)
    }

    /// Quiet, out of the hierarchy already, and closed when this returns. `unused` are the maps of guest RAM that no other
    /// function needs: they go while the functions still hold their address space together.
    pub(super) fn let_go(self, ram: &GuestRam, unused: Vec<DmaMap>) {
        for function in &self.functions {
            if let Err(why) = function.reset() {
                tracing::warn!("{}: resetting it on its way out: {why}", function.label());
            }
        }
        for map in unused {
            map.end(ram);
        }
        drop(self.virtio);
        for function in self.functions {
            let until = Instant::now() + ACCESS;
            while Arc::strong_count(&function) > 1 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The address spaces of some functions, each once.
pub(super) fn spaces<'a>(
    functions: impl IntoIterator<Item = &'a Arc<dyn PciFunction>>,
) -> Vec<Arc<dyn IoAddressSpace>> {
    let mut spaces: Vec<Arc<dyn IoAddressSpace>> = Vec::new();
    for function in functions {
        let space = function.address_space();
        if !spaces.iter().any(|known| same_space(known, &space)) {
            spaces.push(space);
        }
    }
    spaces
}

/// Whether two are one.
pub(super) fn same_space(one: &Arc<dyn IoAddressSpace>, other: &Arc<dyn IoAddressSpace>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

/// A function that cannot be reset alone may still be given away; one that fails to reset may not.
fn reset_not_possible(function: &dyn PciFunction, error: vfio::Error) -> Result<(), vfio::Error> {
    if function.can_reset() {
        return Err(error);
    }
    tracing::warn!("{}: it goes to the guest without a reset: {error}", function.label());
    Ok(())
}
