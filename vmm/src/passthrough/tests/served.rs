//! A function behind a vfio-user socket, as a guest drives it.

use std::sync::Arc;

use tempfile::TempDir;
use vfio::fake::{Fake, Served};
use vfio::user::UserFunction;
use vfio::{IrqKind, PciFunction};

use super::super::testing::vm;
use super::super::{PassthroughDevice, map_guest_ram};
use super::{PLACEMENT, follow, read, write};
use crate::Action;
use crate::memory::GuestRam;
use crate::pci::PciDevice;
use crate::spec::MemorySpec;
use crate::vm::Vm;

/// A function of a machine, its device and its server; dropped from top to bottom.
struct Socket {
    device: PassthroughDevice,
    function: Arc<UserFunction>,
    fake: Arc<Fake>,
    served: Served,
    _vm: Arc<Vm>,
    _folder: TempDir,
}

/// `None` where there is no KVM.
fn socket() -> Option<Socket> {
    let (vm, folder) = (vm()?, tempfile::tempdir().unwrap());
    let (fake, path) = (Arc::new(Fake::nic()), folder.path().join("nic.sock"));
    let served = Served::start(Arc::clone(&fake), &path);
    let function = UserFunction::connect(&path).unwrap();
    let device = PassthroughDevice::new(&vm, Arc::clone(&function) as _, PLACEMENT).unwrap();
    Some(Socket { device, function, fake, served, _vm: vm, _folder: folder })
}

#[test]
fn its_registers_and_vectors_are_the_servers() {
    let Some(Socket { device, fake, .. }) = &socket() else { return };
    assert_eq!(read(device, 0), 0x10ca_8086);
    let _ = device.write_bar(3, 0x800, &[1, 2, 3, 4]);
    assert_eq!(fake.memory_byte(3, 0x801), 2);
    let _ = write(device, 0x10, 0xd000_0000);
    let _ = write(device, 4, 6);
    follow(device);
    let _ = write(device, 0x70, 0x8000_0000);
    for vector in [0_u64, 9] {
        let _ = device.write_bar(3, vector * 16, &0xfee0_0000_u64.to_le_bytes());
        let _ = device.write_bar(3, vector * 16 + 8, &0x41_u64.to_le_bytes());
    }
    assert!(fake.fire(IrqKind::Msix, 0) && fake.fire(IrqKind::Msix, 9));
    assert!(!fake.fire(IrqKind::Msix, 1), "no vector that the guest has not unmasked");
    device.reset().unwrap();
    assert!(!fake.fire(IrqKind::Msix, 0));
}

#[test]
fn its_dma_is_in_guest_memory() {
    let Some(Socket { device, function, fake, .. }) = &socket() else { return };
    let memory = GuestRam::new(&MemorySpec { size: 64 << 20, hugepages: None, prefault: false }).unwrap();
    map_guest_ram(&memory, &[function.address_space()]).unwrap();
    let _ = write(device, 4, 6);
    fake.dma_write(0x12_3456, b"through a socket").unwrap();
    let region = memory.regions().next().unwrap();
    let mut seen = [0; 16];
    rustix::io::pread(region.file, &mut seen, region.file_offset + 0x12_3456).unwrap();
    assert_eq!(&seen, b"through a socket");
    drop(memory);
    assert!(fake.dma_write(0x12_3456, &[1]).is_err(), "what was taken back is out of reach");
}

#[test]
fn a_server_that_hangs_up_is_a_device_that_is_gone() {
    let Some(Socket { device, served, .. }) = &socket() else { return };
    served.hang_up();
    assert_eq!(read(device, 0), 0xffff_ffff);
    let ready = || {
        let tokens: Vec<_> = device.watched().iter().map(|(_, token)| *token).collect();
        let actions = tokens.into_iter().map(|token| device.ready(token));
        actions.filter(|action| *action != Action::None).collect::<Vec<_>>()
    };
    // Reported once, by its socket, whatever was signalled; and its error eventfd is quiet again.
    let [Action::DeviceError { device: label, what }] = &ready()[..] else { panic!() };
    assert!(label.ends_with("nic.sock") && what.contains("its server hung up"), "{label}: {what}");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(ready(), []);
}
