use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::bus::Bus;
use crate::layout;
use crate::pci::config_space::offset;
use crate::pci::root_port::NoInterrupt;
use crate::pci::{ConfigEffect, PciDevice, RootPort, Window};

const GIB: u64 = 1 << 30;
const MEMORY32: BarKind = BarKind::Memory32 { prefetchable: false };
const MEMORY64: BarKind = BarKind::Memory64 { prefetchable: false };
const PREFETCHABLE: BarKind = BarKind::Memory64 { prefetchable: true };

fn port(device: u8) -> Devfn {
    Devfn::new(device, 0).unwrap()
}

fn bar(index: u8, kind: BarKind, size: u64) -> BarSpec {
    BarSpec { index, kind, size }
}

fn function(device: u8, function: u8, bars: &[BarSpec]) -> Function {
    let place = Place::Behind { port: port(device), function };
    Function { place, label: format!("card {device}.{function}"), bars: bars.to_vec() }
}

fn request(phys_bits: u8, functions: Vec<Function>) -> Request {
    let space = Space { ram_end: 6 * GIB, phys_bits, iova: None };
    Request { space, ports: (1..=8).map(port).collect(), functions, spare: Spare::default() }
}

fn address(plan: &Plan, device: u8, index: u8) -> u64 {
    let place = Place::Behind { port: port(device), function: 0 };
    let placed = plan.bars.iter().find(|placed| placed.place == place && placed.bar.index == index);
    placed.unwrap().address.unwrap()
}

#[test]
fn a_network_card_lies_in_the_windows_of_its_port() {
    let card = [bar(0, MEMORY32, 0x2_0000), bar(2, BarKind::Io, 0x20), bar(3, PREFETCHABLE, 0x4000)];
    let plan = plan(&request(46, vec![function(1, 0, &card)])).unwrap();
    assert_eq!(address(&plan, 1, 0), layout::MMIO32_START);
    assert_eq!(address(&plan, 1, 2), 0xc000);
    assert_eq!(address(&plan, 1, 3), 6 * GIB);
    let expected = Bridge {
        port: port(1),
        bus: 1,
        io: Some(0xc000..0xd000),
        memory: Some(0x8000_0000..0x8010_0000),
        prefetchable: Some(6 * GIB..6 * GIB + 0x10_0000),
    };
    assert_eq!(plan.bridges[0], expected);
    assert_eq!(plan.bridges[7], Bridge { port: port(8), bus: 8, io: None, memory: None, prefetchable: None });
    assert_eq!(plan.windows.mmio64, Some(6 * GIB..0xfd_0000_0000));
}

#[test]
fn bars_of_256_gib_are_placed_naturally_aligned() {
    let gpu = [bar(0, MEMORY32, 16 << 20), bar(1, PREFETCHABLE, 256 * GIB), bar(3, PREFETCHABLE, 32 << 20)];
    let gpus: Vec<_> = (1..=8).map(|device| function(device, 0, &gpu)).collect();
    let two = plan(&request(46, gpus[..2].to_vec())).unwrap();
    assert_eq!((address(&two, 1, 1), address(&two, 2, 1)), (256 * GIB, 512 * GIB));
    assert_eq!(two.windows.mmio64, Some(6 * GIB..0xfd_0000_0000));
    let eight = plan(&request(46, gpus)).unwrap();
    for device in 1..=8 {
        assert_eq!(address(&eight, device, 1) % (256 * GIB), 0);
        assert!(address(&eight, device, 1) >= layout::HYPERTRANSPORT_HOLE.end);
    }
    assert_eq!(eight.windows.mmio64, Some(0x100_0000_0000..1 << 46));
}

#[test]
fn a_bar_too_large_for_the_processor_is_named() {
    let gpu = [bar(1, PREFETCHABLE, 256 * GIB)];
    let error = plan(&request(38, vec![function(3, 0, &gpu)])).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("BAR 1 of card 3.0 (256 GiB) finds no place in the 64-bit addresses"), "{text}");
    let rom = [bar(0, MEMORY32, GIB), bar(1, MEMORY32, GIB)];
    let text = plan(&request(46, vec![function(3, 0, &rom)])).unwrap_err().to_string();
    assert!(
        text.contains("BAR 0 of card 3.0 (1 GiB) finds no place in the 32-bit window 0x80000000"),
        "{text}"
    );
    let crooked = [bar(0, MEMORY32, 0x3000)];
    assert!(matches!(plan(&request(46, vec![function(3, 0, &crooked)])), Err(PlanError::Malformed { .. })));
}

