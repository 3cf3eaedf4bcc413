//! Large BARs, from the device to where the guest sees them.

use std::sync::Arc;

use vfio::fake::{Call, Fake};

use super::super::testing::vm;
use super::super::{PassthroughDevice, Placement};
use super::PLACEMENT;
use crate::bus::Bus;
use crate::pci::root_port::NoInterrupt;
use crate::pci::{self, Devfn, PciDevice, Place, Request, Root, RootPort, Space};
use crate::vm::Vm;

const GIB: u64 = 1 << 30;

/// An accelerator with 256 GiB and 16 GiB of memory, both prefetchable, and its registers.
fn accelerator() -> Arc<Fake> {
    let fake = Fake::new().named("0000:65:00.0").bar(0, 256 * GIB, 0xc).bar(2, 16 * GIB, 0xc);
    Arc::new(fake.bar(4, 0x10000, 0))
}

/// A hierarchy with nothing but the function behind a root port.
fn hierarchy(vm: &Arc<Vm>, fake: &Arc<Fake>) -> (Root, Arc<PassthroughDevice>) {
    let root = Root::new(Arc::new(Bus::new()), Arc::new(Bus::new()));
    let port = Devfn::new(1, 0).unwrap();
    root.add(Place::Root(port), Arc::new(RootPort::new(1, true, NoInterrupt).unwrap())).unwrap();
    let placement = Placement { peer_to_peer: true, ..PLACEMENT };
    let device = Arc::new(PassthroughDevice::new(vm, Arc::clone(fake) as _, placement).unwrap());
    root.add(Place::Behind { port, function: 0 }, Arc::clone(&device) as _).unwrap();
    (root, device)
}

fn space(phys_bits: u8) -> Space {
    Space { ram_end: 6 * GIB, phys_bits, iova: Some(vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1]) }
}

/// Plans, programs, and looks at every level: plan, registers, host bridge, maps.
fn places_all(vm: &Arc<Vm>, phys_bits: u8) {
    let fake = accelerator();
    let (root, device) = hierarchy(vm, &fake);
    let plan = pci::plan(&Request::of(&root, space(phys_bits))).unwrap();
    plan.program(&root);
    let windows: Vec<_> =
        device.windows().iter().map(|window| (window.bar, window.base, window.size)).collect();
    let [(0, large, size), (2, small, 0x4_0000_0000), (4, registers, 0x10000)] = windows[..] else {
        panic!("{windows:x?}");
    };
    assert_eq!((large % (256 * GIB), size, small % (16 * GIB)), (0, 256 * GIB, 0));
    assert!(small >= 6 * GIB && (small + 16 * GIB <= large || small >= large + 256 * GIB));
    assert!(large + size <= 1 << phys_bits && registers < 4 * GIB);
    let mut maps: Vec<_> = fake.calls().into_iter().filter(|call| matches!(call, Call::DmaMap(..))).collect();
    maps.sort_by_key(|call| matches!(call, Call::DmaMap(at, _) if *at == large));
    assert_eq!(maps.last(), Some(&Call::DmaMap(large, size)), "{maps:x?}");
    assert_eq!(fake.space().maps().len(), 3);
    // The guest's memory decoding goes off and on: the same place again.
    let _ = device.write_config(4, &[0, 0]);
    assert!(fake.space().maps().is_empty());
    let _ = device.write_config(4, &[6, 0]);
    assert!(fake.space().maps().contains(&(large, size)));
}

/// Refused: which BAR of which function, and where the addresses end.
fn is_refused(vm: &Arc<Vm>, phys_bits: u8) {
    let (root, device) = hierarchy(vm, &accelerator());
    let error = pci::plan(&Request::of(&root, space(phys_bits))).unwrap_err().to_string();
    assert!(error.starts_with("BAR 0 of 0000:65:00.0 (256 GiB) finds no place"), "{error}");
    assert!(error.contains(&format!("0x180000000 to {:#x}", 1_u64 << phys_bits)), "{error}");
    assert!(error.contains(&format!("maps {phys_bits} bits of a guest's addresses")), "{error}");
    assert_eq!(device.windows(), [], "nothing was programmed");
}

#[test]
fn two_huge_bars_of_one_function_are_placed() {
    let Some(vm) = vm() else { return };
    // 39 bits have room for 256 GiB from 256 GiB on, and for the other one below.
    for bits in [39, 40, 46, 48, 52] {
        places_all(&vm, bits);
    }
}

#[test]
fn where_nested_paging_reaches_less_the_bar_is_named() {
    let Some(vm) = vm() else { return };
    for bits in [36, 38] {
        is_refused(&vm, bits);
    }
}
