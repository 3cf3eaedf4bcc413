//! Config space and capabilities.

use std::sync::Arc;

use vfio::fake::{Call, Fake};

use super::super::testing::vm;
use super::super::{Error, PassthroughDevice};
use super::{PLACEMENT, device, follow, read, write};
use crate::Action;
use crate::pci::{BarKind, PciDevice};

/// Ids of the standard list as a guest walks it.
fn standard(device: &PassthroughDevice) -> Vec<u8> {
    let mut ids = Vec::new();
    let mut at = read(device, 0x34).to_le_bytes()[0];
    while at != 0 && ids.len() < 100 {
        let [id, next, ..] = read(device, at.into()).to_le_bytes();
        ids.push(id);
        at = next;
    }
    ids
}

fn extended(device: &PassthroughDevice) -> Vec<u16> {
    let (mut ids, mut at) = (Vec::new(), 0x100);
    while at != 0 && ids.len() < 100 {
        let header = read(device, at);
        if header == 0 {
            break;
        }
        ids.push(u16::try_from(header & 0xffff).unwrap());
        at = u16::try_from(header >> 20).unwrap();
    }
    ids
}

fn refusal(fake: Fake) -> Option<String> {
    let result = PassthroughDevice::new(&vm()?, Arc::new(fake), PLACEMENT);
    Some(result.err().expect("it is refused").to_string())
}

#[test]
fn the_header_is_a_mix_of_the_devices_and_ours() {
    let Some((_vm, _fake, device)) = device(Fake::nic().put(0x2c, &[0x86, 0x80, 0x01, 0xa0])) else { return };
    assert_eq!(read(&device, 0), 0x10ca_8086);
    assert_eq!(read(&device, 8), 0x0200_0001);
    assert_eq!(read(&device, 0x2c), 0xa001_8086);
    assert_eq!(read(&device, 0x3c), 0x0100);
    let _ = write(&device, 0x3c, 0xffff_ffff);
    assert_eq!(read(&device, 0x3c), 0x01ff);
    let _ = write(&device, 0, 0);
    assert_eq!(read(&device, 0), 0x10ca_8086);
}

#[test]
fn a_function_without_a_pin_has_none_for_the_guest() {
    let Some((_vm, fake, device)) = device(Fake::nic().vectors(vfio::IrqKind::Intx, 0, false)) else {
        return;
    };
    assert_eq!(read(&device, 0x3c), 0);
    let _ = write(&device, 4, 7);
    assert_eq!(fake.irq_calls(), []);
}

#[test]
fn dead_functions_and_bridges_are_refused_with_a_reason() {
    let Some(why) = refusal(Fake::new().named("0000:65:10.2").put(0, &[0xff; 4096])) else { return };
    assert!(
        why.starts_with("0000:65:10.2 cannot be given to a guest: its config space reads all ones"),
        "{why}"
    );
    assert!(why.contains("D3cold") && why.contains("rescan") && why.contains("cold boot"), "{why}");
    let bridge = refusal(Fake::new().put(0x0e, &[1])).unwrap();
    assert!(bridge.contains("bridge"), "{bridge}");
    let port = refusal(Fake::new().list(&[0x40]).put(0x40, &[0x10, 0, 0x42])).unwrap();
    assert!(port.contains("port"), "{port}");
    let huge = refusal(Fake::new().bar(0, 1 << 32, 0)).unwrap();
    assert!(huge.contains("BAR 0 claims"), "{huge}");
}

#[test]
fn vanishing_at_start_is_an_error_not_a_panic() {
    let Some(vm) = vm() else { return };
    let fake = Fake::nic();
    fake.vanish();
    let result = PassthroughDevice::new(&vm, Arc::new(fake), PLACEMENT);
    assert!(matches!(result.err(), Some(Error::Function(vfio::Error::Gone { .. }))));
}

#[test]
fn capabilities_are_filtered_and_linked_anew() {
    // Hypertransport first, then power management, enhanced allocation, MSI-X.
    let fake = Fake::nic()
        .list(&[0xe0, 0x40, 0xd0, 0x70])
        .put(0xe0, &[0x08])
        .put(0xd0, &[0x14])
        .put(0x71, &[0])
        .put(0xe4, &[0x55; 4]);
    let Some((_vm, _fake, device)) = device(fake) else { return };
    assert_eq!(standard(&device), [0x01, 0x11]);
    assert_eq!((read(&device, 0xe0), read(&device, 0xe4)), (0, 0));
}

