//! The guest's PCI hierarchy: chipset functions, and each slot's functions behind a root port of their own.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use vfio::IoAddressSpace;

use super::Error;
use super::events::{Events, Source};
use crate::firmware::{BootDevice, BootKind, Tables};
use crate::legacy::PowerManagement;
use crate::memory::GuestRam;
use crate::passthrough::{PassthroughDevice, Placement, map_guest_ram};
use crate::pci::host_bridge::PowerOn;
use crate::pci::{self, Devfn, PciDevice, Place, Request, Root, RootPort, Space, Watchdog, host_bridge};
use crate::spec::{CpuSpec, Slot, VirtioSlot};
use crate::vcpu::Buses;
use crate::virtio::{Class, VirtioFunction};
use crate::vm::Vm;
use crate::{Action, acpi, control, layout};

/// Root ports take the devices from here on, one each, up to the chipset's at the end.
const FIRST_PORT: u8 = 1;
/// The last one.
const LAST_PORT: u8 = 30;
/// LPC bridge.
const LPC: u8 = 31;
/// The watchdog is a function of the same device.
const WATCHDOG_FUNCTION: u8 = 4;

/// A descriptor that the machine's loop watches, and whose it is.
struct Watch {
    device: Arc<dyn PciDevice>,
    token: u64,
}

/// All PCI functions of the guest.
pub(super) struct Hierarchy {
    root: Arc<Root>,
    /// Their places are what the loop knows them by; that of a device that was taken out stays empty.
    watches: Vec<Option<Watch>>,
    virtio: Vec<Arc<VirtioFunction>>,
    next_port: u8,
    space: Space,
    /// What may be booted from, by its name in the guest's file.
    named: Vec<(String, BootDevice)>,
}

