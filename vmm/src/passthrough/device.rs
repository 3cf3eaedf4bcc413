//! The function as the host bridge knows it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio::{IrqKind, PciFunction, RegionIndex};

use super::Error;
use super::bars::Bars;
use super::capabilities::{self, Capabilities};
use super::config::{COMMAND, ConfigSpace, Header};
use super::events::Events;
use super::express;
use super::interrupts::Interrupts;
use crate::Action;
use crate::pci::{BarSpec, ConfigEffect, PciDevice, Window};
use crate::vm::Vm;

/// Where the vendor's register ends.
const VENDOR_END: u16 = 2;

/// Where and how a function sits in the guest.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The I/O APIC input of pin A of its slot: the guest sees every function's pin as A.
    pub intx_gsi: u32,
    /// Its slot holds several functions.
    pub multifunction: bool,
    /// The guest sees its expansion ROM.
    pub rom: bool,
    /// Other functions of the guest may reach its BARs by DMA.
    pub peer_to_peer: bool,
}

/// A host function in a guest slot.
pub struct PassthroughDevice {
    // Dropped from top to bottom: interrupts, mappings, then the function.
    state: Mutex<State>,
    bars: Bars,
    events: Events,
    capabilities: Capabilities,
    function: Arc<dyn PciFunction>,
}

struct State {
    interrupts: Interrupts,
    config: ConfigSpace,
}

/// Which table a BAR access falls on.
enum Target {
    Table(u64),
    Pending(u64),
    /// Partly on a table: the bus has no such access.
    Torn,
    Device,
}

