//! The root complex: all functions of the guest's hierarchy, and the way of config cycles to them.

mod decode;
mod ecam;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use decode::Decoder;

use super::config_space::offset;
use super::{ConfigEffect, Devfn, PciDevice, Place};
use crate::Action;
use crate::bus::{Bus, BusDevice, Overlap};

/// The bit of the header type register that says there are more functions than function 0.
const MULTI_FUNCTION: u8 = 0x80;
type Devices = BTreeMap<Place, Arc<dyn PciDevice>>;

/// A function cannot sit there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Somebody else does.
    #[error("{0} is taken already")]
    Taken(Place),
    /// There is no bridge above it.
    #[error("{0}: there is no root port")]
    NoPort(Place),
    /// There are eight functions to a device.
    #[error("{0}: there is no such function number")]
    NoFunction(Place),
}

/// A function that did not reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetFailure {
    /// Its label.
    pub device: String,
    /// What it said.
    pub why: String,
}

/// The root complex. Locks inside; any vCPU may come at any time.
///
/// Order of locks: the decoder's, then the table of functions, then a function's own or a bus's. A function never calls
/// back, and a BAR access takes none of ours, but that of ECAM, which is a config access.
pub struct Root {
    devices: RwLock<Devices>,
    decoder: Decoder,
    /// CONFIG_ADDRESS, port 0xCF8.
    address: AtomicU32,
    /// RST_CNT, port 0xCF9.
    reset_control: AtomicU8,
}

impl Root {
    /// An empty hierarchy that decodes into these address spaces.
    pub fn new(mmio: Arc<Bus>, pio: Arc<Bus>) -> Self {
        Self {
            devices: RwLock::default(),
            decoder: Decoder::new(mmio, pio),
            address: AtomicU32::new(0),
            reset_control: AtomicU8::new(0),
        }
    }

    /// Puts the first way of config access into the address spaces: ports 0xCF8 to 0xCFF, with the reset control register
    /// at 0xCF9. They do not keep the hierarchy alive.
    pub fn attach(self: &Arc<Self>) -> Result<(), Overlap> {
        let (_, pio) = self.decoder.buses();
        pio.insert(ports::FIRST.into(), ports::COUNT, Arc::new(ports::ConfigPorts::new(self)))
    }