#[test]
fn a_list_of_only_hidden_ones_is_no_list() {
    let Some((_vm, _fake, device)) = device(Fake::new().list(&[0x40]).put(0x40, &[0x08])) else { return };
    assert!(standard(&device).is_empty());
    assert_eq!(read(&device, 4) >> 16 & 0x10, 0);
}

#[test]
fn lists_that_loop_or_lead_astray_end() {
    let looped = Fake::nic().put(0xa1, &[0x40]).put(0x150, &(0x100_u32 << 20 | 0x1000e).to_le_bytes());
    let Some((_vm, _fake, device)) = device(looped) else { return };
    assert_eq!(standard(&device), [0x01, 0x05, 0x11, 0x10]);
    assert_eq!(extended(&device), [0x01]);
    let astray = Fake::nic().put(0x41, &[0x10]).put(0x100, &[0xff; 4]);
    let (_vm, _fake, device) = super::device(astray).unwrap();
    assert_eq!(standard(&device), [0x01]);
    assert!(extended(&device).is_empty());
}

#[test]
fn extended_capabilities_of_the_host_are_hidden() {
    let Some((_vm, _fake, device)) = device(Fake::nic()) else { return };
    assert_eq!(extended(&device), [0x01]);
    assert_eq!((read(&device, 0x104), read(&device, 0x164)), (0xabab_abab, 0));
}

#[test]
fn a_hidden_first_one_leaves_a_nameless_header() {
    let fake = Fake::nic().extended(&[(0x100, 0x10), (0x200, 0x03), (0x300, 0x15), (0x400, 0x0b)]);
    let Some((_vm, _fake, device)) = device(fake) else { return };
    assert_eq!(extended(&device), [0, 0x03, 0x0b]);
    assert_eq!(read(&device, 0x100), 0x200 << 20);
}

#[test]
fn cxl_is_hidden_and_other_vendors_are_not() {
    let fake = Fake::nic()
        .extended(&[(0x100, 0x23), (0x200, 0x23)])
        .put(0x104, &0x1e98_u16.to_le_bytes())
        .put(0x204, &0x10de_u16.to_le_bytes());
    let Some((_vm, _fake, device)) = device(fake) else { return };
    assert_eq!(extended(&device), [0, 0x23]);
}

#[test]
fn express_is_an_endpoint_whose_link_is_not_the_guests() {
    let integrated = Fake::nic().put(0xa2, &[0x92]);
    let Some((_vm, fake, device)) = device(integrated) else { return };
    assert_eq!(read(&device, 0xa0) >> 16, 0x0002);
    assert_eq!(read(&device, 0xac) & 0x3ff, 0x11);
    // LTR and OBFF in Device Control 2 stay as the host has them; the rest is the guest's.
    let _ = device.write_config(0xa0 + 0x28, &0x7c0f_u16.to_le_bytes());
    let _ = device.write_config(0xa0 + 0x10, &0xffff_u16.to_le_bytes());
    assert_eq!(fake.calls(), [Call::Config(0xc8, vec![0x0f]), Call::Config(0xc9, vec![0])]);
}

#[test]
fn the_command_register_is_written_through_without_intx_disable() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = device.write_config(4, &0x0406_u16.to_le_bytes());
    assert!(fake.calls().contains(&Call::Config(4, vec![6, 0])));
    assert_eq!(read(&device, 4) & 0xffff, 0x0406);
}

#[test]
fn a_huge_bar_is_sized_as_any_other() {
    let Some((_vm, _fake, device)) = device(Fake::new().bar(0, 256 << 30, 0xc).bar(2, 0x20, 1)) else {
        return;
    };
    let bars: Vec<_> = device.bars().iter().map(|bar| (bar.index, bar.kind, bar.size)).collect();
    assert_eq!(bars, [(0, BarKind::Memory64 { prefetchable: true }, 256 << 30), (2, BarKind::Io, 0x20)]);
    for at in [0x10, 0x14, 0x18] {
        let _ = write(&device, at, 0xffff_ffff);
    }
    assert_eq!(
        (read(&device, 0x10), read(&device, 0x14), read(&device, 0x18)),
        (0xc, 0xffff_ffc0, 0xffff_ffe1)
    );
}

