//! PCI: config space by both ways, root ports, BARs that move, MSI-X of a function that is passed through.

use std::sync::Arc;

use throughway_vmm::bus::{Bus, BusDevice};
use throughway_vmm::legacy::PowerManagement;
use throughway_vmm::passthrough::{PassthroughDevice, Placement};
use throughway_vmm::pci::host_bridge::{PowerOn, host_bridge, lpc_bridge};
use throughway_vmm::pci::{Devfn, PciDevice, Place, PortInterrupt, Root, RootPort};
use throughway_vmm::virtio::VirtioFunction;
use throughway_vmm::virtio::rng::Rng;
use throughway_vmm::vm::{MsiMessage, Signal, Vm};
use vfio::fake::Fake;

use super::driver::{Driver, vm};
use super::random::Random;
use super::session::{Clock, fuzz};

/// A hierarchy as machines have it: the chipset, two ports with a device each, and an empty one.
struct Hierarchy {
    root: Arc<Root>,
    ports: Vec<Arc<RootPort>>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    fake: Arc<Fake>,
}

/// Interrupts of root ports, which nobody hears.
struct Unheard;

impl PortInterrupt for Unheard {
    fn message(&self, _: MsiMessage) {}

    fn pin(&self, _: bool) {}
}

fn hierarchy(power_on: PowerOn) -> Option<Hierarchy> {
    let (vm, ram) = (vm()?, Driver::ram());
    let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let root = Arc::new(Root::new(Arc::clone(&mmio), Arc::clone(&pio)));
    root.attach().unwrap();
    let fake = Arc::new(Fake::nic());
    let pm: Arc<dyn BusDevice> = Arc::new(PowerManagement::new(Box::new(|_| {})));
    root.add(Place::Root(Devfn(0)), Arc::new(host_bridge(root.ecam(), power_on))).unwrap();
    root.add(Place::Root(Devfn::new(31, 0).unwrap()), Arc::new(lpc_bridge(pm, power_on))).unwrap();
    let mut ports = Vec::new();
    for number in 1..4_u8 {
        let port = Devfn::new(number, 0).unwrap();
        let bridge = Arc::new(RootPort::new(number.into(), number < 3, Unheard).unwrap());
        root.add(Place::Root(port), Arc::clone(&bridge) as _).unwrap();
        ports.push(bridge);
        let place = Place::Behind { port, function: 0 };
        let device: Arc<dyn PciDevice> = match number {
            1 => Arc::new(VirtioFunction::new(&vm, &ram, "fuzzed", Box::new(Rng), 17).unwrap()),
            2 => Arc::new(passed_through(&vm, &fake)),
            _ => continue,
        };
        root.add(place, device).unwrap();
    }
    Some(Hierarchy { root, ports, pio, mmio, fake })
}

fn passed_through(vm: &Arc<Vm>, fake: &Arc<Fake>) -> PassthroughDevice {
    let placement = Placement { intx_gsi: 18, multifunction: false, rom: false, peer_to_peer: false };
    PassthroughDevice::new(vm, Arc::clone(fake) as _, placement).unwrap()
}

/// An address in config space: of a bus, device and function that may be there, at a register that matters.
fn config(random: &mut Random) -> (u64, usize) {
    let (bus, device) = (random.below(256), random.below(32));
    let (bus, device) = (random.pick(&[0, 0, 1, 2, 3, bus]), random.pick(&[0, 1, 2, 3, 31, device]));
    let function = if random.once_in(8) { random.below(8) } else { 0 };
    let length = random.pick(&[1, 2, 4]);
    let register = match random.below(4) {
        0 => random.below(0x1000),
        1 => random.pick(&[
            0x04, 0x10, 0x14, 0x18, 0x19, 0x1a, 0x1c, 0x20, 0x24, 0x28, 0x3e, 0x40, 0x44, 0x58, 0x5a, 0x60,
        ]),
        _ => random.below(0x100),
    };
    (bus << 20 | device << 15 | function << 12 | register, length)
}

