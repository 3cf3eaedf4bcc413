//! virtio over PCI (virtio 1.2, 4.1): one function with one memory BAR.
//!
//! ```text
//!   BAR 0   0x0000 common configuration      0x3000 notifications: 4 bytes a queue, each an ioeventfd while in use
//!           0x1000 ISR status                0x4000 MSI-X table
//!           0x2000 device configuration      0x5000 MSI-X pending bits
//! ```
//!
//! The device status (2.1, 3.1) is a machine of its own:
//!
//! ```text
//!   reset --ACKNOWLEDGE, DRIVER--> FEATURES_OK (refused: stays clear) --DRIVER_OK--> workers run
//!     ^                                                                                  |
//!     +---- 0 written, function reset ----+---------- NEEDS_RESET <--a broken rule-------+
//! ```

mod capabilities;
mod common;
mod doorbells;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use capabilities::Capabilities;
use common::{Common, Status};
use doorbells::Doorbells;

use super::interrupts::Interrupts;
use super::scsi::Medium;
use super::{Activation, ActiveQueue, Hears, MediumChange, Ring, VirtioDevice, Worker, feature};
use crate::memory::GuestRam;
use crate::pci::config_space::{command, offset};
use crate::pci::{BarSpec, ConfigEffect, ConfigSpace, LayoutError, PciDevice, Window};
use crate::vm::{self, Vm};
use crate::{Action, control};

/// Where the parts of the BAR lie; each has 4 KiB.
mod area {
    pub(super) const COMMON: u64 = 0x0000;
    pub(super) const ISR: u64 = 0x1000;
    pub(super) const DEVICE: u64 = 0x2000;
    pub(super) const NOTIFY: u64 = 0x3000;
    pub(super) const TABLE: u64 = 0x4000;
    pub(super) const PENDING: u64 = 0x5000;
    pub(super) const SIZE: u64 = 0x8000;
    pub(super) const EACH: u64 = 0x1000;
}

/// The one BAR.
const BAR: u8 = 0;
/// Bytes from one queue's notification address to the next one's.
const NOTIFY_MULTIPLIER: u32 = 4;
/// A page of table.
const MOST_VECTORS: u16 = 256;
/// A page of notification addresses.
const MOST_QUEUES: usize = 1024;

/// A function cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// Its configuration space contradicts itself.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its queues.
    #[error("{label}: a device has at most {MOST_QUEUES} queues, each of a power of two up to 32768")]
    Queues {
        /// The device's name.
        label: String,
    },
    /// A call on the host failed.
    #[error("Making a notification descriptor for {label}: {source}")]
    Host {
        /// The device's name.
        label: String,
        /// The errno.
        source: std::io::Error,
    },
}

/// A virtio device in a guest slot.
pub struct VirtioFunction {
    label: String,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    capabilities: Capabilities,
    hears: Option<Arc<dyn Hears>>,
    state: Mutex<State>,
}

struct State {
    // Dropped from top to bottom: workers end before what they use goes.
    workers: Vec<Worker>,
    doorbells: Doorbells,
    space: ConfigSpace,
    common: Common,
    device: Box<dyn VirtioDevice>,
}

impl VirtioFunction {
    /// A function for `device`; its pin is wired to `gsi`.
    ///
    /// # Errors
    /// The host is short of descriptors or interrupt routes.
    pub fn new(
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
        label: &str,
        device: Box<dyn VirtioDevice>,
        gsi: u32,
    ) -> Result<Self, Error> {
        let sizes = device.queue_sizes();
        let valid = |size: &u16| size.is_power_of_two() && *size <= 1 << 15;
        if sizes.len() > MOST_QUEUES || !sizes.iter().all(valid) {
            return Err(Error::Queues { label: label.into() });
        }
        let vectors = u16::try_from(sizes.len().saturating_add(1)).unwrap_or(MOST_VECTORS).min(MOST_VECTORS);
        let (space, capabilities) = capabilities::lay_out(device.class(), vectors)?;
        let interrupts = Arc::new(Interrupts::new(vm, label, gsi, sizes.len(), vectors)?);
        let failed = |source| Error::Host { label: label.into(), source };
        let doorbells = Doorbells::new(vm, sizes.len()).map_err(failed)?;
        let hears = device.hears();
        let common = Common::new(device.features() | feature::VERSION_1, &sizes);
        let state = State { workers: Vec::new(), doorbells, space, common, device };
        Ok(Self {
            label: label.into(),
            ram: Arc::clone(ram),
            interrupts,
            capabilities,
            hears,
            state: Mutex::new(state),
        })
    }

    /// What the device says of itself, for the statistics.
    pub fn report(&self) -> Option<String> {
        self.lock().device.report()
    }

