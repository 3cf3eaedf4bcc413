use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::layout;
use crate::legacy::PowerManagement;
use crate::pci::host_bridge::PowerOn;
use crate::pci::root_port::NoInterrupt;
use crate::pci::{BarKind, BarSpec, ConfigSpace, Header, Identity, RootPort, Window, host_bridge};

/// A function with BARs that remembers where it was moved, and answers BAR reads with its tag.
struct Card {
    label: String,
    tag: u8,
    space: Mutex<ConfigSpace>,
    moves: Mutex<Vec<(u8, Option<u64>)>>,
    resets: AtomicU32,
}

impl Card {
    fn new(tag: u8, bars: &[(u8, BarKind, u64)]) -> Arc<Self> {
        let identity =
            Identity { vendor: 0x1234, device: tag.into(), revision: 0, class: 0x02_0000, subsystem: None };
        let mut space = ConfigSpace::new(Header::Endpoint, identity);
        for (index, kind, size) in bars {
            space.add_bar(BarSpec { index: *index, kind: *kind, size: *size }).unwrap();
        }
        // As if the physical function had siblings.
        space.define_u8(0x0e, 0x80, 0);
        Arc::new(Self {
            label: format!("card {tag}"),
            tag,
            space: Mutex::new(space),
            moves: Mutex::default(),
            resets: AtomicU32::new(0),
        })
    }

    fn moves(&self) -> Vec<(u8, Option<u64>)> {
        std::mem::take(&mut *self.moves.lock().unwrap())
    }
}

impl PciDevice for Card {
    fn label(&self) -> &str {
        &self.label
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        assert!(
            matches!(data.len(), 1 | 2 | 4)
                && usize::from(offset).is_multiple_of(data.len())
                && offset < 0x1000
        );
        self.space.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        assert!(
            matches!(data.len(), 1 | 2 | 4)
                && usize::from(offset).is_multiple_of(data.len())
                && offset < 0x1000
        );
        self.space.lock().unwrap().write(offset, data)
    }
    fn bars(&self) -> Vec<BarSpec> {
        self.space.lock().unwrap().bars()
    }
    fn windows(&self) -> Vec<Window> {
        self.space.lock().unwrap().windows()
    }
    fn window_moved(&self, bar: u8, base: Option<u64>) {
        self.moves.lock().unwrap().push((bar, base));
    }
    fn read_bar(&self, bar: u8, _: u64, data: &mut [u8]) {
        data.fill(self.tag << 4 | bar);
    }
    fn reset(&self) -> Result<(), String> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.space.lock().unwrap().reset();
        if self.tag == 0xe { Err("it does not answer".into()) } else { Ok(()) }
    }
}

const MEMORY32: BarKind = BarKind::Memory32 { prefetchable: false };
const MEMORY64: BarKind = BarKind::Memory64 { prefetchable: true };

fn port(device: u8) -> Devfn {
    Devfn::new(device, 0).unwrap()
}

fn behind(device: u8, function: u8) -> Place {
    Place::Behind { port: port(device), function }
}

/// Host bridge, LPC bridge, and root ports at devices 1 and 2.
struct Guest {
    root: Arc<Root>,
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
}

fn hierarchy() -> Guest {
    hierarchy_at(PowerOn::Programmed)
}