#[test]
fn non_prefetchable_64_bit_bars_stay_low_until_they_do_not_fit() {
    let small = plan(&request(46, vec![function(1, 0, &[bar(0, MEMORY64, 1 << 20)])])).unwrap();
    assert!(address(&small, 1, 0) < layout::MMIO32_END);
    let cards = [bar(0, MEMORY64, GIB), bar(2, MEMORY64, 0x4000)];
    let large = plan(&request(46, vec![function(1, 0, &cards), function(2, 0, &cards)])).unwrap();
    assert!(address(&large, 1, 0) >= layout::HIGH_RAM_START);
    assert!(address(&large, 2, 0) < layout::MMIO32_END);
    assert!(address(&large, 1, 2) < layout::MMIO32_END);
}

#[test]
fn the_iommus_holes_stay_empty() {
    let mut request =
        request(46, vec![function(1, 0, &[bar(0, MEMORY32, 1 << 20), bar(2, PREFETCHABLE, 64 * GIB)])]);
    request.space.iova = Some(vec![
        0..=0x8fff_ffff,
        0x9100_0000..=0xfedf_ffff,
        0xfef0_0000..=(64 * GIB - 1),
        100 * GIB..=(1 << 39) - 1,
    ]);
    let plan = plan(&request).unwrap();
    assert_eq!(address(&plan, 1, 2), 128 * GIB);
    assert_eq!(plan.windows.mmio64, Some(100 * GIB..1 << 39));
}

#[test]
fn without_room_above_4_gib_everything_goes_below() {
    let mut low = request(32, vec![function(1, 0, &[bar(0, PREFETCHABLE, 1 << 20)])]);
    low.space.ram_end = GIB;
    let plan = plan(&low).unwrap();
    assert!(address(&plan, 1, 0) < layout::MMIO32_END);
    assert_eq!(plan.windows.mmio64, None);
}

#[test]
fn io_bars_beyond_the_window_are_left_without_an_address() {
    let cards =
        (1..=8).map(|device| function(device, 0, &[bar(0, BarKind::Io, 0x20), bar(1, MEMORY32, 0x1000)]));
    let plan = plan(&request(46, cards.collect())).unwrap();
    assert!(plan.unplaced().count() > 0);
    assert!(plan.unplaced().all(|placed| placed.bar.kind == BarKind::Io));
}

#[test]
fn empty_ports_have_windows_for_what_comes_later() {
    let card = [bar(0, MEMORY32, 0x2_0000), bar(3, PREFETCHABLE, 128 << 20)];
    let exact = request(46, vec![function(1, 0, &card)]);
    let plan_with = |spare| plan(&Request { spare, ..exact.clone() }).unwrap();
    let spare = plan_with(Spare::USUAL);
    let sizes = |bridge: &Bridge| {
        [&bridge.memory, &bridge.prefetchable]
            .map(|window| window.as_ref().map_or(0, |window| window.end - window.start))
    };
    assert_eq!(sizes(&spare.bridges[0]), [2 << 20, 128 << 20]);
    assert!(spare.bridges[1..].iter().all(|bridge| sizes(bridge) == [2 << 20, 64 << 20]));
    assert!(spare.bridges.iter().all(|bridge| bridge.io.is_none()));
    let too_much = plan_with(Spare { memory: 1 << 30, prefetchable: 0 });
    assert_eq!(too_much, plan(&exact).unwrap(), "what is there comes first");
}

/// A card whose registers are its config space.
struct Card(std::sync::Mutex<crate::pci::ConfigSpace>);

impl PciDevice for Card {
    fn label(&self) -> &str {
        "card"
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.0.lock().unwrap().write(offset, data)
    }
    fn bars(&self) -> Vec<BarSpec> {
        self.0.lock().unwrap().bars()
    }
    fn windows(&self) -> Vec<Window> {
        self.0.lock().unwrap().windows()
    }
}

fn card(bars: &[BarSpec]) -> Arc<Card> {
    let identity =
        crate::pci::Identity { vendor: 1, device: 2, revision: 0, class: 0x02_0000, subsystem: None };
    let mut space = crate::pci::ConfigSpace::new(crate::pci::Header::Endpoint, identity);
    for bar in bars {
        space.add_bar(*bar).unwrap();
    }
    space.define_u8(offset::INTERRUPT_PIN, 2, 0);
    Arc::new(Card(std::sync::Mutex::new(space)))
}

