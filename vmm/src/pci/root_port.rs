//! A PCI Express root port: the bridge between bus 0 and one guest slot.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config_space::{ConfigSpace, Header, Identity, LayoutError, command, offset};
use super::slot::Slot;
use super::{ConfigEffect, PciDevice};
use crate::vm::{MsiMessage, Signal};

/// The virtual root port that guests know from QEMU.
const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x000c, revision: 0, class: 0x06_0400, subsystem: None };

/// Capability IDs.
const POWER_MANAGEMENT: u8 = 0x01;
const VENDOR_SPECIFIC: u8 = 0x09;
const MESSAGES: u8 = 0x05;
const SUBSYSTEM: u8 = 0x0d;
const PCI_EXPRESS: u8 = 0x10;

/// Secondary bus reset, in the bridge control register (PCIe 7.5.1.3.13).
const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// Registers of the PCI Express capability (PCIe 7.5.3), as offsets from its start, and their bits.
mod express {
    pub(super) const LENGTH: usize = 0x3c;
    pub(super) const CAPABILITIES: u16 = 0x02;
    pub(super) const DEVICE_CAPABILITIES: u16 = 0x04;
    pub(super) const DEVICE_CONTROL: u16 = 0x08;
    pub(super) const DEVICE_STATUS: u16 = 0x0a;
    pub(super) const LINK_CAPABILITIES: u16 = 0x0c;
    pub(super) const LINK_CONTROL: u16 = 0x10;
    pub(super) const LINK_STATUS: u16 = 0x12;
    pub(super) const ROOT_CONTROL: u16 = 0x1c;
    pub(super) const ROOT_STATUS: u16 = 0x20;
    pub(super) const DEVICE_CONTROL_2: u16 = 0x28;
    pub(super) const LINK_CAPABILITIES_2: u16 = 0x2c;
    pub(super) const LINK_CONTROL_2: u16 = 0x30;

    /// Version 2, root port, slot implemented.
    pub(super) const VERSION_2_ROOT_PORT_WITH_SLOT: u16 = 2 | 4 << 4 | 1 << 8;
    pub(super) const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// 16 GT/s.
    pub(super) const SPEED: u16 = 4;
    pub(super) const WIDTH_16: u16 = 16 << 4;
    /// 2.5 to 16 GT/s, in the supported link speeds vector.
    pub(super) const SPEEDS: u32 = 0x1e;
    pub(super) const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
}

/// Bits of the MSI capability (PCIe 7.7.1): 64-bit addresses, one message, no mask.
mod messages {
    pub(super) const ENABLE: u16 = 1;
    pub(super) const CONTROL: u16 = 0x02;
    pub(super) const ADDRESS: u16 = 0x04;
    pub(super) const ADDRESS_UPPER: u16 = 0x08;
    pub(super) const DATA: u16 = 0x0c;
    pub(super) const WIDE: u16 = 1 << 7;
}

/// How a root port interrupts the guest.
pub trait PortInterrupt: Send + Sync {
    /// By a message, once.
    fn message(&self, message: MsiMessage);

    /// By its pin, while that is asserted.
    fn pin(&self, asserted: bool);
}

/// A root port with one slot. Bus numbers and windows are what the guest, its firmware or the planner wrote; config
/// cycles follow the numbers. Behind it is what the slot says: nothing is there while the slot has no power.
pub struct RootPort {
    label: String,
    msi: u16,
    interrupt: Box<dyn PortInterrupt>,
    state: Mutex<State>,
}

struct State {
    space: ConfigSpace,
    slot: Slot,
    /// As the guest was told last.
    notified: bool,
    pin: bool,
    /// Who waits for the slot to be turned off, or on.
    waiting: Option<Waiting>,
}

struct Waiting {
    whom: Arc<Signal>,
    on: bool,
}

/// How a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// There is a card in it.
    pub card: bool,
    /// The card has power.
    pub on: bool,
    /// Power and power indicator are off: the card may be taken out (PCIe 6.7.1.1.2).
    pub settled: bool,
    /// The guest turns it on or off now: its power indicator blinks.
    pub blinks: bool,
    /// The guest wants to hear of the attention button.
    pub listens: bool,
}

impl RootPort {
    /// A root port with `slot` on its slot number (1 to 8191) and port number; `occupied` when something is behind it.
    pub fn new(
        slot: u16,
        occupied: bool,
        interrupt: impl PortInterrupt + 'static,
    ) -> Result<Self, LayoutError> {
        let mut space = ConfigSpace::new(Header::Bridge, IDENTITY);
        bridge_registers(&mut space);
        let express = express_capability(&mut space, slot)?;
        let power = space.add_capability(POWER_MANAGEMENT, &[0x03, 0, 0, 0, 0, 0])?;
        space.define_u16(power + 4, NO_SOFT_RESET, 0x0003);
        let [vendor, subsystem] = [0x1af4_u16, 0x1100].map(u16::to_le_bytes);
        space.add_capability(SUBSYSTEM, &[0, 0, vendor[0], vendor[1], subsystem[0], subsystem[1]])?;
        space.add_capability(VENDOR_SPECIFIC, &reservation())?;
        let msi = message_capability(&mut space)?;
        let number = slot;
        let slot = Slot::lay_out(&mut space, express, number, occupied);
        let state = State { space, slot, notified: false, pin: false, waiting: None };
        Ok(Self {
            label: format!("root port {number}"),
            msi,
            interrupt: Box::new(interrupt),
            state: Mutex::new(state),
        })
    }

