//! INTx, MSI and MSI-X.

use std::time::{Duration, Instant};

use vfio::IrqKind::{Intx, Msi, Msix};
use vfio::fake::{Call, Fake};

use super::super::PassthroughDevice;
use super::{device, read, write};
use crate::pci::PciDevice;

const ENABLE: u32 = 0x8000_0000;
const MASK_ALL: u32 = 0x4000_0000;

fn entry(device: &PassthroughDevice, vector: u64, masked: bool) {
    let _ = device.write_bar(3, vector * 16, &0xfee0_0000_u64.to_le_bytes());
    let _ = device.write_bar(3, vector * 16 + 8, &(0x4000 | vector).to_le_bytes()[..4]);
    mask(device, vector, masked);
}

fn mask(device: &PassthroughDevice, vector: u64, masked: bool) {
    let _ = device.write_bar(3, vector * 16 + 12, &[masked.into(), 0, 0, 0]);
}

fn pending(device: &PassthroughDevice) -> u64 {
    let mut data = [0; 8];
    device.read_bar(3, 0x2000, &mut data);
    u64::from_le_bytes(data)
}

/// All ten vectors programmed, MSI-X on.
fn running(device: &PassthroughDevice) {
    let _ = write(device, 4, 6);
    let _ = write(device, 0x70, ENABLE | MASK_ALL);
    (0..10).for_each(|vector| entry(device, vector, false));
    let _ = write(device, 0x70, ENABLE);
}

fn one(vector: u32) -> Call {
    Call::SetIrqs(Msix, vector, vec![true])
}

#[test]
fn vectors_are_enabled_one_by_one() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    running(&device);
    let mut wanted = vec![
        Call::SetIrqs(Intx, 0, vec![true]),
        Call::DisableIrqs(Intx),
        // On, so that the device uses no pin any more, with nothing unmasked yet.
        Call::SetIrqs(Msix, 0, vec![false]),
    ];
    wanted.extend((0..10).map(one));
    assert_eq!(fake.irq_calls(), wanted);
}

#[test]
fn masking_a_vector_touches_no_other_and_pending_bits_are_true() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    running(&device);
    fake.irq_calls();
    assert!((0..10).all(|vector| fake.fire(Msix, vector)));
    mask(&device, 3, true);
    assert_eq!(pending(&device), 0, "what was delivered is not pending");
    assert!(fake.fire(Msix, 2) && fake.fire(Msix, 3));
    assert_eq!(pending(&device), 1 << 3);
    assert_eq!(pending(&device), 1 << 3, "reading changes nothing");
    mask(&device, 3, false);
    assert_eq!(pending(&device), 0);
    mask(&device, 3, true);
    assert_eq!(pending(&device), 0, "what was pending was delivered");
    assert_eq!(fake.irq_calls(), []);
}

#[test]
fn the_function_mask_holds_them_all() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    running(&device);
    mask(&device, 5, true);
    let _ = write(&device, 0x70, ENABLE | MASK_ALL);
    fake.fire(Msix, 4);
    fake.fire(Msix, 5);
    assert_eq!(pending(&device), 0b11_0000);
    let _ = write(&device, 0x70, ENABLE);
    assert_eq!(pending(&device), 0b10_0000);
}

#[test]
fn a_vector_that_was_never_unmasked_is_pending_as_the_hardware_says() {
    let Some((_vm, _fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x70, ENABLE);
    entry(&device, 0, false);
    let function = _fake.as_ref() as &dyn vfio::PciFunction;
    function.write(vfio::RegionIndex::Bar(3), 0x2000, &[0xff; 8]).unwrap();
    // Vector 0 is VFIO's; 10 and up do not exist.
    assert_eq!(pending(&device), 0x3fe);
    let _ = write(&device, 0x70, 0);
    assert_eq!(pending(&device), 0);
}

#[test]
fn where_vectors_cannot_be_added_all_begin_anew_and_none_is_lost() {
    let Some((_vm, fake, device)) = device(Fake::nic().vectors(Msix, 10, true)) else { return };
    let _ = write(&device, 0x70, ENABLE);
    fake.calls();
    entry(&device, 0, false);
    entry(&device, 2, false);
    let set = |flags: &[u8]| Call::SetIrqs(Msix, 0, flags.iter().map(|flag| *flag == 1).collect());
    assert_eq!(fake.irq_calls(), [one(0), Call::DisableIrqs(Msix), set(&[1, 0, 1, 0])]);
    entry(&device, 3, false);
    assert_eq!(fake.irq_calls(), [one(3)]);
    // The host has no more than six.
    fake.limit_msix(6);
    entry(&device, 5, false);
    let (eight, six) = (set(&[1, 0, 1, 1, 0, 1, 0, 0]), set(&[1, 0, 1, 1, 0, 1]));
    assert_eq!(fake.irq_calls(), [Call::DisableIrqs(Msix), eight, six]);
    // One more than it has: the others go on.
    entry(&device, 7, false);
    assert_eq!(fake.irq_calls().last(), Some(&set(&[1, 0, 1, 1, 0, 1])));
    assert!(fake.fire(Msix, 5) && !fake.fire(Msix, 7));
}

#[test]
fn quadwords_and_odd_sizes_are_taken() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x70, ENABLE);
    fake.calls();
    let _ = device.write_bar(3, 16, &0xfee0_1000_u64.to_le_bytes());
    let _ = device.write_bar(3, 24, &0x41_u64.to_le_bytes());
    assert_eq!(fake.irq_calls(), [one(1)]);
    let mut data = [0; 8];
    device.read_bar(3, 16, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0xfee0_1000);
    let _ = device.write_bar(3, 24, &[0x42]);
    let mut word = [0; 2];
    device.read_bar(3, 24, &mut word);
    assert_eq!(word, [0x42, 0]);
}