    /// The second way, ECAM, which the host bridge decodes. It does not keep the hierarchy alive either.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ecam::Ecam::new(self))
    }

    /// No BAR decodes in this range of guest addresses: guest RAM above 4 GiB, and what is above the processor's address
    /// width. What lies below [`MMIO32_START`](crate::layout::MMIO32_START) and everything from the I/O APIC to 4 GiB is reserved already.
    pub fn reserve(&self, range: Range<u64>) {
        self.decoder.reserve(range);
    }

    /// Adds a function. Root ports come before what is behind them.
    pub fn add(&self, place: Place, device: Arc<dyn PciDevice>) -> Result<(), AddError> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        if let Place::Behind { port, function } = place {
            let bridge = devices.get(&Place::Root(port)).and_then(|port| port.bridge_buses());
            if bridge.is_none() {
                return Err(AddError::NoPort(place));
            }
            if function > 7 {
                return Err(AddError::NoFunction(place));
            }
        }
        if devices.contains_key(&place) {
            return Err(AddError::Taken(place));
        }
        devices.insert(place, Arc::clone(&device));
        drop(devices);
        self.refresh(place, &device);
        Ok(())
    }

    /// Takes a function away; its windows vanish first of all. From now on its place reads as all ones.
    pub fn remove(&self, place: Place) -> Option<Arc<dyn PciDevice>> {
        let removed = self.devices.write().unwrap_or_else(PoisonError::into_inner).remove(&place);
        self.decoder.forget(place);
        removed
    }

    /// All functions, in the order of their places.
    pub fn devices(&self) -> Vec<(Place, Arc<dyn PciDevice>)> {
        self.table().iter().map(|(place, device)| (*place, Arc::clone(device))).collect()
    }

    /// The function at a place.
    pub fn device(&self, place: Place) -> Option<Arc<dyn PciDevice>> {
        self.table().get(&place).map(Arc::clone)
    }

    /// All functions back to power-on, at a machine reset; their windows vanish. vCPUs are parked meanwhile.
    pub fn reset(&self) -> Vec<ResetFailure> {
        self.address.store(0, Ordering::Relaxed);
        self.reset_control.store(0, Ordering::Relaxed);
        self.reset_all(self.devices())
    }

    /// Reads config space of the function at a place, as the guest would; all ones when there is none.
    pub fn read_config(&self, place: Place, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(device) = self.device(place) {
            self.read_from(place, &device, offset, data);
        }
    }

    /// Writes config space of the function at a place, as the guest would, with all that follows from it.
    pub fn write_config(&self, place: Place, offset: u16, data: &[u8]) -> Action {
        match self.device(place) {
            Some(device) => self.write_to(place, &device, offset, data),
            None => Action::None,
        }
    }

    /// A config read on the bus: any length, any alignment.
    fn cycle_read(&self, bus: u8, devfn: u8, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some((place, device)) = self.route(bus, devfn) else { return };
        for (offset, piece) in Pieces::of(offset, data.len()) {
            if let Some(data) = data.get_mut(piece) {
                self.read_from(place, &device, offset, data);
            }
        }
    }

    /// A config write on the bus: any length, any alignment.
    fn cycle_write(&self, bus: u8, devfn: u8, offset: u16, data: &[u8]) -> Action {
        let Some((place, device)) = self.route(bus, devfn) else { return Action::None };
        let mut asked = Action::None;
        for (offset, piece) in Pieces::of(offset, data.len()) {
            let Some(data) = data.get(piece) else { continue };
            match self.write_to(place, &device, offset, data) {
                Action::None => {}
                action => asked = action,
            }
        }
        asked
    }

    /// Whom a config cycle reaches (PCIe 7.3.3): bus 0 is ours, others are behind the port whose numbers hold them.
    fn route(&self, bus: u8, devfn: u8) -> Option<(Place, Arc<dyn PciDevice>)> {
        let devices = self.table();
        let place = if bus == 0 {
            Place::Root(Devfn(devfn))
        } else {
            let port = devices.iter().find_map(|(place, device)| match place {
                Place::Root(port) => {
                    let (secondary, subordinate) = device.bridge_buses()?;
                    let holds = (secondary..=subordinate).contains(&bus);
                    holds.then(|| (*port, secondary, device.link_is_up()))
                }
                Place::Behind { .. } => None,
            });
            let (port, secondary, link) = port?;
            // There are no switches: what is not on the secondary bus itself is nowhere, and neither is a device but 0.
            if secondary != bus || devfn > 7 || !link {
                return None;
            }
            Place::Behind { port, function: devfn }
        };
        devices.get(&place).map(|device| (place, Arc::clone(device)))
    }

    fn read_from(&self, place: Place, device: &Arc<dyn PciDevice>, offset: u16, data: &mut [u8]) {
        device.read_config(offset, data);
        let header_type = offset::HEADER_TYPE.checked_sub(offset).map(usize::from);
        if let Some(byte) = header_type.and_then(|index| data.get_mut(index)) {
            // Who has siblings is ours to say, not a passed-through function's.
            *byte &= !MULTI_FUNCTION;
            if place == place.first() && self.has_siblings(place) {
                *byte |= MULTI_FUNCTION;
            }
        }
    }

    fn write_to(&self, place: Place, device: &Arc<dyn PciDevice>, offset: u16, data: &[u8]) -> Action {
        let ConfigEffect { windows, buses: _, reset_below, action } = device.write_config(offset, data);
        if windows {
            self.refresh(place, device);
        }
        if reset_below && let Place::Root(port) = place {
            let below = |(place, _): &(Place, _)| matches!(place, Place::Behind { port: above, .. } if *above == port);
            self.reset_all(self.devices().into_iter().filter(below).collect());
        }
        action
    }

    fn has_siblings(&self, place: Place) -> bool {
        self.table().keys().any(|other| *other != place && other.first() == place)
    }

    fn reset_all(&self, devices: Vec<(Place, Arc<dyn PciDevice>)>) -> Vec<ResetFailure> {
        let mut failures = Vec::new();
        for (place, device) in devices {
            if let Err(why) = device.reset() {
                tracing::error!("Resetting {}: {why}", device.label());
                failures.push(ResetFailure { device: device.label().into(), why });
            }
            self.refresh(place, &device);
        }
        failures
    }

    /// Brings the address spaces in line with what a function decodes now.
    fn refresh(&self, place: Place, device: &Arc<dyn PciDevice>) {
        let seated = || self.table().get(&place).is_some_and(|held| Arc::ptr_eq(held, device));
        self.decoder.refresh(place, device, seated);
    }

    fn table(&self) -> RwLockReadGuard<'_, Devices> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An access cut into naturally aligned 1, 2 and 4 byte pieces: config offset, and the range of the access's bytes.
struct Pieces {
    offset: u16,
    done: usize,
    length: usize,
}

impl Pieces {
    fn of(offset: u16, length: usize) -> Self {
        Self { offset, done: 0, length }
    }
}

impl Iterator for Pieces {
    type Item = (u16, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.length.checked_sub(self.done).filter(|left| *left > 0)?;
        let offset =
            self.offset.checked_add(u16::try_from(self.done).ok()?).filter(|offset| *offset < 0x1000)?;
        let size = [4_u16, 2, 1]
            .into_iter()
            .find(|size| offset.is_multiple_of(*size) && usize::from(*size) <= left)
            .map(usize::from)?;
        let piece = self.done..self.done + size;
        self.done = piece.end;
        Some((offset, piece))
    }
}