impl PassthroughDevice {
    /// Takes the function over: quiet (no bus mastering, no interrupts), its BARs mapped into this process.
    ///
    /// The function must be reset by whoever hands it in, and guest RAM be mapped for its DMA ([`super::map_guest_ram`])
    /// before the guest runs.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a function that is dead (all ones), a bridge, or malformed.
    pub fn new(vm: &Arc<Vm>, function: Arc<dyn PciFunction>, placement: Placement) -> Result<Self, Error> {
        let header = Header {
            multifunction: placement.multifunction,
            pin: function.irq_info(IrqKind::Intx).count > 0,
            rom: placement.rom,
        };
        let mut config = ConfigSpace::read_from(&*function, header)?;
        let capabilities = capabilities::take(&mut config, &*function)?;
        config.seal();
        function.write(RegionIndex::Config, COMMAND.into(), &[0, 0])?;
        let events = Events::new(&*function)?;
        let msix = capabilities.msix.as_ref();
        let bars = Bars::new(vm, &function, config.bars(), msix, placement.peer_to_peer)?;
        let interrupts =
            Interrupts::new(vm, &function, placement.intx_gsi, capabilities.msi, capabilities.msix);
        let state = Mutex::new(State { interrupts, config });
        Ok(Self { state, bars, events, capabilities, function })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device answers. A guest's driver reads the vendor to see that, and the shadow would always say so.
    fn is_present(&self) -> bool {
        if self.events.is_gone() {
            return false;
        }
        let mut vendor = [0; 2];
        let result = self.function.read(RegionIndex::Config, 0, &mut vendor);
        self.events.note(&result);
        vendor != [0xff; 2]
    }

    /// Where an access of `length` bytes falls.
    fn target(&self, bar: u8, offset: u64, length: usize) -> Target {
        let Some(layout) = &self.capabilities.msix else { return Target::Device };
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let hit = |(at, start): (u8, u64), size: u64| {
            if at != bar || end <= start || offset >= start.saturating_add(size) {
                return None;
            }
            Some((offset >= start && end <= start.saturating_add(size)).then(|| offset - start))
        };
        match (hit(layout.table, layout.table_size()), hit(layout.pba, layout.pba_size())) {
            (Some(Some(offset)), _) => Target::Table(offset),
            (None, Some(Some(offset))) => Target::Pending(offset),
            (None, None) => Target::Device,
            _ => Target::Torn,
        }
    }

    /// Passes on what of a config write is the device's.
    fn write_through(&self, config: &ConfigSpace, offset: u16, data: &[u8]) -> Result<(), vfio::Error> {
        let bits: Vec<u8> = (offset..).zip(data).map(|(at, _)| config.emulated_at(at).0).collect();
        if bits.iter().all(|emulated| *emulated == 0) {
            return self.function.write(RegionIndex::Config, offset.into(), data);
        }
        for ((byte, emulated), at) in data.iter().zip(bits).zip(u64::from(offset)..) {
            let byte = match emulated {
                0xff => continue,
                0 => *byte,
                // What the host has set there stays.
                _ => {
                    let mut host = [0];
                    self.function.read(RegionIndex::Config, at, &mut host)?;
                    byte & !emulated | host[0] & emulated
                }
            };
            self.function.write(RegionIndex::Config, at, &[byte])?;
        }
        Ok(())
    }

    /// The guest asks for a function level reset by this write (PCIe 6.0, 6.6.2; Advanced Capabilities ECN).
    fn asks_for_reset(&self, offset: u16, data: &[u8]) -> bool {
        let sets = |at: u16, bit: u8| {
            let byte = at.checked_sub(offset).and_then(|index| data.get(usize::from(index)));
            byte.is_some_and(|byte| byte & bit != 0)
        };
        let (distance, bit) = express::INITIATE_FLR;
        let express = self.capabilities.express.filter(|(_, flr)| *flr);
        express.is_some_and(|(at, _)| sets(at + distance, bit))
            || self.capabilities.advanced.is_some_and(|at| sets(at + 4, 1))
    }

    /// Quiet, out of the guest's reach, reset where `hard`, and as after power-on.
    fn start_over(&self, state: &mut State, hard: bool) -> Result<(), vfio::Error> {
        self.bars.suspend(&[]);
        let quiet = self.function.write(RegionIndex::Config, COMMAND.into(), &[0, 0]);
        state.interrupts.reset();
        state.config.reset();
        quiet?;
        if hard { self.function.reset() } else { Ok(()) }
    }

    /// The power state that was written, on its way to the device. Leaving D3hot resets a function that does not say
    /// No_Soft_Reset (7.5.2.2): the device does that by itself, and its virtual side here.
    fn change_power(&self, state: &mut State, before: u8, at: u16, resets: bool) -> Result<(), vfio::Error> {
        let now = state.config.power_state();
        let register = u64::from(at) + 4;
        if before == 3 && now == 0 && resets {
            self.start_over(state, false)?;
        }
        self.function.write(RegionIndex::Config, register, &[now, 0])
    }
}

impl PciDevice for PassthroughDevice {
    fn label(&self) -> &str {
        self.function.label()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if self.events.is_gone() || offset < VENDOR_END && !self.is_present() {
            return;
        }
        let mut state = self.lock();
        let State { interrupts, config } = &mut *state;
        if let Some(msi) = interrupts.msi()
            && let Some(register) = msi.layout().pending()
        {
            config.set_u32(register, msi.pending());
        }
        let bits: Vec<_> = (offset..).zip(&*data).map(|(at, _)| config.emulated_at(at)).collect();
        if bits.iter().any(|(emulated, _)| *emulated != 0xff) {
            self.events.note(&self.function.read(RegionIndex::Config, offset.into(), data));
        }
        for (byte, (emulated, value)) in data.iter_mut().zip(bits) {
            *byte = *byte & !emulated | value;
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        if self.events.is_gone() {
            return ConfigEffect::default();
        }
        let mut state = self.lock();
        let state = &mut *state;
        if self.asks_for_reset(offset, data) {
            tracing::debug!("{}: the guest asks for a function level reset", self.label());
            let result = self.start_over(state, true);
            let action = match result {
                Ok(()) => Action::None,
                Err(error) => self.events.failed(format!("a reset that the guest asked for failed: {error}")),
            };
            return ConfigEffect { windows: true, action, ..ConfigEffect::default() };
        }
        let (before, power_before) = (state.config.windows(), state.config.power_state());
        let command_before = state.config.device_command();
        let changed = state.config.write(offset, data);
        let after = state.config.windows();
        if before != after {
            self.bars.suspend(&after);
        }
        let mut result = self.write_through(&state.config, offset, data);
        if state.config.device_command() != command_before {
            let command = state.config.device_command().to_le_bytes();
            result = result.and(self.function.write(RegionIndex::Config, COMMAND.into(), &command));
        }
        if let Some((at, resets)) = self.capabilities.power
            && state.config.power_state() != power_before
        {
            result = result.and(self.change_power(state, power_before, at, resets));
        }
        self.events.note(&result);
        if changed {
            state.interrupts.update(&state.config);
        }
        let after = state.config.windows();
        if before != after {
            self.bars.resume(&after);
        }
        ConfigEffect { windows: before != after, ..Default::default() }
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.lock().config.bars().to_vec()
    }

    fn windows(&self) -> Vec<Window> {
        self.lock().config.windows()
    }

    fn window_moved(&self, bar: u8, base: Option<u64>) {
        self.bars.moved(bar, base.filter(|_| !self.events.is_gone()));
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match self.target(bar, offset, data.len()) {
            Target::Table(offset) => {
                if let Some(msix) = self.lock().interrupts.msix() {
                    msix.read_table(offset, data);
                }
            }
            Target::Pending(offset) => {
                if let Some(msix) = self.lock().interrupts.msix() {
                    msix.read_pba(offset, data);
                }
            }
            Target::Device => self.events.note(&self.bars.read(bar, offset, data)),
            Target::Torn => data.fill(0xff),
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Action {
        match self.target(bar, offset, data.len()) {
            Target::Table(offset) => {
                if let Some(msix) = self.lock().interrupts.msix() {
                    msix.write_table(offset, data);
                }
            }
            Target::Device => self.events.note(&self.bars.write(bar, offset, data)),
            // Pending bits are read-only.
            Target::Pending(_) | Target::Torn => {}
        }
        Action::None
    }

    fn reset(&self) -> Result<(), String> {
        let mut state = self.lock();
        let hard = self.function.can_reset();
        if !hard {
            tracing::warn!("{}: it cannot be reset alone; it keeps what it was told", self.label());
        }
        self.start_over(&mut state, hard).map_err(|error| error.to_string())
    }

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        self.events.watched()
    }

    fn ready(&self, token: u64) -> Action {
        // A server that ends reports an error; so may a device on its way out.
        if !self.is_present() && self.events.is_gone() {
            // What is left of its mappings may hold anything. Trapped, they read all ones.
            self.bars.suspend(&[]);
        }
        self.events.ready(token)
    }
}