#[test]
fn a_reset_that_the_guest_asks_for_resets_and_leaves_power_on_state() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 4, 6);
    follow(&device);
    let _ = write(&device, 0x70, 0x8000_0000);
    fake.calls();
    let effect = device.write_config(0xa8, &0xa810_u16.to_le_bytes());
    assert_eq!((effect.windows, effect.action), (true, Action::None));
    let calls = fake.calls();
    let at = |wanted: &Call| calls.iter().position(|call| call == wanted);
    let (quiet, off, reset) =
        (at(&Call::Config(4, vec![0, 0])), at(&Call::DisableIrqs(vfio::IrqKind::Msix)), at(&Call::Reset));
    assert!(quiet.is_some() && quiet < off && off < reset, "{calls:?}");
    assert_eq!((read(&device, 4) & 0xffff, read(&device, 0x10), read(&device, 0x70) >> 31), (0, 4, 0));
    assert_eq!(device.windows(), []);
}

#[test]
fn a_reset_that_fails_reaches_the_policy() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    fake.fail_resets();
    let effect = device.write_config(0xa9, &[0x80]);
    assert!(matches!(effect.action, Action::DeviceError { .. }));
    assert!(device.reset().is_err());
}

#[test]
fn no_reset_is_offered_where_there_is_none() {
    let Some((_vm, fake, device)) = device(Fake::nic().without_reset()) else { return };
    assert_eq!(read(&device, 0xa4) >> 28, 0);
    let _ = device.write_config(0xa9, &[0x80]);
    assert!(!fake.calls().contains(&Call::Reset));
    assert_eq!(device.reset(), Ok(()));
}

#[test]
fn deep_sleep_takes_the_windows_and_waking_starts_over() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 4, 6);
    follow(&device);
    let _ = device.write_config(0x44, &[3]);
    assert_eq!(device.windows(), []);
    assert!(fake.calls().contains(&Call::Config(0x44, vec![3, 0])));
    let _ = device.write_config(0x44, &[0]);
    assert!(fake.calls().contains(&Call::Config(0x44, vec![0, 0])));
    assert_eq!(read(&device, 4) & 0xffff, 0);
    // One that keeps its state (No_Soft_Reset) is where it was.
    let (_vm, _fake, device) = super::device(Fake::nic().put(0x44, &[8])).unwrap();
    let _ = write(&device, 0x10, 0xd000_0000);
    let _ = write(&device, 4, 6);
    let _ = device.write_config(0x44, &[3]);
    let _ = device.write_config(0x44, &[0]);
    assert_eq!(device.windows().len(), 1);
}

#[test]
fn a_function_that_is_gone_reads_ones_and_says_so_once() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    fake.vanish();
    let mut data = [0; 4];
    device.read_bar(0, 0, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(read(&device, 0), 0xffff_ffff);
    let _ = device.write_bar(0, 0, &data);
    let reports = || {
        let tokens: Vec<_> = device.watched().iter().map(|(_, token)| *token).collect();
        tokens.into_iter().filter(|token| device.ready(*token) != Action::None).count()
    };
    assert_eq!(reports(), 1);
    device.read_bar(0, 0, &mut data);
    assert_eq!(reports(), 0);
}

#[test]
fn a_driver_that_looks_whether_the_device_is_there_is_told() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    let reports = || {
        let tokens: Vec<_> = device.watched().iter().map(|(_, token)| *token).collect();
        tokens.into_iter().filter(|token| device.ready(*token) != Action::None).count()
    };
    // Off the bus for a while: nothing that VFIO calls gone.
    fake.lose_link();
    assert_eq!((read(&device, 0), reports()), (0xffff_ffff, 0));
    fake.vanish();
    assert_eq!((read(&device, 0), reports()), (0xffff_ffff, 1));
}

#[test]
fn errors_and_requests_reach_the_policy() {
    let Some((_vm, fake, device)) = device(Fake::nic()) else { return };
    assert!(fake.fire(vfio::IrqKind::Err, 0) && fake.fire(vfio::IrqKind::Req, 0));
    let tokens: Vec<_> = device.watched().iter().map(|(_, token)| *token).collect();
    let said: Vec<_> = tokens
        .into_iter()
        .filter_map(|token| match device.ready(token) {
            Action::DeviceError { device, what } => Some((device, what)),
            _ => None,
        })
        .collect();
    assert_eq!(said.len(), 2);
    assert!(said.iter().all(|(device, _)| device == "fake"));
    assert!(said[0].1.contains("AER") && said[1].1.contains("host asks"), "{said:?}");
}
