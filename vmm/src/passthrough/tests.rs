//! The function as a guest drives it, on a real KVM machine.

mod bars;
mod config;
mod dma;
mod garbage;
mod interrupts;
mod placement;
mod served;
mod vanish;

use std::sync::Arc;

use vfio::fake::Fake;

use super::testing::vm;
use super::{PassthroughDevice, Placement};
use crate::pci::PciDevice;
use crate::vm::Vm;

const PLACEMENT: Placement = Placement { intx_gsi: 17, multifunction: false, rom: false, peer_to_peer: true };

/// A function in a machine; `None` where there is no KVM.
fn device(fake: Fake) -> Option<(Arc<Vm>, Arc<Fake>, PassthroughDevice)> {
    let (vm, fake) = (vm()?, Arc::new(fake));
    let device = PassthroughDevice::new(&vm, Arc::clone(&fake) as _, PLACEMENT).unwrap();
    fake.calls();
    Some((vm, fake, device))
}

fn read(device: &PassthroughDevice, at: u16) -> u32 {
    let mut data = [0; 4];
    device.read_config(at, &mut data);
    u32::from_le_bytes(data)
}

fn write(device: &PassthroughDevice, at: u16, value: u32) -> crate::pci::ConfigEffect {
    device.write_config(at, &value.to_le_bytes())
}

/// Does what the host bridge does after a config write.
fn follow(device: &PassthroughDevice) {
    let windows = device.windows();
    for bar in 0..7 {
        let base = windows.iter().find(|window| window.bar == bar).map(|window| window.base);
        device.window_moved(bar, base);
    }
}