#[test]
fn a_programmed_plan_is_what_the_registers_say() {
    let root = Root::new(Arc::new(Bus::new()), Arc::new(Bus::new()));
    for device in [1, 2] {
        root.add(
            Place::Root(port(device)),
            Arc::new(RootPort::new(device.into(), true, NoInterrupt).unwrap()),
        )
        .unwrap();
    }
    let bars = [
        bar(0, MEMORY32, 0x2_0000),
        bar(1, PREFETCHABLE, 256 * GIB),
        bar(3, BarKind::Io, 0x20),
        bar(6, MEMORY32, 0x1_0000),
    ];
    let card = card(&bars);
    let seat = Place::Behind { port: port(2), function: 0 };
    root.add(seat, card.clone()).unwrap();

    let plan = plan(&Request::of(&root, Space { ram_end: 6 * GIB, phys_bits: 46, iova: None })).unwrap();
    plan.program(&root);

    let expected = [
        Window { bar: 0, io: false, base: address(&plan, 2, 0), size: 0x2_0000 },
        Window { bar: 1, io: false, base: 256 * GIB, size: 256 * GIB },
        Window { bar: 3, io: true, base: 0xc000, size: 0x20 },
    ];
    assert_eq!(card.windows(), expected);
    let u32_at = |place, offset| {
        let mut data = [0; 4];
        root.read_config(place, offset, &mut data);
        u32::from_le_bytes(data)
    };
    let (empty, full) = (Place::Root(port(1)), Place::Root(port(2)));
    assert_eq!(u32_at(seat, 0x04) & 0xffff, 3, "decodes, and does not master the bus");
    assert_eq!(u32_at(seat, 0x30), u32::try_from(address(&plan, 2, 6)).unwrap(), "the ROM is off");
    assert_eq!(u32_at(seat, 0x3c) & 0xff, 16 + 3, "INTB behind device 2");
    assert_eq!(u32_at(full, 0x04) & 0xffff, 7);
    assert_eq!(u32_at(full, 0x18), 0x0002_0200);
    assert_eq!(u32_at(full, 0x1c) & 0xffff, 0xc0c0);
    assert_eq!(u32_at(full, 0x20), 0x8000_8000);
    assert_eq!((u32_at(full, 0x24), u32_at(full, 0x28), u32_at(full, 0x2c)), (0xfff1_0001, 0x40, 0x7f));
    assert_eq!(u32_at(empty, 0x18), 0x0001_0100);
    assert_eq!(u32_at(empty, 0x1c) & 0xffff, 0x00f0);
    assert_eq!((u32_at(empty, 0x20), u32_at(empty, 0x24)), (0x0000_fff0, 0x0001_fff1));
}