fn access(bus: &Bus, at: u64, data: &mut [u8], write: bool, clock: &mut Clock) {
    if write {
        clock.bound("A write", || drop(bus.write(at, data)));
    } else {
        clock.bound("A read", || bus.read(at, data));
    }
}

fn guest(target: &str, power_on: PowerOn) {
    let Some(Hierarchy { root, ports, pio, mmio, fake }) = hierarchy(power_on) else { return };
    let waits = Arc::new(Signal::new().unwrap());
    fuzz(target, |random, clock| {
        for _ in 0..64 {
            let (at, length) = config(random);
            let mut data = random.bytes(length);
            let write = !random.once_in(4);
            match random.below(8) {
                0..3 => access(&mmio, 0xe000_0000 + at, &mut data, write, clock),
                3..6 => {
                    let address = u32::try_from(0x8000_0000 | at >> 4 & 0xff_ff00 | at & 0xfc).unwrap();
                    access(&pio, 0xcf8, &mut address.to_le_bytes(), true, clock);
                    access(&pio, 0xcfc + (at & 3), &mut data, write, clock);
                }
                6 => {
                    // Where a BAR may have come to lie.
                    let windows = root.devices().into_iter().flat_map(|(_, device)| device.windows());
                    let windows: Vec<_> = windows.filter(|window| !window.io).collect();
                    if !windows.is_empty() {
                        let window = windows[random.index(windows.len())];
                        let at = window.base.saturating_add(random.below(window.size.min(0x8000)));
                        let length = random.pick(&[1, 2, 4, 8]);
                        let mut data = random.bytes(length);
                        access(&mmio, at, &mut data, write, clock);
                    }
                }
                _ => {
                    let anywhere = random.below(0x1_0000);
                    let at = random.pick(&[0xcf8, 0xcf9, 0xcfa, 0x600, anywhere]);
                    access(&pio, at, &mut data, write, clock);
                }
            }
        }
        fake.calls();
        if random.once_in(4) {
            let port = &ports[random.index(ports.len())];
            clock.bound("A change of a slot", || match random.below(4) {
                0 => port.insert(Arc::clone(&waits)),
                1 => port.take_out(),
                2 => port.ask_back(Arc::clone(&waits)),
                _ => port.press_again(),
            });
        }
        if random.once_in(8) {
            clock.bound("A reset of all functions", || drop(root.reset()));
        }
    });
}

#[test]
fn pci_config() {
    guest("pci_config", PowerOn::Programmed);
}

#[test]
fn pci_config_of_firmware() {
    guest("pci_config_of_firmware", PowerOn::Bare);
}

#[test]
fn msix() {
    let Some(vm) = vm() else { return };
    let fake = Arc::new(Fake::nic());
    let device = passed_through(&vm, &fake);
    fuzz("msix", |random, clock| {
        for _ in 0..32 {
            let bar = u8::try_from(random.below(7)).unwrap();
            let (start, end, anywhere) = (random.below(0x400), 0x1fe0 + random.below(0x40), random.number());
            let at = random.pick(&[start, end, anywhere]);
            let length = random.pick(&[1, 2, 3, 4, 8]);
            let mut data = random.bytes(length);
            match random.below(8) {
                0..3 => clock.bound("A write", || drop(device.write_bar(bar, at, &data))),
                3 => clock.bound("A read", || device.read_bar(bar, at, &mut data)),
                4..6 => {
                    let length = random.pick(&[1_usize, 2, 4]);
                    let at = (random.u16() % 0x100) & !(u16::try_from(length).unwrap() - 1);
                    clock.bound("A config write", || {
                        drop(device.write_config(at, &[0xff, 0x80, 1, 0][..length]))
                    });
                }
                6 => drop(fake.fire(vfio::IrqKind::Msix, random.u32() % 12)),
                _ => {
                    for window in device.windows() {
                        device.window_moved(window.bar, Some(window.base));
                    }
                }
            }
        }
        fake.calls();
        if random.once_in(8) {
            clock.bound("A reset", || drop(device.reset()));
        }
    });
}
