//! Making the VM and the processors, on a thread of its own while the owner still reads what machine it is to be, and while
//! the rest of it is made: a VM, what CPUID may say and the vCPUs take KVM about as long as all the rest.
//!
//! ```text
//!   owner    begin --- file, spec --- vm --- RAM, irqchip --- make --- console, devices ... --- finish
//!                \                  /                          \                               /
//!   thread        VM, then CPUID of this host ------------------ vCPUs, their threads ---------- is the thread of vCPU 0
//! ```

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::Error;
use crate::cpuid::{Supported, Template};
use crate::mailbox::Mailbox;
use crate::memory::GuestRam;
use crate::spec::CpuSpec;
use crate::threads::{self, Kind};
use crate::vcpu::{self, Buses, Starts, Vcpu};
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
    /// Which of the host's processors both may use, where the thread is kept off the owner's for now.
    everywhere: Option<libc::cpu_set_t>,
    vm: Receiver<Arc<Vm>>,
    made: Receiver<Result<Processors, Error>>,
    width: Receiver<u8>,
    steps: Sender<Step>,
}

/// What a thread that makes processors is told.
enum Step {
    /// Be of the kind that it is going to be ([`threads`]).
    Begin,
    /// Make them; and where the thread may run from then on, where that is not as it is.
    Make(Box<Order>, Option<libc::cpu_set_t>),
}

impl Making {
    /// Begins with what is the same for every machine.
    pub(super) fn begin() -> Result<Self, Error> {
        let (steps, told) = mpsc::channel();
        let (vm_is, vm) = mpsc::channel();
        let (width_is, width) = mpsc::channel();
        // The owner waits for what is made, not for the end of the thread that made it.
        let (made_is, made) = mpsc::channel();
        let thread = std::thread::Builder::new().name("processors".into()).stack_size(vcpu::STACK);
        let thread = thread.spawn(move || match make(&vm_is, &width_is, &told) {
            Ok(Some((made, first))) => {
                if made_is.send(Ok(made)).is_ok() {
                    first.run();
                }
            }
            // No order: the machine was given up.
            Ok(None) => {}
            Err(error) => drop(made_is.send(Err(error))),
        });
        let thread = thread.map_err(Error::io("Starting a thread"))?;
        let everywhere = keep_apart(&thread);
        Ok(Self { thread, everywhere, vm, made, width, steps })
    }

    /// Waits for the VM: without memory and without interrupt controllers.
    pub(super) fn vm(&self) -> Result<Arc<Vm>, Error> {
        self.vm.recv().map_err(|_| match self.made.recv() {
            Ok(Err(error)) => error,
            _ => Error::Processors,
        })
    }

    /// Has its thread be of its kind as soon as it has made the VM.
    pub(super) fn begin_thread(&self) {
        let _ = self.steps.send(Step::Begin);
    }

    /// Has the vCPUs made.
    pub(super) fn make(self, order: Order) -> Made {
        // A thread that has ended early says why when it is finished.
        let _ = self.steps.send(Step::Make(Box::new(order), self.everywhere));
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
        self.wait()
    }

    fn wait(&mut self) -> Result<Processors, Error> {
        let thread = self.thread.take();
        let mut processors = self.made.recv().unwrap_or(Err(Error::Processors))?;
        // That of vCPU 0 from now on.
        processors.threads.extend(thread);
        Ok(processors)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Those that are ready end as they are dropped.
            drop(self.wait());
        }
    }
}

/// Has a thread that was just started begin on another processor than the caller's, where there is one: Linux may leave it on
/// the same one, behind the caller, for longer than the whole start takes. Answers where it may be later on.
fn keep_apart(thread: &JoinHandle<()>) -> Option<libc::cpu_set_t> {
    // SAFETY: a `cpu_set_t` is an array of bits, of which all may be zero.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes that many bytes at most, into a set that lives through the call.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&all), &raw mut all) } != 0 {
        return None;
    }
    let mut others = all;
    let here = rustix::thread::sched_getcpu();
    // SAFETY: the processors that the kernel counts in a set of this size, it has shown above.
    let left = unsafe {
        libc::CPU_CLR(here, &mut others);
        libc::CPU_COUNT(&others)
    };
    // SAFETY: the thread was not joined, so its handle is valid.
    (left > 0 && unsafe { place(thread.as_pthread_t(), &others) }.is_ok()).then_some(all)
}