fn any_bars() -> impl Strategy<Value = Vec<BarSpec>> {
    let memory = (0..4_u8, 4..39_u32).prop_map(|(kind, shift)| match kind {
        0 => (MEMORY32, 1_u64 << shift.min(27)),
        1 => (BarKind::Memory32 { prefetchable: true }, 1 << shift.min(27)),
        2 => (MEMORY64, 1 << shift),
        _ => (PREFETCHABLE, 1 << shift),
    });
    let io = (2..9_u32).prop_map(|shift| (BarKind::Io, 1_u64 << shift));
    prop::collection::vec(prop_oneof![4 => memory, 1 => io], 0..4).prop_map(|bars| {
        let mut index = 0;
        let mut all = Vec::new();
        for (kind, size) in bars {
            if index < 5 {
                all.push(bar(index, kind, size));
                index += 2;
            }
        }
        all
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let seats = prop::collection::btree_map((1..12_u8, 0..4_u8), any_bars(), 0..12);
    let iova = prop::option::of(prop::sample::select(vec![
        vec![0..=0xfedf_ffff, 0xfef0_0000..=(1_u64 << 39) - 1],
        vec![0..=0xfedf_ffff, 0xfef0_0000..=0xfc_ffff_ffff, 0x100_0000_0000..=u64::MAX],
        vec![0..=0x9fff_ffff, 0xa800_0000..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1],
    ]));
    let spare = prop_oneof![
        Just(Spare::default()),
        Just(Spare::USUAL),
        Just(Spare { memory: 0x30_0000, prefetchable: 0 }),
        Just(Spare { memory: 1 << 30, prefetchable: 1 << 40 }),
    ];
    (seats, iova, 36..53_u8, 0..2048_u64, spare).prop_map(|(seats, iova, phys_bits, ram, spare)| {
        let mut functions: Vec<_> =
            seats.into_iter().map(|((device, number), bars)| function(device, number, &bars)).collect();
        // One endpoint without a port.
        functions.push(Function {
            place: Place::Root(port(20)),
            label: "integrated".into(),
            bars: vec![bar(0, MEMORY32, 0x1000), bar(4, PREFETCHABLE, 0x4000)],
        });
        let space = Space { ram_end: ram << 28, phys_bits, iova };
        Request { space, ports: (1..12).map(port).collect(), functions, spare }
    })
}

fn check(request: &Request, plan: &Plan) {
    let mut ranges: Vec<(bool, Range<u64>)> = Vec::new();
    for placed in &plan.bars {
        let io = placed.bar.kind == BarKind::Io;
        let Some(base) = placed.address else {
            assert!(io, "{placed:?} has no address");
            continue;
        };
        let (size, range) = (placed.bar.size, base..base + placed.bar.size);
        assert_eq!(base % size, 0, "{placed:?}");
        if io {
            assert!(range.start >= 0xc000 && range.end <= 0xffff);
        } else {
            assert_eq!(base % PAGE, 0);
            let low = plan.windows.mmio32.start <= range.start && range.end <= plan.windows.mmio32.end;
            let high = plan
                .windows
                .mmio64
                .as_ref()
                .is_some_and(|high| high.start <= range.start && range.end <= high.end);
            assert!(low || (high && matches!(placed.bar.kind, BarKind::Memory64 { .. })), "{placed:?}");
            if let Some(iova) = &request.space.iova {
                assert!(
                    iova.iter().any(|part| part.contains(&range.start) && part.contains(&(range.end - 1)))
                );
            }
        }
        if let Place::Behind { port, .. } = placed.place {
            let bridge = plan.bridges.iter().find(|bridge| bridge.port == port).unwrap();
            let windows = [&bridge.io, &bridge.memory, &bridge.prefetchable];
            let holds = |window: &Range<u64>| window.start <= range.start && range.end <= window.end;
            assert!(windows.into_iter().flatten().any(holds), "{placed:?} in {bridge:?}");
        }
        ranges.push((io, range));
    }
    if let Some(high) = &plan.windows.mmio64 {
        assert!(high.start >= request.space.ram_end.max(4 * GIB) && high.end <= 1 << request.space.phys_bits);
        let hole = layout::HYPERTRANSPORT_HOLE;
        assert!(high.end <= hole.start || high.start >= hole.end || request.space.phys_bits < 40);
    }
    no_overlap(ranges);
    let mut windows = Vec::new();
    for bridge in &plan.bridges {
        windows.extend(bridge.io.clone().map(|window| (true, window)));
        for window in [&bridge.memory, &bridge.prefetchable].into_iter().flatten() {
            assert!(window.start % MEMORY_GRANULE == 0 && window.end % MEMORY_GRANULE == 0);
            windows.push((false, window.clone()));
        }
        assert!(bridge.memory.as_ref().is_none_or(|window| window.end <= 4 * GIB));
    }
    no_overlap(windows);
}

fn no_overlap(mut ranges: Vec<(bool, Range<u64>)>) {
    ranges.sort_by_key(|(io, range)| (*io, range.start));
    for pair in ranges.windows(2) {
        assert!(pair[0].0 != pair[1].0 || pair[0].1.end <= pair[1].1.start, "{pair:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_keeps_all_its_promises(request in any_request()) {
        if let Ok(first) = plan(&request) {
            check(&request, &first);
            let mut shuffled = request.clone();
            shuffled.functions.reverse();
            shuffled.ports.reverse();
            prop_assert_eq!(plan(&shuffled), Ok(first));
        }
    }

    #[test]
    fn what_easily_fits_is_placed(
        cards in prop::collection::vec((4..27_u32, 4..39_u32), 1..8),
        phys_bits in 43..53_u8,
    ) {
        let functions = (1..).zip(&cards).map(|(device, (small, large))| {
            function(device, 0, &[bar(0, MEMORY32, 1 << small), bar(2, PREFETCHABLE, 1 << large)])
        });
        let request = request(phys_bits, functions.collect());
        let plan = plan(&request).unwrap();
        check(&request, &plan);
    }
}
