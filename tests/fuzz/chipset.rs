//! The small devices at I/O ports.

use std::sync::Arc;

use throughway_vmm::bus::{Bus, BusDevice};
use throughway_vmm::control::Recent;
use throughway_vmm::legacy::{
    Cmos, ConsoleOutput, I8042, PM_BLOCK_SIZE, PowerManagement, PvPanic, SerialPort, ports,
};
use throughway_vmm::pci::{PciDevice, Watchdog};

use super::driver::vm;
use super::random::Random;
use super::session::{Clock, fuzz};

/// Accesses as processors make them, to ports of `size` from `base` and those around.
fn accesses(bus: &Bus, random: &mut Random, clock: &mut Clock, (base, size): (u64, u64)) {
    for _ in 0..64 {
        let at = base.saturating_add(random.below(size + 8)).saturating_sub(4);
        let length = random.pick(&[1, 1, 2, 4]);
        let mut data = random.bytes(length);
        if random.once_in(2) {
            clock.bound("A read", || bus.read(at, &mut data));
        } else {
            clock.bound("A write", || drop(bus.write(at, &data)));
        }
    }
}

#[test]
fn acpi_pm() {
    let pm = Arc::new(PowerManagement::new(Box::new(|_| {})));
    let bus = Bus::new();
    bus.insert(0x600, PM_BLOCK_SIZE.into(), Arc::clone(&pm) as Arc<dyn BusDevice>).unwrap();
    fuzz("acpi_pm", |random, clock| {
        accesses(&bus, random, clock, (0x600, PM_BLOCK_SIZE.into()));
        match random.below(8) {
            0 => pm.press_power_button(),
            1 => pm.reset(),
            _ => {}
        }
    });
}

#[test]
fn legacy_ports() {
    let Some(vm) = vm() else { return };
    let nowhere = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let recent = Arc::new(Recent::new().unwrap());
    let output = ConsoleOutput::new(Some(nowhere.into()), None, &recent).unwrap();
    let serial = SerialPort::new(&vm, output).unwrap();
    let bus = Bus::new();
    bus.insert(ports::COM1.into(), 8, Arc::clone(&serial) as _).unwrap();
    bus.insert(ports::CMOS.into(), 2, Arc::new(Cmos::new(1 << 32))).unwrap();
    bus.insert(ports::I8042_DATA.into(), 1, Arc::new(I8042::Data)).unwrap();
    bus.insert(ports::I8042_COMMAND.into(), 1, Arc::new(I8042::Command)).unwrap();
    fuzz("legacy_ports", |random, clock| {
        let at = random.pick(&[(ports::COM1, 8), (ports::CMOS, 2), (ports::I8042_DATA, 5)]);
        accesses(&bus, random, clock, (at.0.into(), at.1));
        let typed = random.bytes(8);
        serial.receive(&typed[..serial.room().min(8)]);
        serial.clear_drained();
    });
}

#[test]
fn pvpanic() {
    let (bus, port) = (Bus::new(), Arc::new(PvPanic::default()));
    bus.insert(ports::PVPANIC.into(), 1, Arc::clone(&port) as _).unwrap();
    fuzz("pvpanic", |random, clock| {
        accesses(&bus, random, clock, (ports::PVPANIC.into(), 1));
        if random.once_in(4) {
            port.reset();
        }
    });
}

#[test]
fn watchdog() {
    let watchdog = Watchdog::new().unwrap();
    fuzz("watchdog", |random, clock| {
        for _ in 0..32 {
            let length = random.pick(&[1_usize, 2, 4]);
            let mut data = random.bytes(length);
            let key = random.pick(&[0x80, 0x86, 0x00]);
            match random.below(8) {
                0..2 => {
                    let at = random.pick(&[0x60, 0x68, 0x68, 0x04, 0x10]);
                    clock.bound("A config write", || drop(watchdog.write_config(at, &data)));
                }
                2..5 => clock.bound("The key", || drop(watchdog.write_bar(0, 0x0c, &[key, 0]))),
                5 => {
                    let at = random.below(20);
                    clock.bound("A write", || drop(watchdog.write_bar(0, at, &data)));
                    clock.bound("A read", || watchdog.read_bar(0, at, &mut data));
                }
                6 => drop(clock.bound("Its timer", || watchdog.ready(0))),
                _ => clock.bound("A config read", || watchdog.read_config(0x68, &mut data)),
            }
        }
        if random.once_in(16) {
            watchdog.reset().unwrap();
        }
    });
}
