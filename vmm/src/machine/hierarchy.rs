//! The guest's PCI hierarchy: chipset functions, and each slot's functions behind a root port of their own.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use vfio::IoAddressSpace;

use super::Error;
use super::card::{Card, Wire, same_space, spaces};
use super::events::{Events, Source};
use crate::firmware::{BootDevice, Tables};
use crate::legacy::PowerManagement;
use crate::memory::GuestRam;
use crate::passthrough::{DmaMap, map_guest_ram};
use crate::pci::host_bridge::PowerOn;
use crate::pci::{
    self, Devfn, PciDevice, Place, Request, Root, RootPort, Space, Spare, Watchdog, host_bridge,
};
use crate::spec::{CpuSpec, NewDevice, Slot, VirtioSlot};
use crate::vcpu::Buses;
use crate::virtio::scsi::Medium;
use crate::virtio::{MediumChange, VirtioFunction};
use crate::vm::{Signal, Vm};
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

/// A root port and what is behind it.
struct Seat {
    port: Devfn,
    bridge: Arc<RootPort>,
    card: Option<Card>,
}

/// A card on its way out of the guest.
pub(super) struct Leaving {
    pub(super) card: Card,
    /// Maps of guest RAM that only it has used.
    pub(super) unused: Vec<DmaMap>,
}

/// All PCI functions of the guest.
pub(super) struct Hierarchy {
    root: Arc<Root>,
    /// Their places are what the loop knows them by; that of a device that was taken out stays empty until another is there.
    watches: Vec<Option<Watch>>,
    virtio: Vec<Arc<VirtioFunction>>,
    /// In the order of their ports.
    seats: Vec<Seat>,
    maps: Vec<DmaMap>,
    space: Space,
    /// What may be booted from, by its name in the guest's file.
    named: Vec<(String, BootDevice)>,
}

impl Hierarchy {
    /// Builds it, with guest RAM mapped for the functions' DMA. `pm` is decoded where the LPC bridge says. `address_bits` is
    /// the width of guest physical addresses.
    pub(super) fn build(
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
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
        let spaces = spaces(slots.iter().flat_map(|slot| &slot.functions));
        let maps = map_guest_ram(ram, &spaces)?;
        let space = Space { ram_end, phys_bits: address_bits, iova: common_ranges(&spaces) };
        let mut hierarchy = Self {
            root,
            watches: Vec::new(),
            virtio: Vec::new(),
            seats: Vec::new(),
            maps,
            space,
            named: Vec::new(),
        };
        for slot in slots {
            hierarchy.add(vm, ram, NewDevice::Functions(slot))?;
        }
        Ok(hierarchy)
    }

    /// The next root port.
    fn add_port(&mut self, vm: &Arc<Vm>, occupied: bool) -> Result<(Devfn, Arc<RootPort>), Error> {
        let device = u8::try_from(self.seats.len()).unwrap_or(u8::MAX).saturating_add(FIRST_PORT);
        let devfn = Devfn::new(device, 0).filter(|_| device <= LAST_PORT).ok_or(Error::TooManySlots)?;
        let bridge = Arc::new(RootPort::new(device.into(), occupied, Wire::new(vm, device))?);
        self.root.add(Place::Root(devfn), Arc::clone(&bridge) as _)?;
        Ok((devfn, bridge))
    }

    /// Puts a device behind a root port of its own, before the guest runs.
    fn add(&mut self, vm: &Arc<Vm>, ram: &Arc<GuestRam>, device: NewDevice) -> Result<(), Error> {
        let (port, bridge) = self.add_port(vm, true)?;
        let card = Card::new(vm, ram, port, device)?;
        let boot = BootDevice { port: port.device(), function: 0, kind: card.kind };
        self.named.push((card.short_name().to_owned(), boot));
        self.seats.push(Seat { port, bridge, card: None });
        self.seat(self.seats.len().saturating_sub(1), card).map(|_| ())
    }

    /// The same for a virtio device.
    pub(super) fn add_virtio(
        &mut self,
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
        slot: VirtioSlot,
    ) -> Result<(), Error> {
        self.add(vm, ram, NewDevice::Virtio(slot))
    }

    /// Root ports with nothing behind them, as many as there is room for.
    pub(super) fn add_spare_ports(&mut self, vm: &Arc<Vm>, count: u8) -> Result<(), Error> {
        for _ in 0..count {
            let (port, bridge) = self.add_port(vm, false)?;
            self.seats.push(Seat { port, bridge, card: None });
        }
        Ok(())
    }

