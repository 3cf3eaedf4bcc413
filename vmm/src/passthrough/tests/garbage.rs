//! A guest, or a device, that does anything at all.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use vfio::fake::Fake;

use super::super::testing::vm;
use super::super::{PassthroughDevice, Placement};
use super::{PLACEMENT, follow};
use crate::pci::PciDevice;

#[derive(Clone, Debug)]
enum Step {
    Config(u16, Vec<u8>),
    ReadConfig(u16, usize),
    Bar(u8, u64, Vec<u8>),
    ReadBar(u8, u64, usize),
    Follow,
    Fire(u32),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    // Aligned accesses within 4096 bytes, as the host bridge makes them, the capabilities' registers often.
    let at = prop_oneof![4 => 0_u16..0x100, 1 => 0_u16..0x1000];
    let size = prop::sample::select(vec![1_usize, 2, 4]);
    let config = (at, size).prop_map(|(at, size)| (at & !(u16::try_from(size).unwrap() - 1), size));
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0xfe), Just(1)];
    let offset = prop_oneof![3 => 0_u64..0x200, 1 => 0x1ff0_u64..0x2020, 1 => any::<u64>()];
    let access = (0_u8..8, offset, prop::sample::select(vec![1_usize, 2, 3, 4, 8]));
    prop_oneof![
        6 => (config.clone(), vec(byte.clone(), 4)).prop_map(|((at, size), data)| Step::Config(at, data[..size].to_vec())),
        1 => config.prop_map(|(at, size)| Step::ReadConfig(at, size)),
        4 => (access.clone(), vec(byte, 8)).prop_map(|((bar, at, size), data)| Step::Bar(bar, at, data[..size].to_vec())),
        1 => access.prop_map(|(bar, at, size)| Step::ReadBar(bar, at, size)),
        2 => Just(Step::Follow),
        1 => (0_u32..12).prop_map(Step::Fire),
        1 => Just(Step::Reset),
    ]
}

fn take(device: &PassthroughDevice, fake: &Fake, step: Step) {
    match step {
        Step::Config(at, data) => drop(device.write_config(at, &data)),
        Step::ReadConfig(at, size) => device.read_config(at, &mut vec![0; size]),
        Step::Bar(bar, at, data) => drop(device.write_bar(bar, at, &data)),
        Step::ReadBar(bar, at, size) => device.read_bar(bar, at, &mut vec![0; size]),
        Step::Follow => follow(device),
        Step::Fire(vector) => drop(fake.fire(vfio::IrqKind::Msix, vector)),
        Step::Reset => drop(device.reset()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_guest_that_writes_anything_anywhere_breaks_nothing(
        steps in vec(step(), 1..120),
        noresize: bool,
        rom: bool,
    ) {
        let Some(vm) = vm() else { return Ok(()) };
        let fake = Arc::new(Fake::nic().bar(2, 0x20, 1).vectors(vfio::IrqKind::Msix, 10, noresize));
        let placement = Placement { rom, ..PLACEMENT };
        let device = PassthroughDevice::new(&vm, Arc::clone(&fake) as _, placement).unwrap();
        for step in steps {
            take(&device, &fake, step);
        }
        // Whatever came before, a reset leads back.
        device.reset().unwrap();
        let mut id = [0; 4];
        device.read_config(0, &mut id);
        prop_assert_eq!(id, [0x86, 0x80, 0xca, 0x10]);
        prop_assert_eq!(device.windows(), vec![]);
    }

    #[test]
    fn a_device_with_any_config_space_is_taken_or_refused(
        header in vec(any::<u8>(), 0x100),
        rest in vec((0x100_usize..0x1000, any::<u32>()), 0..32),
        steps in vec(step(), 1..20),
    ) {
        let Some(vm) = vm() else { return Ok(()) };
        let fake = Fake::nic().put(2, &header[2..]).put(0x0e, &[0]);
        let fake = rest.iter().fold(fake, |fake, (at, value)| fake.put(at & !3, &value.to_le_bytes()));
        let fake = Arc::new(fake);
        if let Ok(device) = PassthroughDevice::new(&vm, Arc::clone(&fake) as _, PLACEMENT) {
            for step in steps {
                take(&device, &fake, step);
            }
        }
    }
}
