//! Making the VM and the processors, on a thread of its own while the owner still reads what machine it is to be, and while
//! the rest of it is made: a VM, what CPUID may say and the vCPUs take KVM about as long as all the rest.
//!
//! ```text
//!   owner    begin --- file, spec --- vm --- RAM, irqchip --- make --- console, devices ... --- finish
//!                \                  /                          \                               /
//!   thread        VM, then CPUID of this host ------------------ vCPUs, their threads ----------
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::Error;
use crate::cpuid::{Supported, Template};
use crate::mailbox::Mailbox;
use crate::memory::GuestRam;
use crate::spec::CpuSpec;
use crate::vcpu::{Buses, Starts, Vcpu};
use crate::vm::Vm;

/// What the vCPUs are made of.
pub(super) struct Order {
    pub(super) cpus: CpuSpec,
    pub(super) affinity: Vec<BTreeSet<u32>>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) buses: Buses,
    pub(super) mailbox: Arc<Mailbox>,
    /// In which state they first run.
    pub(super) starts: Starts,
    /// Whether their power-on state is kept, for a guest reset.
    pub(super) resettable: bool,
}

/// vCPUs, parked, and their threads.
#[derive(Default)]
pub(super) struct Processors {
    pub(super) vcpus: Vec<Arc<Vcpu>>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl Processors {
    /// Lets all run.
    pub(super) fn resume(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.resume());
    }

    /// Lets all run after a pause, of which their guest is told.
    pub(super) fn resume_from_pause(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.resume_from_pause());
    }

    /// Returns when none is in the guest any more.
    pub(super) fn park(&self) {
        // All are asked before any is waited for.
        self.vcpus.iter().for_each(|vcpu| vcpu.ask_to_park());
        self.vcpus.iter().for_each(|vcpu| vcpu.park());
    }

    /// Ends all threads and waits for them.
    pub(super) fn end(&mut self) {
        for vcpu in &self.vcpus {
            vcpu.end();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A vCPU thread ended by a fault of ours");
            }
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end();
        }
    }
}

/// The VM and processors in the making. Dropped, they end.
pub(super) struct Making {
    thread: JoinHandle<()>,
    vm: Receiver<Arc<Vm>>,
    made: Receiver<Result<Processors, Error>>,
    width: Receiver<u8>,
    order: Sender<Order>,
}

impl Making {
    /// Begins with what is the same for every machine.
    pub(super) fn begin() -> Result<Self, Error> {
        let (order, ordered) = mpsc::channel();
        let (vm_is, vm) = mpsc::channel();
        let (width_is, width) = mpsc::channel();
        // The owner waits for what is made, not for the end of the thread that made it.
        let (made_is, made) = mpsc::channel();
        let thread = std::thread::Builder::new().name("processors".into());
        let thread = thread.spawn(move || {
            let _ = made_is.send(make(&vm_is, &width_is, &ordered));
        });
        Ok(Self { thread: thread.map_err(Error::io("Starting a thread"))?, vm, made, width, order })
    }

    /// Waits for the VM: without memory and without interrupt controllers.
    pub(super) fn vm(&self) -> Result<Arc<Vm>, Error> {
        self.vm.recv().map_err(|_| match self.made.recv() {
            Ok(Err(error)) => error,
            _ => Error::Processors,
        })
    }

    /// Has the vCPUs made.
    pub(super) fn make(self, order: Order) -> Made {
        // A thread that has ended early says why when it is finished.
        let _ = self.order.send(order);
        Made { thread: Some(self.thread), width: self.width, made: self.made }
    }
}

/// Processors that are being made or are ready.
pub(super) struct Made {
    thread: Option<JoinHandle<()>>,
    width: Receiver<u8>,
    made: Receiver<Result<Processors, Error>>,
}

impl Made {
    /// Waits for the width of guest physical addresses.
    pub(super) fn address_bits(self) -> Result<(u8, Self), Error> {
        match self.width.recv() {
            Ok(width) => Ok((width, self)),
            Err(_) => Err(self.finish().err().unwrap_or(Error::Processors)),
        }
    }