    /// Makes a card's functions part of the hierarchy; the answer is what the loop is to watch from now on.
    /// Where one does not fit, the card has the seat all the same: to be unplugged.
    fn seat(&mut self, seat: usize, mut card: Card) -> Result<Vec<u32>, Error> {
        let Some(seat) = self.seats.get_mut(seat) else { return Err(Error::TooManySlots) };
        let (port, functions) = (seat.port, card.functions.clone());
        self.virtio.extend(card.virtio.take());
        seat.card = Some(card);
        let mut watches = Vec::new();
        for (function, number) in functions.iter().zip(0..) {
            self.root.add(Place::Behind { port, function: number }, Arc::clone(function))?;
            for (_, token) in function.watched() {
                let watch = Some(Watch { device: Arc::clone(function), token });
                let free = self.watches.iter().position(Option::is_none).unwrap_or(self.watches.len());
                match self.watches.get_mut(free) {
                    Some(place) => *place = watch,
                    None => self.watches.push(watch),
                }
                watches.extend(u32::try_from(free));
            }
        }
        Ok(watches)
    }

    /// The seat of a card, by its whole name or, where only one has it, by that in the guest's file. The error says why none.
    pub(super) fn seat_of(&self, name: &str) -> Result<usize, String> {
        let cards =
            || self.seats.iter().enumerate().filter_map(|(seat, held)| Some((seat, held.card.as_ref()?)));
        // Functions have their key alone for a name; theirs is the section that it is in, which may be said too.
        let function = ["nic ", "pci "].into_iter().find_map(|section| name.strip_prefix(section));
        let is_it = |card: &Card| {
            card.name == name || function.is_some_and(|key| card.name == key && !card.spaces.is_empty())
        };
        if let Some((seat, _)) = cards().find(|(_, card)| is_it(card)) {
            return Ok(seat);
        }
        let found: Vec<_> = cards().filter(|(_, card)| card.short_name() == name).collect();
        let names = |cards: &mut dyn Iterator<Item = &Card>| {
            cards.map(|card| format!("`{}`", card.name)).collect::<Vec<_>>().join(", ")
        };
        match &found[..] {
            [(seat, _)] => Ok(*seat),
            [] => {
                let all = names(&mut cards().map(|(_, card)| card));
                let has = if all.is_empty() { "none".to_owned() } else { all };
                Err(format!("The guest has no device `{name}`; it has {has}"))
            }
            several => {
                let which = names(&mut several.iter().map(|(_, card)| *card));
                Err(format!("`{name}` may be {which}; say which"))
            }
        }
    }

    /// An empty root port, lowest number first: its seat and place.
    pub(super) fn free_seat(&self) -> Option<(usize, Devfn)> {
        let free = |seat: &Seat| seat.card.is_none() && !seat.bridge.slot_state().card;
        self.seats.iter().enumerate().find(|(_, seat)| free(seat)).map(|(at, seat)| (at, seat.port))
    }

    /// The whole name of the card in a seat.
    pub(super) fn name_of(&self, seat: usize) -> Option<&str> {
        Some(&self.seats.get(seat)?.card.as_ref()?.name)
    }

    /// The card in a seat cannot be taken out.
    pub(super) fn stays(&self, seat: usize) -> bool {
        self.seats.get(seat).and_then(|seat| seat.card.as_ref()).is_some_and(|card| card.stays)
    }

    /// The root port of a seat.
    pub(super) fn bridge(&self, seat: usize) -> Option<&Arc<RootPort>> {
        Some(&self.seats.get(seat)?.bridge)
    }

    /// The address spaces into which guest RAM is mapped.
    pub(super) fn mapped(&self) -> Vec<Arc<dyn IoAddressSpace>> {
        self.maps.iter().map(|map| Arc::clone(map.space())).collect()
    }

    /// How much guest RAM is pinned for the functions' DMA, in bytes. Each address space pins the same.
    pub(super) fn pinned(&self) -> u64 {
        self.maps.iter().map(DmaMap::pinned).max().unwrap_or(0)
    }