impl Hierarchy {
    /// Builds it, with guest RAM mapped for the functions' DMA. `pm` is decoded where the LPC bridge says. `address_bits` is
    /// the width of guest physical addresses.
    pub(super) fn build(
        vm: &Arc<Vm>,
        ram: &GuestRam,
        buses: &Buses,
        (pm, power_on): (&Arc<PowerManagement>, PowerOn),
        slots: Vec<Slot>,
        address_bits: u8,
    ) -> Result<Self, Error> {
        let root = Arc::new(Root::new(Arc::clone(&buses.mmio), Arc::clone(&buses.pio)));
        root.attach()?;
        let ram_end = ram.regions().map(|region| region.guest_address + region.size).max().unwrap_or(0);
        if ram_end > layout::HIGH_RAM_START {
            root.reserve(layout::HIGH_RAM_START..ram_end);
        }
        root.reserve(1_u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX)..u64::MAX);
        root.add(Place::Root(Devfn(0)), Arc::new(host_bridge::host_bridge(root.ecam(), power_on)))?;
        if let Some(devfn) = Devfn::new(LPC, 0) {
            root.add(Place::Root(devfn), Arc::new(host_bridge::lpc_bridge(Arc::clone(pm) as _, power_on)))?;
        }
        let spaces = spaces(&slots);
        map_guest_ram(ram, &spaces)?;
        let space = Space { ram_end, phys_bits: address_bits, iova: common_ranges(&spaces) };
        let mut hierarchy = Self {
            root,
            watches: Vec::new(),
            virtio: Vec::new(),
            next_port: FIRST_PORT,
            space,
            named: Vec::new(),
        };
        for slot in slots {
            hierarchy.add_slot(vm, slot)?;
        }
        Ok(hierarchy)
    }

    /// The next root port, with something behind it.
    fn add_port(&mut self) -> Result<Devfn, Error> {
        let device = self.next_port;
        let devfn = Devfn::new(device, 0).filter(|_| device <= LAST_PORT).ok_or(Error::TooManySlots)?;
        self.root.add(Place::Root(devfn), Arc::new(RootPort::new(device.into(), true)?))?;
        self.next_port = device.saturating_add(1);
        Ok(devfn)
    }

    /// Puts a virtio device behind a root port of its own.
    pub(super) fn add_virtio(
        &mut self,
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
        slot: VirtioSlot,
    ) -> Result<(), Error> {
        let port = self.add_port()?;
        let place = Place::Behind { port, function: 0 };
        let gsi = layout::intx_gsi(port.device(), 0);
        let kind = match slot.device.class() {
            Class::Block => BootKind::VirtioDisk,
            Class::Scsi => BootKind::CdDrive,
            _ => BootKind::Other,
        };
        // "disk root" is `root` in the file.
        let name = slot.name.split_once(' ').map_or(&*slot.name, |(_, name)| name).to_owned();
        self.named.push((name, BootDevice { port: port.device(), function: 0, kind }));
        let device = Arc::new(VirtioFunction::new(vm, ram, &slot.name, slot.device, gsi)?);
        self.virtio.push(Arc::clone(&device));
        Ok(self.root.add(place, device)?)
    }

    /// Puts the watchdog beside the LPC bridge, where no port is.
    pub(super) fn add_watchdog(&mut self) -> Result<(), Error> {
        let place = Place::Root(Devfn::new(LPC, WATCHDOG_FUNCTION).ok_or(Error::TooManySlots)?);
        let device: Arc<dyn PciDevice> = Arc::new(Watchdog::new()?);
        self.root.add(place, Arc::clone(&device))?;
        self.watches.push(Some(Watch { device, token: 0 }));
        Ok(())
    }

    /// What each virtio device says of itself.
    pub(super) fn each_report(&self, log: impl Fn(&str)) {
        for device in &self.virtio {
            if let Some(report) = device.report() {
                log(&format!("{}: {report}", device.label()));
            }
        }
    }

    /// All that sits behind root ports, as the control socket shows it.
    pub(super) fn describe(&self) -> Vec<control::Device> {
        let behind =
            self.root.devices().into_iter().filter(|(place, _)| matches!(place, Place::Behind { .. }));
        let describe = |(_, device): (Place, Arc<dyn PciDevice>)| {
            let virtio = self.virtio.iter().find(|virtio| virtio.label() == device.label());
            virtio.map_or_else(
                || control::Device {
                    name: device.label().to_owned(),
                    passthrough: true,
                    ..Default::default()
                },
                |virtio| virtio.describe(),
            )
        };
        behind.map(describe).collect()
    }

    /// Plugs the cable of `nic` in or pulls it; where there is none of that name, which there are.
    pub(super) fn set_link(&self, nic: &str, up: bool) -> Result<(), Vec<String>> {
        let label = format!("nic {nic}");
        if self.virtio.iter().any(|virtio| virtio.label() == label && virtio.set_link(up)) {
            return Ok(());
        }
        let nics = self.virtio.iter().filter_map(|virtio| virtio.label().strip_prefix("nic "));
        Err(nics.map(str::to_owned).collect())
    }

    /// Has nothing of ours on the host touch what is the guest's; the vCPUs must have stopped.
    pub(super) fn rest(&self, until: Instant) -> Result<(), String> {
        self.virtio.iter().for_each(|virtio| virtio.ask_to_rest());
        self.virtio.iter().try_for_each(|virtio| virtio.rest(until))
    }

    /// After a rest, also one that failed.
    pub(super) fn go_on(&self) {
        self.virtio.iter().for_each(|virtio| virtio.go_on());
    }

    /// What may be booted from.
    pub(super) fn boot_names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    fn add_slot(&mut self, vm: &Arc<Vm>, slot: Slot) -> Result<(), Error> {
        let devfn = self.add_port()?;
        self.named.push((slot.name, BootDevice { port: devfn.device(), function: 0, kind: BootKind::Other }));
        let multifunction = slot.functions.len() > 1;
        for (function, number) in slot.functions.into_iter().zip(0..) {
            function.reset().or_else(|error| reset_not_possible(&*function, error))?;
            let placement = Placement {
                intx_gsi: layout::intx_gsi(devfn.device(), 0),
                multifunction,
                rom: false,
                peer_to_peer: false,
            };
            let device: Arc<dyn PciDevice> = Arc::new(PassthroughDevice::new(vm, function, placement)?);
            self.root.add(Place::Behind { port: devfn, function: number }, Arc::clone(&device))?;
            for (_, token) in device.watched() {
                self.watches.push(Some(Watch { device: Arc::clone(&device), token }));
            }
        }
        Ok(())
    }

    /// Places all BARs as firmware would, and says where they may be.
    pub(super) fn program(&self) -> Result<acpi::Windows, Error> {
        let plan = pci::plan(&Request::of(&self.root, self.space.clone()))?;
        plan.program(&self.root);
        Ok(acpi::Windows {
            mmio32: vec![plan.windows.mmio32],
            mmio64: plan.windows.mmio64.into_iter().collect(),
        })
    }

    /// For firmware, which places all BARs itself: the tables of the machine as it has set it up by then.
    pub(super) fn tables(&self, cpus: CpuSpec, panic_port: bool) -> Tables {
        let root = Arc::downgrade(&self.root);
        let mmio64 = Space { iova: None, ..self.space.clone() }.mmio64();
        Box::new(move || {
            let decoding = root.upgrade().map_or_else(acpi::Decoding::default, |root| decoding(&root));
            // Firmware's window lies in one of these, below ECAM or above it.
            let ecam_end = decoding.ecam.saturating_add(layout::ECAM_SIZE);
            let mmio32 = [layout::MMIO32_START..decoding.ecam, ecam_end..layout::IOAPIC];
            let mmio32 = mmio32.into_iter().filter(|window| window.start < window.end).collect();
            acpi::loadable(&acpi::AcpiSpec {
                cpus,
                windows: acpi::Windows { mmio32, mmio64: mmio64.clone() },
                decoding,
                panic_port,
            })
        })
    }

    /// The devices of these names, in their order.
    pub(super) fn boot_order(&self, names: &[String]) -> Vec<BootDevice> {
        let named = |name: &String| self.named.iter().find(|(known, _)| known == name);
        names.iter().filter_map(|name| Some(named(name)?.1)).collect()
    }

    /// Has the loop watch what the devices want watched.
    pub(super) fn watch(&self, events: &Events) -> io::Result<()> {
        let watches = self.watches.iter().zip(0..);
        for (watch, index) in watches.filter_map(|(watch, index)| Some((watch.as_ref()?, index))) {
            for (fd, token) in watch.device.watched() {
                if token == watch.token {
                    events.watch(fd, Source::Device(index))?;
                }
            }
        }
        Ok(())
    }

    /// A watched descriptor is readable.
    pub(super) fn ready(&self, index: u32) -> Action {
        let watch = usize::try_from(index).ok().and_then(|index| self.watches.get(index)?.as_ref());
        watch.map_or(Action::None, |watch| watch.device.ready(watch.token))
    }

    /// Takes a function out of the guest, by its label; it finds nothing there any more.
    pub(super) fn detach(&mut self, label: &str) {
        for (place, device) in self.root.devices() {
            if device.label() == label {
                self.root.remove(place);
                self.virtio.retain(|virtio| virtio.label() != label);
                for watch in &mut self.watches {
                    watch.take_if(|watch| Arc::ptr_eq(&watch.device, &device));
                }
            }
        }
    }

    /// All functions back to power-on.
    pub(super) fn reset(&self) {
        for failure in self.root.reset() {
            tracing::warn!("{}: {}", failure.device, failure.why);
        }
    }
}

