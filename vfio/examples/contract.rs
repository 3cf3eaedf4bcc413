//! Runs the contract suite against a function of this host's, which must be bound to vfio-pci and which nothing else uses.
//!
//! ```text
//! contract 0000:05:00.0     prints TAP; exits with 0 if nothing is broken
//! ```
//!
//! Of the devices that the lab emulates it knows the registers by which they interrupt and do DMA: QEMU's `edu`, `e1000e`
//! and the virtual functions of `igb`. With any other, what needs that is skipped.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use throughway_vfio::contract::{CHECKS, Subject, Verdict};
use throughway_vfio::kernel::{Backend, Iommu, KernelFunction};
use throughway_vfio::{IrqKind, PciAddress, PciFunction, RegionIndex};

const BAR0: RegionIndex = RegionIndex::Bar(0);

/// What the device is, by its vendor and device id.
#[derive(Clone, Copy, Debug)]
enum Device {
    Edu,
    E1000e,
    Igbvf,
    Other,
}

struct OnKernel {
    function: Arc<KernelFunction>,
    device: Device,
}

impl OnKernel {
    fn new(function: Arc<KernelFunction>) -> Result<Self, throughway_vfio::Error> {
        let mut id = [0; 4];
        function.read(RegionIndex::Config, 0, &mut id)?;
        let device = match u32::from_le_bytes(id) {
            0x11e8_1234 => Device::Edu,
            0x10d3_8086 => Device::E1000e,
            0x10ca_8086 => Device::Igbvf,
            _ => Device::Other,
        };
        Ok(Self { function, device })
    }

    fn set(&self, register: u64, value: u32) -> bool {
        self.function.write(BAR0, register, &value.to_le_bytes()).is_ok()
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        // All ones where it fails.
        let _ = self.function.read(BAR0, register, &mut data);
        u32::from_le_bytes(data)
    }

    /// One transfer of `edu`'s DMA engine (QEMU, docs/specs/edu.rst); `command` 1: into its buffer, 3: out of it.
    fn transfer(&self, from: u64, to: u64, length: usize, command: u32) -> bool {
        let low = |address: u64| u32::try_from(address).ok();
        let (Some(from), Some(to)) = (low(from), low(to)) else { return false };
        let length = u32::try_from(length).unwrap_or(4096);
        let asked = [(0x80, from), (0x88, to), (0x90, length), (0x98, command)];
        if !asked.into_iter().all(|(register, value)| self.set(register, value)) {
            return false;
        }
        let started = Instant::now();
        while self.get(0x98) & 1 != 0 {
            if started.elapsed() > Duration::from_secs(5) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Subject for OnKernel {
    fn function(&self) -> Arc<dyn PciFunction> {
        Arc::clone(&self.function) as _
    }

    fn scratch(&self) -> Option<(RegionIndex, u64)> {
        match self.device {
            // The source of a transfer.
            Device::Edu => Some((BAR0, 0x80)),
            // The base of a receive ring.
            Device::E1000e | Device::Igbvf => Some((BAR0, 0x2800)),
            Device::Other => None,
        }
    }

    fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        match (self.device, kind) {
            (Device::Edu, IrqKind::Intx | IrqKind::Msi) => {
                let raised = self.set(0x60, 1);
                // A message is sent at each write; only the pin has a state.
                if kind == IrqKind::Msi {
                    self.set(0x64, 1);
                }
                raised
            }
            // The receive ring is nearly empty: a cause that nothing raises by itself. (By messages QEMU's device sends
            // it twice, as its interrupt throttling does with every cause.)
            (Device::E1000e, IrqKind::Intx) => {
                self.set(0xd8, u32::MAX) && self.set(0xd0, 1 << 4) && self.set(0xc8, 1 << 4)
            }
            // VTEIMS and VTEICS, by vector; VTEICR is cleared by what is written there.
            (Device::Igbvf, IrqKind::Msix) => {
                let bit = 1_u32 << vector;
                let asked = [(0x1580, 7), (0x1524, bit), (0x1520, bit), (0x1528, 7)];
                asked.into_iter().all(|(register, value)| self.set(register, value))
            }
            _ => false,
        }
    }

    fn lower_pin(&self) {
        match self.device {
            Device::Edu => drop(self.set(0x64, 1)),
            Device::E1000e => drop(self.set(0xc0, u32::MAX)),
            Device::Igbvf | Device::Other => {}
        }
    }

    fn copy(&self, from: u64, to: u64, length: usize) -> bool {
        const BUFFER: u64 = 0x4_0000;
        matches!(self.device, Device::Edu)
            && self.transfer(from, BUFFER, length, 1)
            && self.transfer(BUFFER, to, length, 3)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(100)
    }
}

fn run(address: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let address: PciAddress = address.parse()?;
    let iommu = Iommu::new(Backend::Auto, None)?;
    let subject = OnKernel::new(iommu.open(address)?)?;
    println!("# {address}: {:?} by {:?}", subject.device, iommu.backend());
    println!("1..{}", CHECKS.len());
    let mut broken = 0;
    for (number, check) in CHECKS.iter().enumerate() {
        let (number, name) = (number + 1, check.name);
        match check.run(&subject) {
            Verdict::Held => println!("ok {number} - {name}"),
            Verdict::Skipped(why) => println!("ok {number} - {name} # SKIP {why}"),
            Verdict::Broken(why) => {
                broken += 1;
                println!("not ok {number} - {name} # {why}");
            }
        }
    }
    Ok(broken == 0)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), None) = (arguments.next(), arguments.next()) else {
        eprintln!("Usage: contract DDDD:BB:DD.F");
        return ExitCode::from(2);
    };
    match run(&address) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error}");
            ExitCode::FAILURE
        }
    }
}
