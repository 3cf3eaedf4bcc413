//! The whole machine in this process, with a function whose device a test plays: what needs an IOMMU and a card is in the
//! lab, what the guest and the machine do with it is here.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vfio::IrqKind;
use vfio::fake::Fake;
use vmm::machine::DeviceSource;
use vmm::spec::{
    Boot, Console, ConsoleDevice, CpuSpec, MemorySpec, OnDeviceError, OnReset, Resources, Slot, Starts,
    VirtioSlot, VmSpec,
};
use vmm::{Begun, Machine, Outcome};

use crate::image;
use crate::machine::{Heard, PATIENCE, available};

pub(crate) struct InProcess {
    console: Heard,
    read: usize,
    pub(crate) handle: vmm::machine::Handle,
    input: std::io::PipeWriter,
    thread: JoinHandle<Result<Outcome, vmm::machine::Error>>,
}

impl InProcess {
    /// Starts a guest with one function in each slot.
    fn start(cmdline: &str, cpus: u32, slots: &[&Arc<Fake>]) -> Self {
        Self::start_with(cmdline, cpus, slots, Vec::new())
    }

    /// The same, with virtio devices behind them.
    fn start_with(cmdline: &str, cpus: u32, slots: &[&Arc<Fake>], virtio: Vec<VirtioSlot>) -> Self {
        Self::start_pluggable(cmdline, cpus, slots, virtio, (0, None))
    }

    /// The same, with empty root ports, and devices for them.
    pub(crate) fn start_pluggable(
        cmdline: &str,
        cpus: u32,
        slots: &[&Arc<Fake>],
        virtio: Vec<VirtioSlot>,
        (hotplug_ports, source): (u8, Option<Arc<dyn DeviceSource>>),
    ) -> Self {
        let spec = VmSpec {
            name: "guest".into(),
            cpus: CpuSpec { sockets: 1, cores: cpus, threads: 1 },
            affinity: Vec::new(),
            memory: MemorySpec { size: 16 << 20, hugepages: None, prefault: false },
            starts: Starts::AfterFirmware,
            cmdline: cmdline.into(),
            on_reset: OnReset::Restart,
            on_device_error: OnDeviceError::Stop,
            memory_policy: Default::default(),
            on_panic: None,
            watchdog: None,
            hotplug_ports,
        };
        let (reader, writer) = std::io::pipe().unwrap();
        let (typed, input) = std::io::pipe().unwrap();
        let slot = |fake: &Arc<Fake>| Slot {
            name: "card".into(),
            functions: vec![Arc::clone(fake) as _],
            rom: false,
        };
        let resources = Resources {
            boot: Boot::Kernel { kernel: File::open(image::elf()).unwrap(), initrd: None },
            console: Console {
                device: ConsoleDevice::Serial,
                input: Some(typed.into()),
                output: Some(writer.into()),
                log: None,
            },
            slots: slots.iter().map(|fake| slot(fake)).collect(),
            virtio,
        };
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut machine = Machine::new(spec, Begun::begin(|| None)?)?;
            if let Some(source) = source {
                machine.plug_from(source);
            }
            tell.send(machine.handle()).unwrap();
            machine.run(resources)
        });
        let handle = told.recv().unwrap();
        Self { console: Heard::listen(reader), read: 0, handle, input, thread }
    }

    /// Its test of a source of entropy has had 64 bytes.
    pub(crate) fn gets_entropy(&mut self) {
        self.wait_for("queue of 8 at ");
        self.wait_for("used 1, length 64, random\n");
    }

    pub(crate) fn wait_for(&mut self, text: &str) {
        let Some(end) = self.console.wait_for(text, self.read) else {
            self.handle.stop();
            panic!("{text:?} never came: {:?}", self.console.text());
        };
        self.read = end;
    }

    /// How it ended; whatever a guest does, not by a fault of ours.
    pub(crate) fn end(self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                self.handle.stop();
                panic!("it does not end: {:?}", self.console.text());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.thread.join().unwrap().unwrap()
    }
}

#[test]
fn a_guest_drives_bars_msix_and_dma_and_again_after_a_reset() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let mut guest = InProcess::start("test=device by=cf9 times=2", 1, &[&fake]);
    for boot in 1..=2 {
        guest.wait_for(&format!("boot {boot}\n"));
        guest.wait_for("device 100 reads 600df00d\n");
        assert_eq!(fake.memory_byte(0, 0x100), 0x0d);
        guest.wait_for("armed\n");
        assert!(fake.fire(IrqKind::Msix, 0));
        guest.wait_for("interrupt; masked one not\n");
        assert!(fake.fire(IrqKind::Msix, 1), "a masked vector has somewhere to go");
        guest.wait_for("pending; requested not\n");
        guest.wait_for("unmasked; pending 0\n");
        guest.wait_for("memory at c01000\n");
        fake.dma_write(0xc0_1000, &0x600d_da7a_u64.to_le_bytes()).unwrap();
        guest.wait_for("written\n");
    }
    assert_eq!(guest.end(), Outcome::PowerOff);
    // Guest RAM was there for DMA, and is no longer.
    assert_eq!(fake.space().maps(), []);
}