    /// Waits for them.
    pub(super) fn finish(mut self) -> Result<Processors, Error> {
        self.thread = None;
        self.made.recv().unwrap_or(Err(Error::Processors))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Processors that are ready end as they are dropped with the channel.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn make(vm_is: &Sender<Arc<Vm>>, width: &Sender<u8>, order: &Receiver<Order>) -> Result<Processors, Error> {
    let vm = Arc::new(Vm::new()?);
    let _ = vm_is.send(Arc::clone(&vm));
    let supported = Supported::ask(vm.kvm())?;
    let _ = width.send(supported.physical_address_bits());
    let mut made = Processors::default();
    // No order: the machine was given up.
    let Ok(order) = order.recv() else { return Ok(made) };
    let template = Template::new(supported, order.cpus)?;
    for (index, at) in (0..order.cpus.count()).zip(0_usize..) {
        if let Some(processors) = order.affinity.get(at) {
            // Of this thread, which ends when all are made: the vCPU's thread inherits it, and KVM's memory for it is near.
            stay_on(processors).map_err(|source| Error::Affinity { vcpu: index, source })?;
        }
        let (apic_id, cpuid) = (template.apic_id(index), template.for_vcpu(index)?);
        let vcpu = Vcpu::new(&vm, index, apic_id, &cpuid, order.starts, order.resettable)?;
        let thread = vcpu.spawn(Arc::clone(&order.ram), order.buses.clone(), Arc::clone(&order.mailbox));
        made.threads.push(thread.map_err(Error::io("Starting a vCPU thread"))?);
        made.vcpus.push(vcpu);
    }
    Ok(made)
}

/// Has the calling thread run on these processors of the host alone.
fn stay_on(processors: &BTreeSet<u32>) -> io::Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        let number = usize::try_from(*processor).ok().filter(|number| *number < CpuSet::MAX_CPU);
        set.set(number.ok_or(io::ErrorKind::InvalidInput)?);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::memory::KvmSlots;
    use crate::spec::MemorySpec;

    const CPUS: CpuSpec = CpuSpec { sockets: 1, cores: 2, threads: 1 };

    fn begin() -> Option<(Making, Order)> {
        let making = Making::begin().unwrap();
        let vm = match making.vm() {
            Ok(vm) => vm,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let memory = MemorySpec { size: 2 << 20, hugepages: None, prefault: false };
        let ram = Arc::new(GuestRam::new(&memory).unwrap());
        ram.listen(Arc::new(KvmSlots::new(Arc::clone(&vm)))).unwrap();
        vm.create_interrupt_controllers().unwrap();
        let buses = Buses { pio: Arc::new(Bus::new()), mmio: Arc::new(Bus::new()) };
        let mailbox = Arc::new(Mailbox::new().unwrap());
        crate::vcpu::install_handler().unwrap();
        Some((
            making,
            Order {
                cpus: CPUS,
                affinity: Vec::new(),
                ram,
                buses,
                mailbox,
                starts: Starts::AfterFirmware,
                resettable: true,
            },
        ))
    }

    #[test]
    fn they_are_made_while_others_work_and_end_when_dropped() {
        let Some((making, order)) = begin() else { return };
        let ram = Arc::clone(&order.ram);
        let (width, made) = making.make(order).address_bits().unwrap();
        assert!((36..=52).contains(&width));
        let processors = made.finish().unwrap();
        assert_eq!((processors.vcpus.len(), processors.threads.len()), (2, 2));
        drop(processors);
        assert_eq!(Arc::strong_count(&ram), 1);
    }

    #[test]
    fn nobody_is_left_behind_when_the_machine_is_given_up() {
        let Some((making, order)) = begin() else { return };
        let ram = Arc::clone(&order.ram);
        drop(Making::begin().unwrap());
        drop(making.make(order));
        assert_eq!(Arc::strong_count(&ram), 1);
    }

    #[test]
    fn a_processor_that_is_not_there_is_told() {
        let Some((making, mut order)) = begin() else { return };
        order.affinity = vec![BTreeSet::from([1023])];
        let error = making.make(order).finish().err().unwrap();
        assert!(matches!(error, Error::Affinity { vcpu: 0, .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_made_says_why() {
        let Some((making, order)) = begin() else { return };
        let cpus = CpuSpec { sockets: 1, cores: 0, threads: 1 };
        let error = making.make(Order { cpus, ..order }).finish().err().unwrap();
        assert!(matches!(error, Error::Cpuid(crate::cpuid::Error::Topology(_))), "{error}");
    }
}
