//! A vCPU with a few instructions of real guest code.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::{Entry, Protocol};
use crate::bus::BusDevice;
use crate::cpuid;
use crate::memory::KvmSlots;
use crate::spec::{CpuSpec, MemorySpec};

/// A vCPU that will run `code` in 32-bit protected mode with `device` at port 0x10.
fn vcpu(code: &[u8], device: Arc<dyn BusDevice>) -> Option<(Arc<Vcpu>, JoinHandle<()>, Arc<Mailbox>)> {
    let vm = match Vm::new() {
        Ok(vm) => Arc::new(vm),
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let ram = GuestRam::new(&MemorySpec { size: 2 << 20, hugepages: None, prefault: false }).unwrap();
    ram.listen(Arc::new(KvmSlots::new(Arc::clone(&vm)))).unwrap();
    vm.create_interrupt_controllers().unwrap();
    ram.memory().write_slice(code, GuestAddress(0x10_0000)).unwrap();
    let template = cpuid::Template::new(
        cpuid::Supported::ask(vm.kvm()).unwrap(),
        CpuSpec { sockets: 1, cores: 1, threads: 1 },
    )
    .unwrap();
    let vcpu = Vcpu::new(&vm, 0, 0, &template.for_vcpu(0).unwrap(), Starts::AfterFirmware, false).unwrap();
    vcpu.enter_at(&Entry { protocol: Protocol::Pvh, rip: 0x10_0000 }).unwrap();
    let buses = Buses { pio: Arc::new(Bus::new()), mmio: Arc::new(Bus::new()) };
    buses.pio.insert(0x10, 1, device).unwrap();
    let mailbox = Arc::new(Mailbox::new().unwrap());
    install_handler().unwrap();
    let thread = vcpu.spawn(Arc::new(ram), buses, Arc::clone(&mailbox)).unwrap();
    Some((vcpu, thread, mailbox))
}

fn first_mail(mailbox: &Mailbox) -> Event {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(event) = mailbox.take() {
            return event;
        }
        assert!(Instant::now() < deadline, "no mail came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Broken;

impl BusDevice for Broken {
    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, _: u64, _: &[u8]) -> Action {
        panic!("on purpose: a device with a fault");
    }
}

#[test]
fn a_fault_in_a_device_reaches_the_machine_and_nobody_waits_for_the_thread() {
    // out %al, $0x10; hlt
    let Some((vcpu, thread, mailbox)) = vcpu(&[0xe6, 0x10, 0xf4], Arc::new(Broken)) else { return };
    vcpu.resume();
    assert!(matches!(first_mail(&mailbox), Event::Fault { vcpu: 0 }));
    vcpu.park();
    vcpu.end();
    assert!(thread.join().is_err());
}

struct Switch(Action);

impl BusDevice for Switch {
    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, _: u64, _: &[u8]) -> Action {
        self.0.clone()
    }
}

#[test]
fn a_vcpu_that_asks_for_something_goes_no_further_until_it_is_resumed() {
    // 1: out %al, $0x10; jmp 1b
    let device = Arc::new(Switch(Action::Reset));
    let Some((vcpu, thread, mailbox)) = vcpu(&[0xe6, 0x10, 0xeb, 0xfc], device) else { return };
    for _ in 0..3 {
        vcpu.resume();
        assert!(matches!(first_mail(&mailbox), Event::Action(Action::Reset)));
        std::thread::sleep(Duration::from_millis(20));
        assert!(mailbox.take().is_none(), "it is parked");
    }
    vcpu.end();
    thread.join().unwrap();
}