fn source_of_entropy() -> Vec<VirtioSlot> {
    vec![VirtioSlot { name: "rng".into(), device: Box::new(vmm::virtio::rng::Rng) }]
}

#[test]
fn a_driver_gets_entropy_by_ioeventfd_and_irqfd_and_a_reset_where_it_lies() {
    if !available() {
        return;
    }
    let mut guest = InProcess::start_with("test=entropy", 1, &[], source_of_entropy());
    guest.gets_entropy();
    guest.wait_for("needs a reset; used 1\n");
    guest.wait_for("after it: negotiated, used 1\n");
    assert_eq!(guest.end(), Outcome::PowerOff);
}

#[test]
fn garbage_in_a_virtio_device_ends_as_the_guest_wants() {
    if !available() {
        return;
    }
    for (seed, cpus) in [(31, 1), (32, 2)] {
        let cmdline = format!("test=garbage rounds=3 ports=0 seed={seed} cpus={cpus}");
        let mut guest = InProcess::start_with(&cmdline, cpus, &[], source_of_entropy());
        guest.wait_for("functions 4 bars 1\n");
        guest.wait_for("\ngarbage done\n");
        assert_eq!(guest.end(), Outcome::PowerOff, "seed {seed}");
    }
}

#[test]
fn a_pin_interrupts_until_the_device_lets_go_of_it() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let mut guest = InProcess::start("test=pin", 1, &[&fake]);
    guest.wait_for("pin 1\n");
    guest.wait_for("armed\n");
    assert!(fake.fire(IrqKind::Intx, 0));
    // The resampling irqfd asserts it again at each end of interrupt.
    guest.wait_for("more and more\n");
    fake.lower_pin();
    guest.input.write_all(b"l").unwrap();
    guest.wait_for("quiet\n");
    // Whether it is unmasked already, or will be when the last end of interrupt has made its way.
    fake.fire(IrqKind::Intx, 0);
    guest.wait_for("came\n");
    fake.lower_pin();
    assert_eq!(guest.end(), Outcome::PowerOff);
}

#[test]
fn each_function_is_behind_its_own_port() {
    if !available() {
        return;
    }
    let fakes = [Arc::new(Fake::nic()), Arc::new(Fake::nic())];
    let mut guest = InProcess::start("test=pci", 1, &[&fakes[0], &fakes[1]]);
    for line in ["function 0 is ", "function 8 is ", "function 10 is ", "function f8 is "] {
        guest.wait_for(line);
    }
    guest.wait_for("function 100 is 10ca8086 class 20000\n");
    guest.wait_for("function 200 is 10ca8086 class 20000\n");
    guest.wait_for("differences: 0\n");
    assert_eq!(guest.end(), Outcome::PowerOff);
}

#[test]
fn garbage_in_bars_and_registers_of_a_function_ends_as_the_guest_wants() {
    if !available() {
        return;
    }
    for (seed, cpus) in [(11, 1), (12, 2)] {
        let fake = Arc::new(Fake::nic().bar(2, 0x20, 1));
        let cmdline = format!("test=garbage rounds=3 ports=0 seed={seed} cpus={cpus}");
        let mut guest = InProcess::start(&cmdline, cpus, &[&fake]);
        guest.wait_for("functions 4 bars 2\n");
        guest.wait_for("\ngarbage done\n");
        assert_eq!(guest.end(), Outcome::PowerOff, "seed {seed}");
    }
}

/// Garbage in an MSI-X table may well name NMI or INIT: then the guest has shot itself, and any end is one.
#[test]
fn garbage_while_the_device_interrupts_is_no_fault_of_ours() {
    if !available() {
        return;
    }
    for (seed, cpus) in [(21, 1), (22, 2)] {
        let fake = Arc::new(Fake::nic());
        let cmdline = format!("test=garbage rounds=3 ports=0 seed={seed} cpus={cpus}");
        let mut guest = InProcess::start(&cmdline, cpus, &[&fake]);
        guest.wait_for("functions 4 bars 2\n");
        let deadline = Instant::now() + Duration::from_secs(10);
        for vector in (0..10).cycle() {
            if guest.thread.is_finished() || Instant::now() > deadline {
                break;
            }
            fake.fire(IrqKind::Msix, vector);
            fake.fire(IrqKind::Msi, vector % 4);
            fake.fire(IrqKind::Intx, 0);
            std::thread::sleep(Duration::from_micros(200));
        }
        // A processor that waits for a start-up IPI for ever is one of the ends.
        guest.handle.stop();
        let outcome = guest.end();
        assert!(!matches!(outcome, Outcome::Reset | Outcome::DeviceError { .. }), "seed {seed}: {outcome:?}");
    }
}