/// Where ECAM and power management are now; where firmware has not said yet, where it will most likely be.
fn decoding(root: &Root) -> acpi::Decoding {
    let window = |place| root.device(place)?.windows().first().map(|window| window.base);
    let ecam = window(Place::Root(Devfn(0)));
    let pm_base = window(Place::Root(Devfn(LPC << 3))).and_then(|base| u16::try_from(base).ok());
    let usual = acpi::Decoding::default();
    acpi::Decoding { ecam: ecam.unwrap_or(usual.ecam), pm_base: pm_base.unwrap_or(usual.pm_base) }
}

/// A function that cannot be reset alone may still be given away; one that fails to reset may not.
fn reset_not_possible(function: &dyn vfio::PciFunction, error: vfio::Error) -> Result<(), vfio::Error> {
    if function.can_reset() {
        return Err(error);
    }
    tracing::warn!("{}: it goes to the guest without a reset: {error}", function.label());
    Ok(())
}

/// Each address space once.
fn spaces(slots: &[Slot]) -> Vec<Arc<dyn IoAddressSpace>> {
    let mut spaces: Vec<Arc<dyn IoAddressSpace>> = Vec::new();
    for function in slots.iter().flat_map(|slot| &slot.functions) {
        let space = function.address_space();
        if !spaces.iter().any(|known| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(&space))) {
            spaces.push(space);
        }
    }
    spaces
}

/// What all address spaces can map; `None` when there are none.
fn common_ranges(spaces: &[Arc<dyn IoAddressSpace>]) -> Option<Vec<RangeInclusive<u64>>> {
    spaces.iter().map(|space| space.iova_ranges()).reduce(|common, ranges| {
        let meet = |one: &RangeInclusive<u64>| {
            let start = *one.start();
            let last = *one.end();
            ranges
                .iter()
                .map(move |other| start.max(*other.start())..=last.min(*other.end()))
                .collect::<Vec<_>>()
        };
        common.iter().flat_map(meet).filter(|range| !range.is_empty()).collect()
    })
}