#[test]
fn turning_it_off_and_on_again_forgets_what_was_pending() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    running(&device);
    mask(&device, 3, true);
    fake.fire(Msix, 3);
    let _ = write(&device, 0x70, 0);
    let _ = write(&device, 0x70, ENABLE);
    assert_eq!(pending(&device), 0);
    assert!(fake.fire(Msix, 9) && !fake.fire(Msix, 3));
}

#[test]
fn gsis_are_given_back() {
    let Some((vm, fake, device)) = device(Fake::nic()) else { return };
    let first = vm.allocate_gsi().unwrap();
    vm.release_gsi(first).unwrap();
    running(&device);
    drop(device);
    assert_eq!(vm.allocate_gsi().unwrap(), first);
    let calls = fake.irq_calls();
    assert_eq!(calls.last(), Some(&Call::DisableIrqs(Msix)));
}

#[test]
fn msi_messages_are_masked_one_by_one() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    assert_eq!(read(&device, 0x50) >> 16, 0x0184);
    let _ = write(&device, 0x54, 0xfee0_0000);
    let _ = device.write_config(0x5c, &0x4040_u16.to_le_bytes());
    // Four messages.
    let _ = device.write_config(0x52, &0x0021_u16.to_le_bytes());
    assert_eq!(fake.irq_calls(), [Call::SetIrqs(Msi, 0, vec![true; 4])]);
    let _ = write(&device, 0x60, 0b0100);
    assert!(fake.fire(Msi, 1) && fake.fire(Msi, 2));
    assert_eq!(read(&device, 0x64), 0b0100);
    let _ = write(&device, 0x60, 0);
    assert_eq!(read(&device, 0x64), 0);
    assert_eq!(fake.irq_calls(), []);
    let _ = device.write_config(0x52, &0_u16.to_le_bytes());
    assert_eq!(fake.irq_calls(), [Call::DisableIrqs(Msi)]);
}

#[test]
fn more_messages_than_there_are_get_all_there_are() {
    let Some((_vm, fake, device)) = device(Fake::nic().vectors(Msi, 1, false)) else { return };
    assert_eq!(read(&device, 0x50) >> 16 & 0x7e, 0);
    let _ = device.write_config(0x52, &0x0071_u16.to_le_bytes());
    assert_eq!(fake.irq_calls(), [Call::SetIrqs(Msi, 0, vec![true])]);
}

#[test]
fn the_pin_is_wired_while_nothing_else_is() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    assert_eq!(fake.calls(), []);
    let _ = write(&device, 4, 2);
    let calls: Vec<_> = fake.calls().into_iter().filter(|call| !matches!(call, Call::Config(..))).collect();
    assert_eq!(calls, [Call::SetIrqs(Intx, 0, vec![true]), Call::IntxUnmask(true)]);
    // Disabled in the command register.
    let _ = write(&device, 4, 0x402);
    let calls: Vec<_> = fake.calls().into_iter().filter(|call| !matches!(call, Call::Config(..))).collect();
    assert_eq!(calls, [Call::IntxUnmask(false), Call::DisableIrqs(Intx)]);
    let _ = write(&device, 4, 2);
    let _ = write(&device, 0x70, ENABLE);
    let _ = write(&device, 0x70, 0);
    let msix = [Call::SetIrqs(Msix, 0, vec![false]), Call::DisableIrqs(Msix)];
    let pin = [Call::SetIrqs(Intx, 0, vec![true]), Call::DisableIrqs(Intx)];
    let wanted = [pin.clone().as_slice(), &msix, &pin[..1]].concat();
    assert_eq!(fake.irq_calls(), wanted);
}

#[test]
fn a_reset_ends_them_all() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    running(&device);
    fake.calls();
    device.reset().unwrap();
    assert_eq!(fake.irq_calls(), [Call::DisableIrqs(Msix)]);
    let mut control = [0; 4];
    device.read_bar(3, 12, &mut control);
    assert_eq!(control, [1, 0, 0, 0]);
    running(&device);
    assert!(fake.fire(Msix, 9));
}

#[test]
fn two_thousand_vectors_are_made_as_they_are_used() {
    let fake = Fake::nic().bar(3, 0x10000, 4).put(0x72, &[0xff, 0x07]).put(0x78, &[3, 0x80, 0, 0]);
    let Some((_vm, fake, device)) = device(fake.vectors(Msix, 2048, false)) else { return };
    let started = Instant::now();
    let _ = write(&device, 0x70, ENABLE);
    entry(&device, 2047, false);
    assert!(fake.fire(Msix, 2047) && !fake.fire(Msix, 2046));
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(descriptors < 1000, "{descriptors} descriptors");
    assert!(started.elapsed() < Duration::from_secs(20));
}