    /// A card is put into the slot, with its functions in the hierarchy already. `on` is raised when the guest has given it
    /// power; at once where the slot has some.
    pub fn insert(&self, on: Arc<Signal>) {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        slot.insert(space);
        if slot.link_is_up(space) {
            on.raise();
        }
        // The guest may turn it off, and on again, before anyone looks.
        state.waiting = Some(Waiting { whom: on, on: true });
        self.tell(&mut state);
    }

    /// Asks the guest for the card, by the attention button. `off` is raised when the guest has turned the slot off, at once
    /// where it is off already, and at a reset of the machine. A guest that is at it already, asked before, is not pressed.
    pub fn ask_back(&self, off: Arc<Signal>) {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        if slot.is_settled(space) {
            off.raise();
        } else if !slot.blinks(space) {
            slot.press(space);
        }
        state.waiting = Some(Waiting { whom: off, on: false });
        self.tell(&mut state);
    }

    /// Presses the button again. A guest that is busy with the slot takes no notice of one press, and another one while
    /// its indicator blinks would call it off: so only where it does not.
    pub fn press_again(&self) {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        if slot.has_card() && !slot.blinks(space) && !slot.is_settled(space) {
            slot.press(space);
            self.tell(&mut state);
        }
    }

    /// Nobody waits any more.
    pub fn forget_waiting(&self) {
        self.lock().waiting = None;
    }

    /// The card is out of the slot. Its functions leave the hierarchy first.
    pub fn take_out(&self) {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        slot.take_out(space);
        state.waiting = None;
        self.tell(&mut state);
    }

    /// How the slot is now.
    pub fn slot_state(&self) -> SlotState {
        let state = self.lock();
        let State { space, slot, .. } = &*state;
        SlotState {
            card: slot.has_card(),
            on: slot.link_is_up(space),
            settled: slot.is_settled(space),
            blinks: slot.blinks(space),
            listens: slot.listens(space),
        }
    }

    /// Interrupts where there is something new (6.7.3.4): by a message once for each time that the level rises, or by the
    /// pin while it is up.
    fn tell(&self, state: &mut State) {
        let by_messages = self.message_of(&state.space);
        let level = state.slot.notifies(&state.space);
        let rises = level && by_messages.is_some() && !state.notified;
        state.notified = level && by_messages.is_some();
        if let Some(message) = by_messages.filter(|_| rises) {
            self.interrupt.message(message);
        }
        let masked = state.space.u16(offset::COMMAND) & command::INTX_DISABLE != 0;
        let pin = level && by_messages.is_none() && !masked;
        if pin != state.pin {
            state.pin = pin;
            self.interrupt.pin(pin);
        }
    }

