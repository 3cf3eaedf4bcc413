//! The slot of a root port: native hotplug (PCIe 6.0, 6.7, and the registers of 7.5.3.9 to 7.5.3.11).
//!
//! ```text
//!              insert                  the guest powers it on
//!   empty ----------------> off ---------------------------> on
//!     ^                     |  ^                             |
//!     |      take_out       |  +-----------------------------+
//!     +---------------------+    the guest powers it off     |
//!     +------------------------------------------------------+
//!                     take_out (by surprise)
//! ```
//!
//! The slot only changes registers and says what has changed; who is behind it, and interrupts, are the port's business.
//! The link is up while there is a card and the slot has power. A slot with its power and its power indicator off is
//! settled: by 6.7.1.1.2 the card may then be taken out.

use super::config_space::ConfigSpace;

/// Where the registers are, as offsets from the start of the PCI Express capability.
pub(super) mod register {
    pub(in crate::pci) const LINK_STATUS: u16 = 0x12;
    pub(in crate::pci) const CAPABILITIES: u16 = 0x14;
    pub(in crate::pci) const CONTROL: u16 = 0x18;
    pub(in crate::pci) const STATUS: u16 = 0x1a;
}

/// Slot capabilities: button, power controller, both indicators, may go by surprise, hotplug capable. No latch, no
/// interlock, and commands tell of their completion.
const ABILITIES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6;

/// Bits of slot control.
mod control {
    pub(super) const BUTTON_ENABLE: u16 = 1 << 0;
    pub(super) const PRESENCE_ENABLE: u16 = 1 << 3;
    pub(super) const COMPLETED_ENABLE: u16 = 1 << 4;
    pub(super) const HOTPLUG_ENABLE: u16 = 1 << 5;
    pub(super) const ATTENTION_OFF: u16 = 0b11 << 6;
    pub(super) const POWER_INDICATOR: u16 = 0b11 << 8;
    pub(super) const POWER_INDICATOR_ON: u16 = 0b01 << 8;
    pub(super) const POWER_INDICATOR_BLINKS: u16 = 0b10 << 8;
    pub(super) const POWER_INDICATOR_OFF: u16 = 0b11 << 8;
    pub(super) const POWER_OFF: u16 = 1 << 10;
    pub(super) const LINK_ENABLE: u16 = 1 << 12;
    pub(super) const WRITABLE: u16 = BUTTON_ENABLE
        | PRESENCE_ENABLE
        | COMPLETED_ENABLE
        | HOTPLUG_ENABLE
        | ATTENTION_OFF
        | POWER_INDICATOR
        | POWER_OFF
        | LINK_ENABLE;
}

/// Bits of slot status.
mod status {
    pub(super) const BUTTON: u16 = 1 << 0;
    pub(super) const PRESENCE_CHANGED: u16 = 1 << 3;
    pub(super) const COMPLETED: u16 = 1 << 4;
    pub(super) const PRESENT: u16 = 1 << 6;
    pub(super) const LINK_CHANGED: u16 = 1 << 8;
    /// What the guest clears by writing ones.
    pub(super) const EVENTS: u16 = BUTTON | PRESENCE_CHANGED | COMPLETED | LINK_CHANGED;
}

/// Each event, and what lets it interrupt.
const NOTICES: [(u16, u16); 4] = [
    (status::BUTTON, control::BUTTON_ENABLE),
    (status::PRESENCE_CHANGED, control::PRESENCE_ENABLE),
    (status::COMPLETED, control::COMPLETED_ENABLE),
    (status::LINK_CHANGED, control::LINK_ENABLE),
];

/// Data link layer link active, in link status.
const LINK_ACTIVE: u16 = 1 << 13;

/// What the guest's write has done to the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Turned {
    /// The card has lost its power.
    pub(super) off: bool,
    /// The card has got power.
    pub(super) on: bool,
    /// Power and power indicator are off, and were not both before.
    pub(super) settled: bool,
}

/// One slot. Its registers are in the port's config space, which each call is given.
pub(super) struct Slot {
    express: u16,
    card: bool,
}

impl Slot {
    /// Lays out the registers of slot `number` (1 to 8191) in the PCI Express capability at `express`.
    pub(super) fn lay_out(space: &mut ConfigSpace, express: u16, number: u16, card: bool) -> Self {
        let slot = Self { express, card };
        let abilities = ABILITIES | u32::from(number & 0x1fff) << 19;
        space.define_u32(slot.at(register::CAPABILITIES), abilities, 0);
        space.define_u16(slot.at(register::CONTROL), 0, control::WRITABLE);
        space.clears_u16(slot.at(register::STATUS), status::EVENTS);
        slot.power_on(space);
        slot
    }

