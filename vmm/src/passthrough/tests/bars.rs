//! What lies behind the BARs.

use std::sync::Arc;

use vfio::fake::{Call, Fake};

use super::{PassthroughDevice, Placement, device, follow, read, write};
use crate::pci::PciDevice;

#[test]
fn the_pages_of_the_table_stay_trapped_and_the_rest_is_mapped() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 0x1c, 0xd001_0000);
    let _ = write(&device, 4, 6);
    fake.calls();
    follow(&device);
    let mapped: Vec<_> = fake.calls();
    assert_eq!(
        mapped,
        [
            Call::DmaMap(0xd000_0000, 0x4000),
            Call::DmaMap(0xd001_1000, 0x1000),
            Call::DmaMap(0xd001_3000, 0x1000)
        ]
    );
}

#[test]
fn data_beside_the_table_is_the_devices() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = device.write_bar(3, 0x800, &[1, 2, 3, 4]);
    let mut data = [0; 4];
    device.read_bar(3, 0x800, &mut data);
    assert_eq!((data, fake.memory_byte(3, 0x801)), ([1, 2, 3, 4], 2));
    // The table itself never reaches it.
    let _ = device.write_bar(3, 0, &[0xf0; 8]);
    assert_eq!(fake.memory_byte(3, 0), 0);
    // An access that is half table is none.
    let _ = device.write_bar(3, 10 * 16 - 4, &[9; 8]);
    assert_eq!(fake.memory_byte(3, 10 * 16), 0);
    let mut torn = [0; 8];
    device.read_bar(3, 10 * 16 - 4, &mut torn);
    assert_eq!(torn, [0xff; 8]);
}

#[test]
fn windows_follow_the_guest() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x10, 0xd000_0000);
    assert!(device.windows().is_empty());
    assert!(write(&device, 4, 2).windows);
    follow(&device);
    fake.calls();
    // Moved while it decodes.
    assert!(write(&device, 0x10, 0xe000_0000).windows);
    assert_eq!(fake.calls(), [Call::DmaUnmap(0xd000_0000, 0x4000)]);
    follow(&device);
    assert_eq!(fake.calls(), [Call::DmaMap(0xe000_0000, 0x4000)]);
    // Off and on between two looks of the host bridge: first out of reach, then no longer decoded.
    let _ = device.write_config(4, &[0, 0]);
    assert_eq!(fake.calls()[..2], [Call::DmaUnmap(0xe000_0000, 0x4000), Call::Config(4, vec![0, 0])]);
    let _ = write(&device, 4, 2);
    assert!(fake.calls().contains(&Call::DmaMap(0xe000_0000, 0x4000)));
    follow(&device);
    assert_eq!(fake.calls(), []);
}

#[test]
fn a_bar_of_256_gib_is_mapped_without_taking_memory() {
    let Some((_vm, fake, device)) = device(Fake::new().bar(0, 256 << 30, 0xc)) else { return };
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let _ = write(&device, 0x14, 0x40);
    let _ = write(&device, 4, 2);
    follow(&device);
    assert_eq!(fake.calls().last(), Some(&Call::DmaMap(256 << 30, 256 << 30)));
    // Other tests take memory and give it back meanwhile.
    assert!(resident().saturating_sub(before) < 64 << 20);
}

#[test]
fn places_that_cannot_be_mapped_are_trapped() {
    let Some((vm, _fake, device)) = device(Fake::nic()) else { return };
    let page = Box::leak(Box::new([0_u8; 8192]));
    let host = page.as_mut_ptr().map_addr(|address| address.next_multiple_of(4096));
    // SAFETY: the page lives for ever.
    let slot = unsafe { vm.map(0xd000_0000, host, 4096, false) }.unwrap();
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 4, 2);
    follow(&device);
    let _ = device.write_bar(0, 8, &[7]);
    let mut byte = [0];
    device.read_bar(0, 8, &mut byte);
    assert_eq!(byte, [7]);
    vm.unmap(slot).unwrap();
}

#[test]
fn sizing_and_wrapping_addresses_decode_nothing() {
    let Some((_vm, _fake, device)) = device(Fake::nic().bar(5, 0x1000, 0)) else { return };
    let _ = write(&device, 4, 2);
    for at in [0x10, 0x14, 0x24] {
        let _ = write(&device, at, 0xffff_ffff);
    }
    assert_eq!(device.windows(), []);
    assert_eq!(read(&device, 0x24), 0xffff_f000);
}

#[test]
fn nothing_stays_mapped_of_a_function_that_is_gone() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 4, 6);
    follow(&device);
    let _ = device.write_bar(0, 0, &[1]);
    assert_eq!(fake.space().maps(), [(0xd000_0000, 0x4000)]);
    fake.vanish();
    assert!(fake.fire(vfio::IrqKind::Err, 0), "the host says that something is wrong");
    let tokens: Vec<_> = device.watched().iter().map(|(_, token)| *token).collect();
    let actions: Vec<_> = tokens.iter().map(|token| device.ready(*token)).collect();
    assert_eq!(actions.iter().filter(|action| **action != crate::Action::None).count(), 1, "{actions:?}");
    assert_eq!(fake.space().maps(), []);
    let mut byte = [0];
    device.read_bar(0, 0, &mut byte);
    assert_eq!(byte, [0xff]);
    // Nor does the host bridge bring it back, whatever the guest or a reset of the machine writes.
    let _ = write(&device, 0x10, 0xe000_0000);
    follow(&device);
    assert!(device.reset().is_err());
    follow(&device);
    assert_eq!(fake.space().maps(), []);
}

#[test]
fn the_guest_sees_the_expansion_rom_where_the_file_says_so() {
    let image: Vec<u8> = (0..5000_u32).map(|at| at.to_le_bytes()[0] ^ 0x55).collect();
    let Some(vm) = super::vm() else { return };
    let fake = Arc::new(Fake::nic().rom(&image));
    let seen = |rom| {
        let placement = Placement { rom, ..super::PLACEMENT };
        PassthroughDevice::new(&vm, Arc::clone(&fake) as _, placement).unwrap()
    };
    let hidden = seen(false);
    let _ = write(&hidden, 0x30, 0xffff_ffff);
    assert_eq!(read(&hidden, 0x30), 0);
    drop(hidden);

    let device = seen(true);
    let _ = write(&device, 0x30, 0xffff_fffe);
    assert_eq!(read(&device, 0x30), 0xffff_e000, "8 KiB");
    let _ = write(&device, 0x30, 0xd000_0001);
    let _ = write(&device, 4, 2);
    assert!(device.windows().iter().any(|window| (window.bar, window.base) == (6, 0xd000_0000)));
    let mut data = [0; 8];
    device.read_bar(6, 0x10, &mut data);
    assert_eq!(data[..], image[0x10..0x18]);
    // Nobody writes it, and behind its end is nothing.
    let _ = device.write_bar(6, 0x10, &[0; 8]);
    device.read_bar(6, 0x10, &mut data);
    assert_eq!(data[..], image[0x10..0x18]);
    device.read_bar(6, 4996, &mut data);
    assert_eq!(data, [image[4996], image[4997], image[4998], image[4999], 0xff, 0xff, 0xff, 0xff]);
}