    /// The message, while the guest has enabled it.
    fn message_of(&self, space: &ConfigSpace) -> Option<MsiMessage> {
        let at = |register: u16| self.msi.saturating_add(register);
        let enabled = space.u16(at(messages::CONTROL)) & messages::ENABLE != 0;
        let (low, high) = (space.u32(at(messages::ADDRESS)), space.u32(at(messages::ADDRESS_UPPER)));
        enabled.then(|| MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data: space.u16(at(messages::DATA)).into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whoever waits for this is told, each time: the guest may have turned it back before they look.
    fn turned(&self, on: bool) {
        if let Some(waiting) = self.waiting.as_ref().filter(|waiting| waiting.on == on) {
            waiting.whom.raise();
        }
    }
}

/// What firmware shall set aside for devices that are plugged in later (QEMU, docs/pcie_pci_bridge.txt): no I/O ports, of
/// which there are too few for all slots, and else what it sets aside by itself.
fn reservation() -> Vec<u8> {
    const LENGTH: u8 = 32;
    const RESOURCES: u8 = 1;
    const DEFAULT: [u8; 8] = [0xff; 8];
    let (buses, ports, memory) = (&DEFAULT[..4], [0; 8], &DEFAULT[..4]);
    [&[LENGTH, RESOURCES], buses, &ports, memory, memory, &DEFAULT].concat()
}

/// Power management control: D3hot to D0 is no reset (PCIe 7.5.2.2).
const NO_SOFT_RESET: u16 = 1 << 3;

/// Bus numbers, windows and control of the type 1 header (PCIe 7.5.1.3).
fn bridge_registers(space: &mut ConfigSpace) {
    for register in [offset::PRIMARY_BUS, offset::SECONDARY_BUS, offset::SUBORDINATE_BUS] {
        space.define_u8(register, 0, 0xff);
    }
    for register in [offset::IO_BASE, offset::IO_LIMIT] {
        space.define_u8(register, 0, 0xf0);
    }
    space.clears_u16(offset::SECONDARY_STATUS, 0xf900);
    for register in [offset::MEMORY_BASE, offset::MEMORY_LIMIT] {
        space.define_u16(register, 0, 0xfff0);
    }
    for register in [offset::PREFETCHABLE_BASE, offset::PREFETCHABLE_LIMIT] {
        // 1: the upper 32 bits are there too.
        space.define_u16(register, 1, 0xfff0);
    }
    for register in [offset::PREFETCHABLE_BASE_UPPER, offset::PREFETCHABLE_LIMIT_UPPER] {
        space.define_u32(register, 0, u32::MAX);
    }
    space.define_u16(offset::BRIDGE_CONTROL, 0, 0x001f | SECONDARY_BUS_RESET);
    space.define_u8(offset::INTERRUPT_PIN, 1, 0);
}

fn message_capability(space: &mut ConfigSpace) -> Result<u16, LayoutError> {
    let start = space.add_capability(MESSAGES, &[0; 12])?;
    space.define_u16(start + messages::CONTROL, messages::WIDE, messages::ENABLE | 0x7 << 4);
    space.define_u32(start + messages::ADDRESS, 0, !0x3);
    space.define_u32(start + messages::ADDRESS_UPPER, 0, u32::MAX);
    space.define_u16(start + messages::DATA, 0, u16::MAX);
    Ok(start)
}

fn express_capability(space: &mut ConfigSpace, slot: u16) -> Result<u16, LayoutError> {
    let start = space.add_capability(PCI_EXPRESS, &[0; express::LENGTH - 2])?;
    let at = |register: u16| start + register;
    let slot = u32::from(slot & 0x1fff);
    space.define_u16(at(express::CAPABILITIES), express::VERSION_2_ROOT_PORT_WITH_SLOT, 0);
    space.define_u32(at(express::DEVICE_CAPABILITIES), express::ROLE_BASED_ERRORS, 0);
    space.define_u16(at(express::DEVICE_CONTROL), 0, 0x00ff);
    space.clears_u16(at(express::DEVICE_STATUS), 0x000f);
    let link = u32::from(express::SPEED | express::WIDTH_16);
    let port_number = (slot & 0xff) << 24;
    space.define_u32(at(express::LINK_CAPABILITIES), port_number | express::LINK_ACTIVE_REPORTING | link, 0);
    space.define_u16(at(express::LINK_CONTROL), 0, 0x00c3);
    space.define_u16(at(express::LINK_STATUS), express::SPEED | express::WIDTH_16, 0);
    space.define_u16(at(express::ROOT_CONTROL), 0, 0x000f);
    space.clears_u32(at(express::ROOT_STATUS), 1 << 16);
    space.define_u16(at(express::DEVICE_CONTROL_2), 0, 0x001f);
    space.define_u32(at(express::LINK_CAPABILITIES_2), express::SPEEDS, 0);
    space.define_u16(at(express::LINK_CONTROL_2), express::SPEED, 0x000f);
    Ok(start)
}

impl PciDevice for RootPort {
    fn label(&self) -> &str {
        &self.label
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        let (bridge, control) = (space.u16(offset::BRIDGE_CONTROL), slot.control(space));
        let effect = space.write(offset, data);
        let begun = !bridge & space.u16(offset::BRIDGE_CONTROL) & SECONDARY_BUS_RESET;
        let turned = slot.written(space, control, slot.is_control(offset, data.len()));
        if turned.on {
            state.turned(true);
        }
        if turned.settled {
            state.turned(false);
        }
        self.tell(&mut state);
        ConfigEffect { reset_below: begun != 0 || turned.off, ..effect }
    }

    fn bridge_buses(&self) -> Option<(u8, u8)> {
        let state = self.lock();
        Some((state.space.u8(offset::SECONDARY_BUS), state.space.u8(offset::SUBORDINATE_BUS)))
    }

    fn link_is_up(&self) -> bool {
        let state = self.lock();
        state.slot.link_is_up(&state.space)
    }

    fn reset(&self) -> Result<(), String> {
        let mut state = self.lock();
        let State { space, slot, .. } = &mut *state;
        space.reset();
        slot.power_on(space);
        // Whoever had the card has forgotten it, and whoever comes finds it with power.
        state.turned(false);
        state.turned(true);
        self.tell(&mut state);
        Ok(())
    }
}

/// For tests of others: nobody hears it.
#[cfg(test)]
pub(crate) struct NoInterrupt;

#[cfg(test)]
impl PortInterrupt for NoInterrupt {
    fn message(&self, _: MsiMessage) {}

    fn pin(&self, _: bool) {}
}

#[cfg(test)]
mod tests;
