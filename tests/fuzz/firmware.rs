//! fw_cfg, the flash chip and the firmware's ports.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use throughway_vmm::acpi::Loadable;
use throughway_vmm::bus::Bus;
use throughway_vmm::firmware::{Described, Installed};
use throughway_vmm::spec::Firmware;
use throughway_vmm::vcpu::Buses;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Driver, address, vm};
use super::random::Random;
use super::session::{Clock, fuzz};

const CODE: u64 = 0x18_000;
const VARIABLES: u64 = 0x8_000;
const FLASH: u64 = (1 << 32) - CODE - VARIABLES;
const FW_CFG: u64 = 0x510;

/// A file that begins with a firmware volume of its size.
fn volume(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&size.to_le_bytes(), 32).unwrap();
    file.write_all_at(b"_FVH", 40).unwrap();
    file
}

fn installed(target: &str, mut one: impl FnMut(&Buses, &Installed, &mut Random, &mut Clock)) {
    let Some(vm) = vm() else { return };
    let ram = Driver::ram();
    let buses = Buses { pio: Arc::new(Bus::new()), mmio: Arc::new(Bus::new()) };
    let described = Described {
        name: "fuzzed".to_owned(),
        cpus: 4,
        ram_size: ram.size(),
        address_bits: 46,
        order: Vec::new(),
        once: None,
    };
    let tables = || Ok(Loadable { script: vec![1; 128], rsdp: vec![2; 36], tables: vec![3; 5000] });
    let firmware =
        Firmware { code: volume(CODE), variables: volume(VARIABLES), order: Vec::new(), once: None };
    let installed = Installed::new(&vm, &ram, &buses, firmware, &described, Box::new(tables)).unwrap();
    fuzz(target, |random, clock| {
        // A descriptor for fw_cfg's DMA, where the next addresses may point.
        let words = [random.u32(), random.u32() & 0xffff, 0, random.u32()];
        let place = address(random);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let _ = ram.memory().write_slice(&bytes, GuestAddress(place));
        if random.once_in(2) {
            let [high, low] =
                [place >> 32, place & 0xffff_ffff].map(|half| u32::try_from(half).unwrap().to_be_bytes());
            clock.bound("Half of an address", || drop(buses.pio.write(FW_CFG + 4, &high)));
            clock.bound("A transfer", || drop(buses.pio.write(FW_CFG + 8, &low)));
        }
        one(&buses, &installed, random, clock);
    });
    installed.close();
}

#[test]
fn fw_cfg() {
    installed("fw_cfg", |buses, installed, random, clock| {
        for _ in 0..32 {
            let at = random.pick(&[FW_CFG, FW_CFG, FW_CFG + 1, FW_CFG + 4, FW_CFG + 8, 0x402, 0x92])
                + random.below(2);
            let mut data = match random.below(4) {
                0 => u16::try_from(random.below(0x40)).unwrap().to_le_bytes().to_vec(),
                1 => random.bytes(4),
                2 => vec![random.u8()],
                _ => vec![0; 2],
            };
            if random.once_in(2) {
                clock.bound("A read", || buses.pio.read(at, &mut data));
            } else {
                clock.bound("A write", || drop(buses.pio.write(at, &data)));
            }
        }
        if random.once_in(32) {
            installed.reset(None);
        }
    });
}

#[test]
fn flash() {
    installed("flash", |buses, installed, random, clock| {
        for _ in 0..8 {
            let at = FLASH + random.below(VARIABLES + 64);
            let other = random.u8();
            let command = random.pick(&[0x10, 0x40, 0x20, 0xd0, 0x50, 0x70, 0x90, 0x98, 0xff, other]);
            let length = random.pick(&[1, 1, 1, 2, 4, 8]);
            let mut data = random.bytes(length);
            data[0] = command;
            clock.bound("A write", || drop(buses.mmio.write(at, &data)));
            clock.bound("A read", || buses.mmio.read(at, &mut data));
        }
        if random.once_in(32) {
            installed.reset(None);
        }
    });
}