    /// The device as the control socket shows it.
    pub fn describe(&self) -> control::Device {
        let state = self.lock();
        let counted = state.device.counters().into_iter();
        control::Device {
            name: self.label.clone(),
            report: state.device.report().unwrap_or_default(),
            counters: counted.map(|(name, value)| (name.to_owned(), value)).collect(),
            link: state.device.link(),
            interrupts: self.interrupts.raised(),
            interrupts_in_kernel: state.device.in_kernel() && self.interrupts.by_vectors(),
            passthrough: false,
        }
    }

    /// Plugs the device's cable in or pulls it; false where it has none.
    pub fn set_link(&self, up: bool) -> bool {
        self.lock().device.set_link(up)
    }

    /// Puts a medium into the device's drive, or takes the one there out.
    pub fn change_medium(&self, medium: Option<Medium>, force: bool) -> MediumChange {
        self.lock().device.change_medium(medium, force)
    }

    /// Asks the workers to rest. The vCPUs must have stopped: one that waits for this device would hold its lock.
    pub fn ask_to_rest(&self) {
        self.lock().workers.iter().for_each(Worker::ask_to_rest);
    }

    /// Waits until nothing on the host touches what is the guest's, but no longer than `until`. After an error too,
    /// [`go_on`](Self::go_on) is what puts it back.
    ///
    /// # Errors
    /// Why it goes on, for a person.
    pub fn rest(&self, until: Instant) -> Result<(), String> {
        let mut state = self.lock();
        if !state.workers.iter().all(|worker| worker.rests(until)) {
            return Err(format!("{} is still at work on a request that the host takes long for", self.label));
        }
        state.device.pause().map_err(|error| format!("{}: pausing what serves it: {error}", self.label))
    }

    /// After a rest.
    pub fn go_on(&self) {
        let mut state = self.lock();
        if let Err(error) = state.device.go_on() {
            self.interrupts.fail(format!("what serves it does not go on after a pause: {error}"));
        }
        state.workers.iter().for_each(Worker::go_on);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_status(&self, state: &mut State, value: u8) {
        match state.common.write_status(value) {
            Status::Same => {}
            Status::Reset => self.reset_device(state),
            Status::FeaturesRefused => {
                tracing::warn!("{}: the driver takes features that were not offered together", self.label);
            }
            Status::Ready => self.activate(state),
        }
    }

    fn activate(&self, state: &mut State) {
        let features = state.common.features();
        let memory = self.ram.memory();
        let event_idx = features & feature::EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (index, layout) in state.common.enabled() {
            let ring = match Ring::new(index, layout, event_idx, memory) {
                Ok(ring) => ring,
                Err(broken) => return self.interrupts.fail(broken),
            };
            let Some(kick) = state.doorbells.kick(index) else { continue };
            // Forgets what was rung before, and has the worker look into the ring at once.
            kick.take();
            kick.raise();
            queues.push(ActiveQueue { index, ring, kick, interrupt: self.interrupts.of_queue(index) });
        }
        let in_use: Vec<u16> = queues.iter().map(|queue| queue.index).collect();
        let interrupts = Arc::clone(&self.interrupts);
        let activation = Activation { memory: Arc::clone(&self.ram), features, queues, interrupts };
        match state.device.activate(activation) {
            Ok(workers) => {
                state.workers = workers;
                if let Err(error) = state.doorbells.use_queues(in_use) {
                    tracing::warn!("{}: its driver's notifications exit to Throughway: {error}", self.label);
                }
                if let Some(report) = state.device.report() {
                    tracing::info!("{}: {report}", self.label);
                }
            }
            Err(error) => self.interrupts.fail(error),
        }
    }

    fn reset_device(&self, state: &mut State) {
        state.doorbells.use_none();
        // Waits for them.
        state.workers.clear();
        state.device.reset();
        state.common.reset();
        self.interrupts.reset();
    }

    /// Status as the driver reads it.
    fn status(&self, state: &State) -> u8 {
        let failed = if self.interrupts.has_failed() { common::NEEDS_RESET } else { 0 };
        state.common.status() | failed
    }

    fn read_common(&self, state: &State, at: u64, data: &mut [u8]) {
        let (start, value, width): (u64, u64, usize) = match at {
            16..18 => (16, self.interrupts.chosen(None).into(), 2),
            20 => (20, self.status(state).into(), 1),
            21 => (21, self.interrupts.generation().into(), 1),
            26..28 => {
                (26, state.common.selected().map_or(0, |queue| self.interrupts.chosen(Some(queue))).into(), 2)
            }
            _ => match state.common.read(at) {
                Some(register) => register,
                None => return data.fill(0),
            },
        };
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..width).unwrap_or_default();
        let skip = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        data.fill(0);
        for (slot, byte) in data.iter_mut().zip(bytes.get(skip..).unwrap_or_default()) {
            *slot = *byte;
        }
    }

