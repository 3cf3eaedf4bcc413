use proptest::prelude::*;

use super::*;

/// What the port has said: messages, and the level of its pin.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Vec<MsiMessage>, bool)>>);

impl PortInterrupt for Heard {
    fn message(&self, message: MsiMessage) {
        self.0.lock().unwrap().0.push(message);
    }

    fn pin(&self, asserted: bool) {
        let mut heard = self.0.lock().unwrap();
        assert_ne!(heard.1, asserted, "told twice");
        heard.1 = asserted;
    }
}

impl Heard {
    fn messages(&self) -> usize {
        self.0.lock().unwrap().0.len()
    }

    fn pin(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

const SLOT_CONTROL: u16 = 0x58;
const SLOT_STATUS: u16 = 0x5a;
const LINK_STATUS: u16 = 0x52;
/// As pciehp enables it: button, presence, command completed, hotplug interrupt, link; both indicators off.
const ENABLED: u16 = 0x1039 | 0x03c0;
const POWER_OFF: u16 = 1 << 10;
const BLINK: u16 = 0b10 << 8;
const ON: u16 = 0b01 << 8;
const POWER_INDICATOR: u16 = 0b11 << 8;

fn port(occupied: bool) -> (RootPort, Heard) {
    let heard = Heard::default();
    (RootPort::new(1, occupied, heard.clone()).unwrap(), heard)
}

fn u32_at(port: &RootPort, offset: u16) -> u32 {
    port.lock().space.u32(offset)
}

fn u16_at(port: &RootPort, offset: u16) -> u16 {
    port.lock().space.u16(offset)
}

fn write(port: &RootPort, offset: u16, value: u16) -> ConfigEffect {
    port.write_config(offset, &value.to_le_bytes())
}

fn signal() -> Arc<Signal> {
    Arc::new(Signal::new().unwrap())
}

/// Where a capability is.
fn capability(port: &RootPort, id: u32) -> u16 {
    let mut at = u32_at(port, 0x34) & 0xff;
    while u32_at(port, u16::try_from(at).unwrap()) & 0xff != id {
        at = u32_at(port, u16::try_from(at).unwrap()) >> 8 & 0xff;
        assert_ne!(at, 0, "the list ends");
    }
    u16::try_from(at).unwrap()
}

/// Has the guest take messages, and all the slot's events.
fn enable(port: &RootPort) {
    let msi = capability(port, 0x05);
    let _ = port.write_config(msi + 4, &0xfee0_1000_u32.to_le_bytes());
    let _ = write(port, msi + 12, 0x41);
    let _ = write(port, msi + 2, 1);
    let keep = u16_at(port, SLOT_CONTROL) & POWER_OFF;
    let _ = write(port, SLOT_CONTROL, ENABLED & !POWER_INDICATOR | ON | keep);
    let _ = write(port, SLOT_STATUS, 0x119);
}

/// Clears the events and says which there were.
fn take_events(port: &RootPort) -> u16 {
    let events = u16_at(port, SLOT_STATUS) & 0x119;
    let _ = write(port, SLOT_STATUS, events);
    events
}

#[test]
fn it_is_a_root_port_with_an_occupied_hotplug_slot() {
    let port = RootPort::new(5, true, Heard::default()).unwrap();
    assert_eq!(u32_at(&port, 0x00), 0x000c_1b36);
    assert_eq!(u32_at(&port, 0x08) >> 8, 0x06_0400);
    assert_eq!(u32_at(&port, 0x34) & 0xff, 0x40);
    assert_eq!(u32_at(&port, 0x3c) >> 8 & 0xff, 1, "INTA");
    assert_eq!(u32_at(&port, 0x40) >> 16, 0x0142);
    assert_eq!(u32_at(&port, 0x54), 5 << 19 | 0x7b, "slot number, and what a slot can have");
    assert_eq!(u32_at(&port, 0x58), 0x0040_01c0, "present; power on, its indicator on, attention off");
    assert_eq!(u32_at(&port, 0x50) >> 16, 0x2104, "link active, x16, 16 GT/s");
}

#[test]
fn firmware_sets_no_ports_aside_for_hotplug() {
    let (port, _) = port(true);
    let at = capability(&port, 0x09);
    let word = |index: u16| u32_at(&port, at + 4 * index);
    assert_eq!(word(0) >> 16, 0x0120);
    assert_eq!([1, 2, 3, 4, 5, 6, 7].map(word), [u32::MAX, 0, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX]);
}

#[test]
fn it_forwards_the_buses_that_were_written() {
    let (port, _) = port(true);
    assert_eq!(port.bridge_buses(), Some((0, 0)));
    assert!(port.write_config(0x18, &[0, 3, 4, 0]).buses);
    assert_eq!(port.bridge_buses(), Some((3, 4)));
    port.reset().unwrap();
    assert_eq!(port.bridge_buses(), Some((0, 0)));
    assert_eq!(u16_at(&port, SLOT_STATUS), 0x0040, "still present");
}

#[test]
fn setting_secondary_bus_reset_resets_once() {
    let (port, _) = port(true);
    assert!(port.write_config(0x3e, &[0x40, 0]).reset_below);
    assert!(!port.write_config(0x3e, &[0x42, 0]).reset_below);
    assert!(!port.write_config(0x3e, &[0x02, 0]).reset_below);
    assert!(port.write_config(0x3c, &[0, 0, 0x40, 0]).reset_below);
}

#[test]
fn windows_have_the_granules_of_a_bridge() {
    let (port, _) = port(true);
    for register in [0x1c, 0x20, 0x24, 0x28, 0x2c] {
        let _ = port.write_config(register, &[0xff; 4]);
    }
    assert_eq!(u32_at(&port, 0x1c) & 0xffff, 0xf0f0);
    assert_eq!(u32_at(&port, 0x20), 0xfff0_fff0);
    assert_eq!(u32_at(&port, 0x24), 0xfff1_fff1);
    assert_eq!(u32_at(&port, 0x28), u32::MAX);
}

#[test]
fn a_card_is_asked_back_by_the_button_and_taken_when_the_slot_is_off() {
    let (port, heard) = port(true);
    enable(&port);
    let (messages, off) = (heard.messages(), signal());
    port.ask_back(Arc::clone(&off));
    assert_eq!(heard.messages(), messages + 1);
    assert_eq!(heard.0.lock().unwrap().0.last(), Some(&MsiMessage { address: 0xfee0_1000, data: 0x41 }));
    assert_eq!(take_events(&port), 0x001, "the button");
    // The guest lets the indicator blink, waits, takes its driver away, and turns the power off.
    let _ = write(&port, SLOT_CONTROL, ENABLED & !POWER_INDICATOR | BLINK);
    assert_eq!(take_events(&port), 0x010, "command completed");
    assert!(port.slot_state().blinks);
    let effect = write(&port, SLOT_CONTROL, ENABLED & !POWER_INDICATOR | BLINK | POWER_OFF);
    assert!(effect.reset_below);
    assert_eq!(take_events(&port), 0x110, "command completed, link changed");
    assert_eq!(u16_at(&port, LINK_STATUS) & 0x2000, 0, "no link");
    assert!(!port.link_is_up());
    assert!(!off.is_raised(), "the indicator blinks still");
    let _ = write(&port, SLOT_CONTROL, ENABLED | POWER_OFF);
    assert!(off.is_raised());
    assert_eq!(take_events(&port), 0x010);
    assert_eq!(u16_at(&port, SLOT_STATUS), 0x0040, "present until it is taken out");
    port.take_out();
    assert_eq!(take_events(&port), 0x008, "presence changed");
    assert_eq!(u16_at(&port, SLOT_STATUS), 0);
}

#[test]
fn a_card_is_put_in_and_gets_power_from_the_guest() {
    let (port, heard) = port(false);
    assert_eq!(u32_at(&port, 0x58), 0x0000_07c0, "empty, without power, indicators off");
    enable(&port);
    let (messages, on) = (heard.messages(), signal());
    port.insert(Arc::clone(&on));
    assert_eq!(heard.messages(), messages + 1);
    assert_eq!(take_events(&port), 0x009, "presence changed, and the button");
    assert!(!port.link_is_up() && !on.is_raised());
    let effect = write(&port, SLOT_CONTROL, ENABLED & !POWER_INDICATOR | BLINK);
    assert!(!effect.reset_below);
    assert!(port.link_is_up() && on.is_raised());
    assert_eq!(take_events(&port), 0x110, "command completed, link changed");
    assert_eq!(u16_at(&port, LINK_STATUS) & 0x2000, 0x2000);
}

#[test]
fn a_slot_that_was_left_on_links_at_once() {
    let (port, _) = port(true);
    port.take_out();
    assert_eq!(take_events(&port), 0x108, "presence and link changed");
    assert!(!port.link_is_up());
    let on = signal();
    port.insert(Arc::clone(&on));
    assert!(port.link_is_up() && on.is_raised());
    assert_eq!(take_events(&port), 0x109);
}

#[test]
fn a_press_that_fell_on_deaf_ears_is_repeated_and_one_that_was_heard_is_not() {
    let (port, _) = port(true);
    enable(&port);
    port.ask_back(signal());
    assert_eq!(take_events(&port), 0x001);
    port.press_again();
    assert_eq!(take_events(&port), 0x001);
    let _ = write(&port, SLOT_CONTROL, ENABLED & !POWER_INDICATOR | BLINK);
    take_events(&port);
    port.press_again();
    assert_eq!(take_events(&port), 0, "it would call the removal off");
    port.forget_waiting();
    let off = signal();
    port.ask_back(Arc::clone(&off));
    assert_eq!(take_events(&port), 0, "nor does one who asks again after their time was up");
    let _ = write(&port, SLOT_CONTROL, ENABLED | POWER_OFF | POWER_INDICATOR);
    assert!(off.is_raised());
}

#[test]
fn a_slot_that_is_off_gives_its_card_at_once_and_so_does_a_reset() {
    let (port, _) = port(true);
    let _ = write(&port, SLOT_CONTROL, ENABLED | POWER_OFF);
    let off = signal();
    port.ask_back(Arc::clone(&off));
    assert!(off.is_raised());
    port.reset().unwrap();
    assert!(port.link_is_up(), "as after power-on");
    let off = signal();
    port.ask_back(Arc::clone(&off));
    assert!(!off.is_raised());
    port.reset().unwrap();
    assert!(off.is_raised());
}

#[test]
fn without_messages_the_pin_follows_the_events() {
    let (port, heard) = port(true);
    let _ = write(&port, SLOT_CONTROL, 0x0029 | ON);
    assert!(!heard.pin(), "completion is not asked for");
    port.ask_back(signal());
    assert!(heard.pin());
    let _ = write(&port, 0x04, 1 << 10);
    assert!(!heard.pin(), "INTx is disabled");
    let _ = write(&port, 0x04, 0);
    assert!(heard.pin());
    let _ = write(&port, capability(&port, 0x05) + 2, 1);
    assert!(!heard.pin(), "by a message from now on");
    assert_eq!(heard.messages(), 1);
    let _ = write(&port, SLOT_STATUS, 0x1);
    let _ = write(&port, capability(&port, 0x05) + 2, 0);
    assert!(!heard.pin());
}

#[test]
fn one_level_is_one_message() {
    let (port, heard) = port(true);
    enable(&port);
    let messages = heard.messages();
    port.ask_back(signal());
    port.press_again();
    port.take_out();
    assert_eq!(heard.messages(), messages + 1, "the level has not fallen");
    take_events(&port);
    port.insert(signal());
    assert_eq!(heard.messages(), messages + 2);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u16, Vec<u8>),
    Insert,
    AskBack,
    PressAgain,
    TakeOut,
    Reset,
}

fn any_step() -> impl Strategy<Value = Step> {
    // Naturally aligned, as the host bridge has it; the slot and the messages more often than the rest.
    let offset = prop_oneof![3 => 0x50_u16..0x60, 1 => 0x80_u16..0xd0, 1 => 0_u16..4096];
    let write = (offset, 0..3_u32, any::<u32>()).prop_map(|(offset, shift, value)| {
        let length = 1_usize << shift;
        let offset = offset & !(u16::try_from(length).unwrap() - 1);
        Step::Write(offset, value.to_le_bytes()[..length].to_vec())
    });
    prop_oneof![
        8 => write,
        1 => Just(Step::Insert),
        1 => Just(Step::AskBack),
        1 => Just(Step::PressAgain),
        1 => Just(Step::TakeOut),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_confuses_the_slot(occupied: bool, steps in prop::collection::vec(any_step(), 0..40)) {
        let (port, heard) = port(occupied);
        let mut card = occupied;
        let mut asked: Option<Arc<Signal>> = None;
        for step in steps {
            let link = port.link_is_up();
            let mut resets_below = false;
            match &step {
                Step::Write(offset, data) => resets_below = port.write_config(*offset, data).reset_below,
                Step::Insert if !card => {
                    (card, asked) = (true, None);
                    port.insert(signal());
                }
                Step::AskBack if card => {
                    let off = signal();
                    port.ask_back(Arc::clone(&off));
                    asked = Some(off);
                }
                Step::Insert | Step::AskBack => {}
                Step::PressAgain => port.press_again(),
                Step::TakeOut => {
                    (card, asked) = (false, None);
                    port.take_out();
                }
                Step::Reset => port.reset().unwrap(),
            }
            let state = port.slot_state();
            prop_assert_eq!(state.card, card);
            prop_assert_eq!(u16_at(&port, SLOT_STATUS) & 0x40 != 0, card, "presence");
            prop_assert_eq!(u16_at(&port, LINK_STATUS) & 0x2000 != 0, state.on, "link");
            prop_assert_eq!(state.on, card && u16_at(&port, SLOT_CONTROL) & POWER_OFF == 0);
            if let Step::Write(..) = step {
                prop_assert!(!link || state.on || resets_below, "it lost its power and was not reset");
            }
            if state.settled && card && let Some(asked) = &asked {
                prop_assert!(asked.is_raised(), "whoever waits for it is told");
            }
            let enabled = u16_at(&port, capability(&port, 0x05) + 2) & 1 != 0;
            prop_assert!(!(enabled && heard.pin()), "a message or the pin");
        }
    }
}