    /// Plugs a card in while the guest runs. `on` is raised when the guest has turned its slot on.
    pub(super) fn plug(
        &mut self,
        seat: usize,
        card: Card,
        maps: Vec<DmaMap>,
        on: Arc<Signal>,
        events: &Events,
    ) -> Result<(), Error> {
        self.maps.extend(maps);
        for index in self.seat(seat, card)? {
            self.watch_one(index, events).map_err(Error::io("Watching a device's descriptors"))?;
        }
        if let Some(bridge) = self.bridge(seat) {
            bridge.insert(on);
        }
        Ok(())
    }

    /// Takes a card out of the guest, whether that is ready or not. It is not let go yet.
    pub(super) fn unplug(&mut self, seat: usize, events: &Events) -> Option<Leaving> {
        let held = self.seats.get_mut(seat)?;
        let card = held.card.take()?;
        for number in 0..8 {
            self.root.remove(Place::Behind { port: held.port, function: number });
        }
        held.bridge.take_out();
        for function in &card.functions {
            self.look_away(function, events);
            self.virtio.retain(|virtio| virtio.label() != function.label());
        }
        let used = |map: &DmaMap| {
            let cards = self.seats.iter().filter_map(|seat| seat.card.as_ref());
            cards.flat_map(|card| &card.spaces).any(|space| same_space(space, map.space()))
        };
        let (used, unused) = std::mem::take(&mut self.maps).into_iter().partition(used);
        self.maps = used;
        Some(Leaving { card, unused })
    }

    fn look_away(&mut self, device: &Arc<dyn PciDevice>, events: &Events) {
        for (fd, _) in device.watched() {
            if let Err(error) = events.forget(fd) {
                tracing::debug!("{}: looking away from its descriptors: {error}", device.label());
            }
        }
        for watch in &mut self.watches {
            watch.take_if(|watch| Arc::ptr_eq(&watch.device, device));
        }
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

    /// Changes the medium of the drive `disk`; where there is no such disk, which there are.
    pub(super) fn change_medium(
        &self,
        disk: &str,
        medium: Option<Medium>,
        force: bool,
    ) -> Result<MediumChange, Vec<String>> {
        let label = format!("disk {disk}");
        if let Some(virtio) = self.virtio.iter().find(|virtio| virtio.label() == label) {
            return Ok(virtio.change_medium(medium, force));
        }
        let disks = self.virtio.iter().filter_map(|virtio| virtio.label().strip_prefix("disk "));
        Err(disks.map(str::to_owned).collect())
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

    /// Places all BARs as firmware would, and says where they may be.
    pub(super) fn program(&self) -> Result<acpi::Windows, Error> {
        let request = Request { spare: Spare::USUAL, ..Request::of(&self.root, self.space.clone()) };
        let plan = pci::plan(&request)?;
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
        let taken = watches.filter_map(|(watch, index)| watch.is_some().then_some(index));
        taken.into_iter().try_for_each(|index| self.watch_one(index, events))
    }

    fn watched(&self, index: u32) -> Option<&Watch> {
        usize::try_from(index).ok().and_then(|index| self.watches.get(index)?.as_ref())
    }

    fn watch_one(&self, index: u32, events: &Events) -> io::Result<()> {
        let Some(watch) = self.watched(index) else { return Ok(()) };
        for (fd, token) in watch.device.watched() {
            if token == watch.token {
                events.watch(fd, Source::Device(index))?;
            }
        }
        Ok(())
    }

    /// A watched descriptor is readable.
    pub(super) fn ready(&self, index: u32) -> Action {
        self.watched(index).map_or(Action::None, |watch| watch.device.ready(watch.token))
    }

    /// Takes a function out of the guest, by its label; it finds nothing there any more. A card with no other function goes
    /// as a whole, and its port says so.
    pub(super) fn detach(&mut self, label: &str, events: &Events) -> Option<Leaving> {
        let (place, device) = self.root.devices().into_iter().find(|(_, device)| device.label() == label)?;
        let alone = |seat: &Seat| {
            let functions = &seat.card.as_ref()?.functions;
            matches!(&functions[..], [only] if Arc::ptr_eq(only, &device)).then_some(())
        };
        if let Some(seat) = self.seats.iter().position(|seat| alone(seat).is_some()) {
            return self.unplug(seat, events);
        }
        self.root.remove(place);
        self.look_away(&device, events);
        for card in self.seats.iter_mut().filter_map(|seat| seat.card.as_mut()) {
            card.functions.retain(|function| !Arc::ptr_eq(function, &device));
        }
        None
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