    fn write_common(&self, state: &mut State, at: u64, data: &[u8]) {
        match (at, data) {
            (16, &[low, high]) => self.interrupts.choose(None, u16::from_le_bytes([low, high])),
            (20, &[value]) => self.write_status(state, value),
            (26, &[low, high]) => {
                if let Some(queue) = state.common.selected() {
                    self.interrupts.choose(Some(queue), u16::from_le_bytes([low, high]));
                }
            }
            _ => state.common.write(at, data),
        }
    }

    fn read_area(&self, offset: u64, data: &mut [u8]) {
        let at = offset % area::EACH;
        match offset - at {
            area::COMMON => self.read_common(&self.lock(), at, data),
            area::ISR => {
                data.fill(0);
                if let (0, Some(byte)) = (at, data.first_mut()) {
                    *byte = self.interrupts.take_isr();
                }
            }
            area::DEVICE => {
                data.fill(0);
                if let Ok(at) = u16::try_from(at) {
                    self.lock().device.read_config(at, data);
                }
            }
            area::TABLE => self.interrupts.read_table(at, data),
            area::PENDING => self.interrupts.read_pending(at, data),
            _ => data.fill(0),
        }
    }

    fn write_area(&self, offset: u64, data: &[u8]) {
        let at = offset % area::EACH;
        match offset - at {
            area::COMMON => self.write_common(&mut self.lock(), at, data),
            area::DEVICE => {
                if let Ok(at) = u16::try_from(at) {
                    self.lock().device.write_config(at, data);
                }
            }
            area::NOTIFY => self.lock().doorbells.ring(at / u64::from(NOTIFY_MULTIPLIER)),
            area::TABLE => self.interrupts.write_table(at, data),
            _ => {}
        }
    }

    /// The range in the BAR that the window in config space shows now (4.1.4.9): offset and length.
    fn config_window(&self, state: &State, at: u16, length: usize) -> Option<(u64, usize)> {
        let window = &self.capabilities.window;
        let inside = at.checked_sub(window.data).filter(|skip| usize::from(*skip) + length <= 4)?;
        let offset = u64::from(state.space.u32(window.offset));
        let wanted = usize::try_from(state.space.u32(window.length)).ok()?;
        let valid = inside == 0
            && state.space.u8(window.bar) == BAR
            && matches!(wanted, 1 | 2 | 4)
            && wanted <= length
            && offset.is_multiple_of(u64::try_from(wanted).ok()?)
            && offset < area::SIZE;
        valid.then_some((offset, wanted))
    }
}

impl PciDevice for VirtioFunction {
    fn label(&self) -> &str {
        &self.label
    }

    fn read_config(&self, at: u16, data: &mut [u8]) {
        let window = {
            let state = self.lock();
            state.space.read(at, data);
            self.config_window(&state, at, data.len())
        };
        if let Some((offset, length)) = window
            && let Some(data) = data.get_mut(..length)
        {
            self.read_area(offset, data);
        }
    }

    fn write_config(&self, at: u16, data: &[u8]) -> ConfigEffect {
        let (effect, window) = {
            let mut state = self.lock();
            let effect = state.space.write(at, data);
            let control = state.space.u16(self.capabilities.msix + 2);
            let pin_disabled = state.space.u16(offset::COMMAND) & command::INTX_DISABLE != 0;
            self.interrupts.configure(control & 1 << 15 != 0, control & 1 << 14 != 0, pin_disabled);
            (effect, self.config_window(&state, at, data.len()))
        };
        if let Some((offset, length)) = window
            && let Some(data) = data.get(..length)
        {
            self.write_area(offset, data);
        }
        effect
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.lock().space.bars()
    }

    fn windows(&self) -> Vec<Window> {
        self.lock().space.windows()
    }

    fn window_moved(&self, bar: u8, base: Option<u64>) {
        if bar == BAR
            && let Err(error) = self.lock().doorbells.moved(base.map(|base| base + area::NOTIFY))
        {
            tracing::warn!("{}: its driver's notifications exit to Throughway: {error}", self.label);
        }
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == BAR {
            self.read_area(offset, data);
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Action {
        if bar == BAR {
            self.write_area(offset, data);
        }
        Action::None
    }

    fn reset(&self) -> Result<(), String> {
        let mut state = self.lock();
        self.reset_device(&mut state);
        state.space.reset();
        self.interrupts.power_on();
        Ok(())
    }

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        self.hears.iter().map(|hears| (hears.descriptor(), 0)).collect()
    }

    fn ready(&self, _: u64) -> Action {
        if let Some(hears) = &self.hears {
            hears.heard();
        }
        Action::None
    }
}