/// Where the calling thread may run.
fn place_here(processors: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the handle is that of this thread.
    unsafe { place(libc::pthread_self(), processors) }
}

/// Where a thread may run.
///
/// # Safety
/// The handle is that of a thread that was neither joined nor detached.
unsafe fn place(thread: libc::pthread_t, processors: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the caller answers for the handle; the set lives through the call.
    match unsafe { libc::pthread_setaffinity_np(thread, size_of_val(processors), processors) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The first vCPU, for the thread that has made all.
struct First {
    vcpu: Arc<Vcpu>,
    order: Order,
}

impl First {
    fn run(self) {
        let Self { vcpu, order: Order { ram, buses, mailbox, .. } } = self;
        if let Ok(name) = CString::new(vcpu.name()) {
            // Only for people to tell threads apart.
            let _ = rustix::thread::set_name(&name);
        }
        vcpu.run(ram, buses, &mailbox);
    }
}

fn make(
    vm_is: &Sender<Arc<Vm>>,
    width: &Sender<u8>,
    steps: &Receiver<Step>,
) -> Result<Option<(Processors, First)>, Error> {
    let vm = Arc::new(Vm::new()?);
    let _ = vm_is.send(Arc::clone(&vm));
    let supported = Supported::ask(vm.kvm())?;
    let _ = width.send(supported.physical_address_bits());
    let mut begun = false;
    let (order, everywhere) = loop {
        match steps.recv() {
            Ok(Step::Begin) => {
                threads::begins(Kind::Vcpu);
                begun = true;
            }
            Ok(Step::Make(order, everywhere)) => break (*order, everywhere),
            Err(_) => return Ok(None),
        }
    };
    // By itself: its owner may be another user by now, who may not place this one.
    if let Some(all) = &everywhere {
        let _ = place_here(all);
    }
    if !begun {
        threads::begins(Kind::Vcpu);
    }
    let template = Template::new(supported, order.cpus)?;
    let mut made = Processors::default();
    for index in 0..order.cpus.count() {
        // KVM's memory for the vCPU is then near, and its thread inherits it.
        stay_near(&order, index)?;
        let (apic_id, cpuid) = (template.apic_id(index), template.for_vcpu(index)?);
        let vcpu = Vcpu::new(&vm, index, apic_id, &cpuid, order.starts, order.resettable)?;
        if index > 0 {
            let (ram, buses) = (Arc::clone(&order.ram), order.buses.clone());
            let thread = vcpu.spawn(ram, buses, Arc::clone(&order.mailbox));
            made.threads.push(thread.map_err(Error::io("Starting a vCPU thread"))?);
        }
        made.vcpus.push(vcpu);
    }
    // One thread less to start, which takes a tenth of a millisecond.
    let vcpu = Arc::clone(made.vcpus.first().ok_or(Error::Processors)?);
    stay_near(&order, 0)?;
    Ok(Some((made, First { vcpu, order })))
}

/// Has the calling thread run where the vCPU shall.
fn stay_near(order: &Order, vcpu: u32) -> Result<(), Error> {
    let processors = usize::try_from(vcpu).ok().and_then(|at| order.affinity.get(at));
    processors.map_or(Ok(()), stay_on).map_err(|source| Error::Affinity { vcpu, source })
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
    fn the_vcpus_may_run_wherever_their_owner_may() {
        let Some((making, order)) = begin() else { return };
        let processors = making.make(order).finish().unwrap();
        let own = rustix::thread::sched_getaffinity(None).unwrap();
        for thread in &processors.threads {
            // SAFETY: a `cpu_set_t` is an array of bits, of which all may be zero.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the thread was not joined, and the set lives through the call.
            let got = unsafe {
                libc::pthread_getaffinity_np(thread.as_pthread_t(), size_of_val(&set), &raw mut set)
            };
            assert_eq!(got, 0);
            // SAFETY: a set that the kernel has filled.
            assert_eq!(u32::try_from(unsafe { libc::CPU_COUNT(&set) }).unwrap(), own.count());
        }
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