fn hierarchy_at(power_on: PowerOn) -> Guest {
    let (mmio, pio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let root = Arc::new(Root::new(Arc::clone(&mmio), Arc::clone(&pio)));
    root.attach().unwrap();
    let host = host_bridge::host_bridge(root.ecam(), power_on);
    root.add(Place::Root(port(0)), Arc::new(host)).unwrap();
    let pm = Arc::new(PowerManagement::new(Box::new(|_| {})));
    root.add(Place::Root(port(0x1f)), Arc::new(host_bridge::lpc_bridge(pm, power_on))).unwrap();
    root.add(Place::Root(port(1)), Arc::new(RootPort::new(1, true, NoInterrupt).unwrap())).unwrap();
    root.add(Place::Root(port(2)), Arc::new(RootPort::new(2, true, NoInterrupt).unwrap())).unwrap();
    Guest { root, mmio, pio }
}

impl Guest {
    fn byte(&self, address: u64) -> u8 {
        let mut data = [0];
        self.mmio.read(address, &mut data);
        data[0]
    }

    fn ecam(&self, bus: u8, devfn: Devfn, offset: u16) -> u64 {
        layout::ECAM_START + (u64::from(bus) << 20) + (u64::from(devfn.0) << 12) + u64::from(offset)
    }

    fn read(&self, bus: u8, devfn: Devfn, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(self.ecam(bus, devfn, offset), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, bus: u8, devfn: Devfn, offset: u16, data: &[u8]) {
        assert_eq!(self.mmio.write(self.ecam(bus, devfn, offset), data), Action::None);
    }

    fn read_by_ports(&self, bus: u8, devfn: Devfn, offset: u8) -> u32 {
        let address = 1 << 31 | u32::from(bus) << 16 | u32::from(devfn.0) << 8 | u32::from(offset);
        assert_eq!(self.pio.write(0xcf8, &address.to_le_bytes()), Action::None);
        let mut data = [0; 4];
        self.pio.read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    /// Gives a card's first BAR an address and turns its memory on.
    fn place_bar0(&self, bus: u8, address: u64) {
        self.write(bus, Devfn(0), 0x10, &address.to_le_bytes());
        self.write(bus, Devfn(0), 0x04, &[6, 0]);
    }
}

#[test]
fn both_ways_of_config_access_reach_the_same_functions() {
    let guest = hierarchy();
    for (devfn, id) in
        [(port(0), 0x29c0_8086), (port(0x1f), 0x2918_8086), (port(1), 0x000c_1b36), (port(3), u32::MAX)]
    {
        assert_eq!(guest.read(0, devfn, 0), id);
        assert_eq!(guest.read_by_ports(0, devfn, 0), id);
    }
    assert_eq!(guest.read(0, port(0), 0xffc), 0);
    let mut halves = [0; 8];
    guest.mmio.read(guest.ecam(0, port(0), 0), &mut halves);
    assert_eq!(halves[..4], 0x29c0_8086_u32.to_le_bytes());
    let mut crooked = [0; 2];
    let _ = guest.pio.write(0xcf8, &0x8000_0000_u32.to_le_bytes());
    guest.pio.read(0xcfd, &mut crooked);
    assert_eq!(crooked, [0x80, 0xc0]);
}

#[test]
fn without_the_enable_bit_the_data_port_is_nothing() {
    let guest = hierarchy();
    let _ = guest.pio.write(0xcf8, &0_u32.to_le_bytes());
    let mut data = [0; 4];
    guest.pio.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4]);
    guest.pio.read(0xcf8, &mut data);
    assert_eq!(data, [0; 4]);
    let _ = guest.pio.write(0xcf8, &u32::MAX.to_le_bytes());
    guest.pio.read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
}

#[test]
fn the_reset_control_register_lies_in_the_address_register() {
    let guest = hierarchy();
    assert_eq!(guest.pio.write(0xcf9, &[0x02]), Action::None);
    let mut byte = [0];
    guest.pio.read(0xcf9, &mut byte);
    assert_eq!(byte, [0x02]);
    assert_eq!(guest.pio.write(0xcf9, &[0x06]), Action::Reset);
    assert_eq!(guest.pio.write(0xcf9, &[0x0e]), Action::Reset);
    assert_eq!(guest.pio.write(0xcf8, &0x8000_0600_u32.to_le_bytes()), Action::None);
    guest.root.reset();
    guest.pio.read(0xcf9, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn config_cycles_follow_the_bus_numbers_of_root_ports() {
    let guest = hierarchy();
    guest.root.add(behind(1, 0), Card::new(1, &[])).unwrap();
    guest.root.add(behind(2, 0), Card::new(2, &[])).unwrap();
    guest.root.add(behind(2, 3), Card::new(3, &[])).unwrap();
    assert_eq!(guest.read(1, Devfn(0), 0), u32::MAX);
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.write(0, port(2), 0x18, &[0, 5, 6]);
    assert_eq!(guest.read(1, Devfn(0), 0), 0x0001_1234);
    assert_eq!(guest.read(5, Devfn(0), 0), 0x0002_1234);
    assert_eq!(guest.read(5, Devfn(3), 0), 0x0003_1234);
    assert_eq!(guest.read_by_ports(5, Devfn(3), 0), 0x0003_1234);
    for (bus, devfn) in [(1, Devfn(8)), (5, Devfn(1)), (6, Devfn(0)), (7, Devfn(0)), (255, Devfn(255))] {
        assert_eq!(guest.read(bus, devfn, 0), u32::MAX, "{bus}:{devfn}");
    }
}

#[test]
fn only_function_0_with_siblings_is_multi_function() {
    let guest = hierarchy();
    guest.root.add(behind(1, 0), Card::new(1, &[])).unwrap();
    guest.root.add(behind(2, 0), Card::new(2, &[])).unwrap();
    guest.root.add(behind(2, 1), Card::new(3, &[])).unwrap();
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.write(0, port(2), 0x18, &[0, 2, 2]);
    let header_type = |bus, devfn| guest.read(bus, devfn, 0x0c) >> 16;
    assert_eq!(header_type(1, Devfn(0)), 0);
    assert_eq!(header_type(2, Devfn(0)), 0x80);
    assert_eq!(header_type(2, Devfn(1)), 0);
    assert_eq!(header_type(0, port(1)), 1);
    let mut byte = [0];
    guest.mmio.read(guest.ecam(2, Devfn(0), 0x0e), &mut byte);
    assert_eq!(byte, [0x80]);
}

#[test]
fn bars_come_and_go_with_their_windows() {
    let guest = hierarchy();
    let card = Card::new(1, &[(0, MEMORY64, 0x4000), (2, BarKind::Io, 0x20)]);
    guest.root.add(behind(1, 0), card.clone()).unwrap();
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.place_bar0(1, 0x9000_0000);
    assert_eq!(guest.byte(0x9000_3fff), 0x10);
    assert_eq!(card.moves(), [(0, Some(0x9000_0000))]);
    guest.write(1, Devfn(0), 0x10, &0xa000_0000_u32.to_le_bytes());
    assert_eq!((guest.byte(0x9000_0000), guest.byte(0xa000_0000)), (0xff, 0x10));
    assert_eq!(card.moves(), [(0, None), (0, Some(0xa000_0000))]);
    guest.write(1, Devfn(0), 0x18, &0xc000_u32.to_le_bytes());
    guest.write(1, Devfn(0), 0x04, &[1, 0]);
    let mut byte = [0];
    guest.pio.read(0xc01f, &mut byte);
    assert_eq!((byte, guest.byte(0xa000_0000)), ([0x12], 0xff));
    assert_eq!(card.moves(), [(0, None), (2, Some(0xc000))]);
    assert_eq!(guest.root.reset(), []);
    guest.pio.read(0xc01f, &mut byte);
    assert_eq!((byte, card.moves()), ([0xff], vec![(2, None)]));
}

#[test]
fn the_later_of_two_overlapping_windows_waits_until_there_is_room() {
    let guest = hierarchy();
    let cards = [Card::new(1, &[(0, MEMORY32, 0x1000)]), Card::new(2, &[(0, MEMORY32, 0x2000)])];
    for (device, card) in [1, 2].into_iter().zip(&cards) {
        guest.root.add(behind(device, 0), card.clone()).unwrap();
        guest.write(0, port(device), 0x18, &[0, device, device]);
        guest.write(device, Devfn(0), 0x10, &0x9000_0000_u32.to_le_bytes());
        guest.write(device, Devfn(0), 0x04, &[2, 0]);
    }
    assert_eq!((guest.byte(0x9000_0000), guest.byte(0x9000_1000)), (0x10, 0xff));
    assert_eq!(cards[1].moves(), []);
    guest.write(1, Devfn(0), 0x04, &[0, 0]);
    assert_eq!((guest.byte(0x9000_0000), guest.byte(0x9000_1000)), (0x20, 0x20));
    assert_eq!(cards[1].moves(), [(0, Some(0x9000_0000))]);
}

#[test]
fn no_bar_decodes_over_memory_or_interrupt_controllers() {
    let guest = hierarchy();
    guest.root.reserve(0x1_0000_0000..0x2_0000_0000);
    let card = Card::new(1, &[(0, MEMORY64, 0x10_0000)]);
    guest.root.add(behind(1, 0), card.clone()).unwrap();
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.write(1, Devfn(0), 0x04, &[2]);
    for address in
        [0x10_0000, 0x7ff0_0000, 0xe000_0000, 0xfee0_0000, 0xfff0_0000, 0x1_0000_0000, 0x1_fff0_0000_u64]
    {
        guest.write(1, Devfn(0), 0x10, &address.to_le_bytes());
        assert_eq!(card.moves().last().copied().unwrap_or((0, None)), (0, None), "{address:#x}");
    }
    guest.write(1, Devfn(0), 0x10, &0x2_0000_0000_u64.to_le_bytes());
    assert_eq!(card.moves().last(), Some(&(0, Some(0x2_0000_0000))));
}

#[test]
fn ecam_and_power_management_go_where_firmware_puts_them() {
    let guest = hierarchy_at(PowerOn::Bare);
    let at = |address: u64| {
        let mut data = [0; 4];
        guest.mmio.read(address, &mut data);
        u32::from_le_bytes(data)
    };
    let control = |port: u64| {
        let mut data = [0; 2];
        guest.pio.read(port, &mut data);
        u16::from_le_bytes(data)
    };
    let put = |devfn, offset, value: u32| {
        guest.read_by_ports(0, devfn, offset);
        assert_eq!(guest.pio.write(0xcfc, &value.to_le_bytes()), Action::None);
    };
    assert_eq!((at(0xe000_0000), control(0x604)), (u32::MAX, 0xffff));
    put(port(0x1f), 0x44, 0x80);
    for (base, before) in [(0x600, 0xb004), (0xb000, 0x604)] {
        put(port(0x1f), 0x40, base | 1);
        assert_eq!((control(u64::from(base) + 4), control(before)), (1, 0xffff));
    }
    for (base, before) in [(0xe000_0000, 0xb000_0000), (0xb000_0000_u32, 0xe000_0000)] {
        put(port(0), 0x60, base | 1);
        assert_eq!((at(base.into()), at(before)), (0x29c0_8086, u32::MAX));
    }
    // Over RAM and the firmware it is not decoded.
    for base in [0x1000_0000_u32, 0xf000_0000] {
        put(port(0), 0x60, base | 1);
        assert_eq!((at(base.into()), at(0xb000_0000)), (u32::MAX, u32::MAX), "{base:#x}");
    }
    guest.root.reset();
    assert_eq!((at(0xb000_0000), control(0xb004)), (u32::MAX, 0xffff));
}

#[test]
fn secondary_bus_reset_resets_what_is_below_and_nothing_else() {
    let guest = hierarchy();
    let cards = [Card::new(1, &[(0, MEMORY32, 0x1000)]), Card::new(2, &[]), Card::new(3, &[])];
    for (place, card) in [behind(1, 0), behind(1, 1), behind(2, 0)].into_iter().zip(&cards) {
        guest.root.add(place, card.clone()).unwrap();
    }
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.place_bar0(1, 0x9000_0000);
    guest.write(0, port(1), 0x3e, &[0x40, 0]);
    guest.write(0, port(1), 0x3e, &[0x00, 0]);
    assert_eq!(cards.each_ref().map(|card| card.resets.load(Ordering::Relaxed)), [1, 1, 0]);
    assert_eq!(guest.byte(0x9000_0000), 0xff);
    assert_eq!(guest.read(1, Devfn(0), 0), 0x0001_1234);
}

#[test]
fn a_function_that_does_not_reset_is_named() {
    let guest = hierarchy();
    guest.root.add(behind(1, 0), Card::new(0xe, &[])).unwrap();
    assert_eq!(
        guest.root.reset(),
        [ResetFailure { device: "card 14".into(), why: "it does not answer".into() }]
    );
}

#[test]
fn functions_may_be_removed_and_added_again() {
    let guest = hierarchy();
    let card = Card::new(1, &[(0, MEMORY32, 0x1000)]);
    guest.root.add(behind(1, 0), card.clone()).unwrap();
    assert_eq!(guest.root.add(behind(1, 0), card.clone()), Err(AddError::Taken(behind(1, 0))));
    assert_eq!(guest.root.add(behind(9, 0), card.clone()), Err(AddError::NoPort(behind(9, 0))));
    assert_eq!(guest.root.add(behind(2, 8), card.clone()), Err(AddError::NoFunction(behind(2, 8))));
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.place_bar0(1, 0x9000_0000);
    assert!(guest.root.remove(behind(1, 0)).is_some());
    assert_eq!((guest.read(1, Devfn(0), 0), guest.byte(0x9000_0000)), (u32::MAX, 0xff));
    guest.root.add(behind(2, 0), card).unwrap();
    assert_eq!(guest.byte(0x9000_0000), 0x10);
}

#[test]
fn a_bar_can_be_read_while_others_reconfigure() {
    let guest = hierarchy();
    let cards = [Card::new(1, &[(0, MEMORY64, 0x1000)]), Card::new(2, &[(0, MEMORY64, 0x1000)])];
    for (device, card) in [1, 2].into_iter().zip(&cards) {
        guest.root.add(behind(device, 0), card.clone()).unwrap();
        guest.write(0, port(device), 0x18, &[0, device, device]);
    }
    std::thread::scope(|scope| {
        for bus in [1, 2] {
            let guest = &guest;
            scope.spawn(move || {
                for round in 0..500_u64 {
                    guest.place_bar0(bus, 0x9000_0000 + (round % 2) * 0x1000);
                    guest.byte(0x9000_0000);
                    guest.write(bus, Devfn(0), 0x04, &[0, 0]);
                }
            });
        }
    });
    guest.place_bar0(2, 0x9000_0000);
    assert_eq!(guest.byte(0x9000_0000), 0x20);
}

#[derive(Clone, Debug)]
enum Access {
    Ecam(u32, Vec<u8>),
    Port(u8, Vec<u8>),
    Address(u8, u8, u8),
    /// Where an attack has a chance: the header of a function that is there.
    Header(u8, u8, u8, Vec<u8>),
    Reset,
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    prop_oneof![
        2 => (0..0x0fff_ffff_u32, bytes()).prop_map(|(offset, data)| Access::Ecam(offset, data)),
        2 => (0..8_u8, bytes()).prop_map(|(offset, data)| Access::Port(offset, data)),
        2 => (0..3_u8, any::<u8>(), any::<u8>()).prop_map(|(bus, devfn, offset)| Access::Address(bus, devfn, offset)),
        8 => (0..3_u8, 0..24_u8, 0..0x48_u8, bytes()).prop_map(|(bus, devfn, offset, data)| Access::Header(bus, devfn, offset, data)),
        1 => Just(Access::Reset),
    ]
}

proptest! {
    #[test]
    fn garbage_in_every_register_leaves_the_windows_in_order(accesses in prop::collection::vec(access(), 1..200)) {
        let guest = hierarchy();
        let bars = [(0, MEMORY64, 0x1_0000), (2, MEMORY32, 0x1000), (3, BarKind::Io, 0x20), (6, MEMORY32, 0x800)];
        let cards = [Card::new(1, &bars), Card::new(2, &bars)];
        for (device, card) in [1, 2].into_iter().zip(&cards) {
            guest.root.add(behind(device, 0), card.clone()).unwrap();
            guest.write(0, port(device), 0x18, &[0, device, device]);
        }
        let mut decoded: BTreeMap<(usize, u8), u64> = BTreeMap::new();
        for access in accesses {
            let mut answer = [0; 8];
            match access {
                Access::Ecam(offset, data) => {
                    let address = layout::ECAM_START + u64::from(offset);
                    let _ = guest.mmio.write(address, &data);
                    guest.mmio.read(address, &mut answer[..data.len()]);
                }
                Access::Port(offset, data) => {
                    let _ = guest.pio.write(0xcf8 + u64::from(offset), &data);
                    guest.pio.read(0xcf8 + u64::from(offset), &mut answer[..data.len()]);
                }
                Access::Address(bus, devfn, offset) => {
                    guest.read_by_ports(bus, Devfn(devfn), offset);
                }
                Access::Header(bus, devfn, offset, data) => {
                    let _ = guest.mmio.write(guest.ecam(bus, Devfn(devfn), offset.into()), &data);
                }
                Access::Reset => {
                    guest.root.reset();
                }
            }
            // What each card was told is where the bus finds it, and each window the bus has is one the card decodes.
            for (index, card) in cards.iter().enumerate() {
                for (bar, base) in card.moves() {
                    match base {
                        Some(base) => prop_assert_eq!(decoded.insert((index, bar), base), None),
                        None => prop_assert!(decoded.remove(&(index, bar)).is_some()),
                    }
                }
                let windows = card.windows();
                for ((_, bar), base) in decoded.range((index, 0)..=(index, 6)) {
                    prop_assert!(windows.iter().any(|window| window.bar == *bar && window.base == *base));
                }
            }
            for ((index, bar), base) in &decoded {
                let mut byte = [0];
                let bus = if *bar == 3 { &guest.pio } else { &guest.mmio };
                bus.read(*base, &mut byte);
                prop_assert_eq!(byte[0], cards[*index].tag << 4 | bar);
            }
        }
    }
}

#[test]
fn nothing_is_found_behind_a_slot_without_power() {
    let guest = hierarchy();
    let card = Card::new(1, &[(0, MEMORY32, 0x1000)]);
    guest.root.add(behind(1, 0), card.clone()).unwrap();
    guest.write(0, port(1), 0x18, &[0, 1, 1]);
    guest.place_bar0(1, 0x9000_0000);
    assert_eq!(guest.byte(0x9000_0000), 0x10);
    // Slot control: power off, indicator off.
    guest.write(0, port(1), 0x58, &[0xc0, 0x07]);
    assert_eq!(guest.read(1, Devfn(0), 0), u32::MAX);
    assert_eq!(guest.byte(0x9000_0000), 0xff, "its windows are gone");
    assert_eq!(card.resets.load(Ordering::Relaxed), 1);
    guest.write(1, Devfn(0), 0x04, &[2, 0]);
    guest.write(0, port(1), 0x58, &[0xc0, 0x01]);
    assert_eq!(guest.read(1, Devfn(0), 0), 0x0001_1234);
    assert_eq!(guest.byte(0x9000_0000), 0xff, "what was written meanwhile went nowhere");
}