    /// As the machine's power comes on: the slot has power if there is a card, and nothing has happened.
    pub(super) fn power_on(&self, space: &mut ConfigSpace) {
        let power = if self.card {
            control::POWER_INDICATOR_ON
        } else {
            control::POWER_INDICATOR_OFF | control::POWER_OFF
        };
        space.set_u16(self.at(register::CONTROL), control::ATTENTION_OFF | power);
        space.set_u16(self.at(register::STATUS), 0);
        self.show(space);
    }

    /// There is a card in it.
    pub(super) fn has_card(&self) -> bool {
        self.card
    }

    /// The card has power and is on the link.
    pub(super) fn link_is_up(&self, space: &ConfigSpace) -> bool {
        self.card && self.control(space) & control::POWER_OFF == 0
    }

    /// Power and power indicator are off.
    pub(super) fn is_settled(&self, space: &ConfigSpace) -> bool {
        let off = control::POWER_OFF | control::POWER_INDICATOR_OFF;
        self.control(space) & off == off
    }

    /// The guest has said that it is at it: the power indicator blinks.
    pub(super) fn blinks(&self, space: &ConfigSpace) -> bool {
        self.control(space) & control::POWER_INDICATOR == control::POWER_INDICATOR_BLINKS
    }

    /// The guest wants to hear of the button.
    pub(super) fn listens(&self, space: &ConfigSpace) -> bool {
        let wanted = control::HOTPLUG_ENABLE | control::BUTTON_ENABLE;
        self.control(space) & wanted == wanted
    }

    /// The attention button is pressed.
    pub(super) fn press(&self, space: &mut ConfigSpace) {
        self.happened(space, status::BUTTON);
    }

    /// A card is put in, and the button is pressed: whoever does not act on presence alone is asked that way.
    pub(super) fn insert(&mut self, space: &mut ConfigSpace) {
        self.set_card(space, true);
        self.press(space);
    }

    /// The card is taken out, whether the guest was ready for it or not.
    pub(super) fn take_out(&mut self, space: &mut ConfigSpace) {
        self.set_card(space, false);
    }

    /// The guest has written to the port's config space. `before` is what slot control was; `commanded` says that it was
    /// among what was written. Commands complete at once.
    pub(super) fn written(&self, space: &mut ConfigSpace, before: u16, commanded: bool) -> Turned {
        if !commanded {
            return Turned::default();
        }
        let settling = control::POWER_OFF | control::POWER_INDICATOR_OFF;
        let now = self.control(space);
        let mut events = status::COMPLETED;
        let changed = self.card && (before ^ now) & control::POWER_OFF != 0;
        if changed {
            events |= status::LINK_CHANGED;
            self.show(space);
        }
        self.happened(space, events);
        Turned {
            off: changed && now & control::POWER_OFF != 0,
            on: changed && now & control::POWER_OFF == 0,
            settled: now & settling == settling && before & settling != settling,
        }
    }

    /// Slot control as it is.
    pub(super) fn control(&self, space: &ConfigSpace) -> u16 {
        space.u16(self.at(register::CONTROL))
    }

    /// Whether an access of `length` bytes at `offset` of config space touches slot control.
    pub(super) fn is_control(&self, offset: u16, length: usize) -> bool {
        let start = usize::from(self.at(register::CONTROL));
        let offset = usize::from(offset);
        offset < start + 2 && offset.saturating_add(length) > start
    }

    /// An event that the guest wants to hear of is there (6.7.3.4): the level behind interrupts.
    pub(super) fn notifies(&self, space: &ConfigSpace) -> bool {
        let (control, status) = (self.control(space), space.u16(self.at(register::STATUS)));
        control & control::HOTPLUG_ENABLE != 0
            && NOTICES.iter().any(|(event, enable)| status & event != 0 && control & enable != 0)
    }

    fn set_card(&mut self, space: &mut ConfigSpace, card: bool) {
        if self.card == card {
            return;
        }
        let link = self.link_is_up(space);
        self.card = card;
        self.show(space);
        let link_changed = if self.link_is_up(space) == link { 0 } else { status::LINK_CHANGED };
        self.happened(space, status::PRESENCE_CHANGED | link_changed);
    }

    /// Presence and link as they are.
    fn show(&self, space: &mut ConfigSpace) {
        let link = if self.link_is_up(space) { LINK_ACTIVE } else { 0 };
        let presence = if self.card { status::PRESENT } else { 0 };
        for (register, bit, value) in
            [(register::STATUS, status::PRESENT, presence), (register::LINK_STATUS, LINK_ACTIVE, link)]
        {
            let rest = space.u16(self.at(register)) & !bit;
            space.set_u16(self.at(register), rest | value);
        }
    }

    fn happened(&self, space: &mut ConfigSpace, events: u16) {
        let at = self.at(register::STATUS);
        space.set_u16(at, space.u16(at) | events);
    }

    fn at(&self, register: u16) -> u16 {
        self.express.saturating_add(register)
    }
}
