//! Making the VM, what it stands on and the processors: this takes KVM about as long as all the rest of a start.
//!
//! ```text
//!   owner      begin --- walls --- board --- console, devices ... --- vCPUs --- start
//!                \                ^                                  ^           |
//!   a thread      VM, early spec --+--- vCPUs -------------------------           |
//!   vCPU 0's                        begins as its kind --------------------- the others' threads, runs
//! ```
//!
//! Where the spec is known later, the owner makes the board, and vCPU 0's thread all vCPUs.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::Error;
use super::board::Board;
use crate::VmSpec;
use crate::cpuid::{Supported, Template};
use crate::spec::{CpuSpec, OnReset};
use crate::threads::{self, Kind};
use crate::vcpu::{self, Starts, Vcpu};
use crate::vm::Vm;

/// What the vCPUs are made of.
pub(super) struct Order {
    pub(super) cpus: CpuSpec,
    pub(super) affinity: Vec<BTreeSet<u32>>,
    pub(super) board: Board,
    /// In which state they first run.
    pub(super) starts: Starts,
    /// Whether their power-on state is kept, for a guest reset.
    pub(super) resettable: bool,
}

impl Order {
    pub(super) fn of(spec: &VmSpec, board: Board) -> Self {
        Self {
            cpus: spec.cpus,
            affinity: spec.affinity.clone(),
            board,
            starts: spec.starts,
            resettable: spec.on_reset == OnReset::Restart,
        }
    }
}

/// vCPUs, parked, and their threads.
#[derive(Default)]
pub(super) struct Processors {
    pub(super) vcpus: Vec<Arc<Vcpu>>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl Processors {
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

/// All vCPUs of a machine, by their index.
type Vcpus = Vec<Arc<Vcpu>>;

/// VM, board and vCPUs in the making, on a thread that ends with that.
pub(super) struct Making {
    helper: Helper,
    vm: Receiver<Arc<Vm>>,
    board: Receiver<(VmSpec, Board)>,
    width: Receiver<u8>,
    vcpus: Receiver<Result<Vcpus, Error>>,
}

/// That thread. Dropped, it is over.
struct Helper(Option<JoinHandle<()>>);

impl Drop for Helper {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("The thread that makes the processors ended by a fault of ours");
        }
    }
}

impl Making {
    /// Begins. `early` is asked on the thread, when there is a VM, what the machine is to be; none where that is known later.
    pub(super) fn begin(early: impl FnOnce() -> Option<VmSpec> + Send + 'static) -> Result<Self, Error> {
        let (vm_is, vm) = mpsc::channel();
        let (board_is, board) = mpsc::channel();
        let (width_is, width) = mpsc::channel();
        let (vcpus_are, vcpus) = mpsc::channel();
        let make = move || {
            let vm = Arc::new(Vm::new()?);
            let Some(spec) = early() else {
                let _ = vm_is.send(vm);
                return Err(Error::Processors);
            };
            let board = Board::new(vm, &spec)?;
            let order = Order::of(&spec, board.clone());
            let _ = board_is.send((spec, board));
            make(&order, width_is)
        };
        let thread = std::thread::Builder::new().name("processors".into()).stack_size(vcpu::STACK);
        let thread = thread.spawn(move || drop(vcpus_are.send(make())));
        let thread = thread.map_err(Error::io("Starting a thread"))?;
        keep_apart(&thread);
        Ok(Self { helper: Helper(Some(thread)), vm, board, width, vcpus })
    }

    /// Waits for the VM of a machine that was not known early.
    pub(super) fn vm(self) -> Result<Arc<Vm>, Error> {
        self.vm.recv().map_err(|_| failed(&self.vcpus))
    }

    /// Waits for the board of one that was, and begins the thread of vCPU 0.
    pub(super) fn board(self) -> Result<(VmSpec, Board, Made), Error> {
        let Self { helper, board, width, vcpus, .. } = self;
        let (spec, board) = board.recv().map_err(|_| failed(&vcpus))?;
        let first = First::begin(Order::of(&spec, board.clone()), |_| {})?;
        let made = Made { helper: Some(helper), first, width, vcpus, ready: Vec::new() };
        Ok((spec, board, made))
    }
}

/// Why a thread has ended that was to make vCPUs.
fn failed(vcpus: &Receiver<Result<Vcpus, Error>>) -> Error {
    vcpus.recv().ok().and_then(Result::err).unwrap_or(Error::Processors)
}

/// Processors that are being made or are ready. Dropped, they end.
pub(super) struct Made {
    /// Makes them, where the first one's thread does not.
    helper: Option<Helper>,
    first: First,
    width: Receiver<u8>,
    vcpus: Receiver<Result<Vcpus, Error>>,
    ready: Vcpus,
}

impl Made {
    /// Has them made on a board that is there.
    pub(super) fn order(order: Order) -> Result<Self, Error> {
        let (width_is, width) = mpsc::channel();
        let (vcpus_are, vcpus) = mpsc::channel();
        let first = First::begin(order, move |order| drop(vcpus_are.send(make(order, width_is))))?;
        Ok(Self { helper: None, first, width, vcpus, ready: Vec::new() })
    }

    /// Waits for the width of guest physical addresses.
    pub(super) fn address_bits(&mut self) -> Result<u8, Error> {
        match self.width.recv() {
            Ok(width) => Ok(width),
            Err(_) => Err(self.vcpus().err().unwrap_or(Error::Processors)),
        }
    }

    /// Waits for the vCPUs, parked. A thread that did no more than make them is over then.
    pub(super) fn vcpus(&mut self) -> Result<&[Arc<Vcpu>], Error> {
        if self.ready.is_empty() {
            self.ready = self.vcpus.recv().unwrap_or(Err(Error::Processors))?;
            self.helper = None;
        }
        Ok(&self.ready)
    }

    /// Starts their threads.
    pub(super) fn start(mut self) -> Result<Processors, Error> {
        let vcpus = self.vcpus()?.to_vec();
        // Some may have been started where not all could be.
        let threads = self.first.start(vcpus.clone());
        let threads = threads.inspect_err(|_| vcpus.iter().for_each(|vcpu| vcpu.end()))?;
        Ok(Processors { vcpus, threads })
    }
}

/// The thread of vCPU 0. Dropped before it was started, it ends.
struct First {
    starts: Option<Sender<Vcpus>>,
    started: Receiver<Result<Vec<JoinHandle<()>>, Error>>,
    thread: Option<JoinHandle<()>>,
}

impl First {
    /// Begins it. It does what is asked first, and then waits for all vCPUs.
    fn begin(order: Order, does: impl FnOnce(&Order) + Send + 'static) -> Result<Self, Error> {
        let (starts, start) = mpsc::channel::<Vcpus>();
        let (started_are, started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("vcpu0".into()).stack_size(vcpu::STACK);
        let thread = thread.spawn(move || {
            threads::begins(Kind::Vcpu);
            does(&order);
            // Else the machine was given up.
            let Ok(vcpus) = start.recv() else { return };
            let others = start_others(&order, &vcpus);
            let first = vcpus.first().filter(|_| others.is_ok()).map(Arc::clone);
            let _ = started_are.send(others);
            drop(vcpus);
            if let Some(first) = first {
                let Board { ram, buses, mailbox, .. } = order.board;
                first.run(ram, buses, &mailbox);
            }
        });
        let thread = thread.map_err(Error::io("Starting a thread"))?;
        Ok(Self { starts: Some(starts), started, thread: Some(thread) })
    }

    /// Has it start the threads of the others, and run. The answer is all threads.
    fn start(&mut self, vcpus: Vcpus) -> Result<Vec<JoinHandle<()>>, Error> {
        if let Some(starts) = self.starts.take() {
            let _ = starts.send(vcpus);
        }
        let mut threads = self.started.recv().unwrap_or(Err(Error::Processors))?;
        threads.extend(self.thread.take());
        Ok(threads)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.starts = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("A vCPU thread ended by a fault of ours");
        }
    }
}

/// Has a thread that was just started be on another processor than the caller's, where there is one: Linux may leave it on the same
/// one, behind the caller, for longer than the whole start takes.
fn keep_apart(thread: &JoinHandle<()>) {
    // SAFETY: a `cpu_set_t` is an array of bits, of which all may be zero.
    let mut others: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes that many bytes at most, into a set that lives through the call.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&others), &raw mut others) } != 0 {
        return;
    }
    let here = rustix::thread::sched_getcpu();
    // SAFETY: the processors that the kernel counts in a set of this size, it has shown above.
    let left = unsafe {
        libc::CPU_CLR(here, &mut others);
        libc::CPU_COUNT(&others)
    };
    if left > 0 {
        // SAFETY: the thread was neither joined nor detached, and the set lives through the call.
        let _ = unsafe {
            libc::pthread_setaffinity_np(thread.as_pthread_t(), size_of_val(&others), &raw const others)
        };
    }
}

/// Starts the threads of all but the first, whose thread calls this.
fn start_others(order: &Order, vcpus: &[Arc<Vcpu>]) -> Result<Vec<JoinHandle<()>>, Error> {
    let mut threads = Vec::new();
    for (index, vcpu) in (0..).zip(vcpus).skip(1) {
        // Its thread inherits it.
        stay_near(order, index)?;
        let Board { ram, buses, mailbox, .. } = order.board.clone();
        threads.push(vcpu.spawn(ram, buses, mailbox).map_err(Error::io("Starting a vCPU thread"))?);
    }
    stay_near(order, 0)?;
    Ok(threads)
}

/// Makes the vCPUs, parked.
fn make(order: &Order, width: Sender<u8>) -> Result<Vcpus, Error> {
    let supported = Supported::ask(order.board.vm.kvm())?;
    // Who waits for it is told by the sender's end where it does not come.
    let _ = width.send(supported.physical_address_bits());
    drop(width);
    let template = Template::new(supported, order.cpus)?;
    let make = |index| {
        // KVM's memory for the vCPU is then near.
        stay_near(order, index)?;
        let (apic_id, cpuid) = (template.apic_id(index), template.for_vcpu(index)?);
        Ok(Vcpu::new(&order.board.vm, index, apic_id, &cpuid, order.starts, order.resettable)?)
    };
    let vcpus = (0..order.cpus.count()).map(make).collect::<Result<Vcpus, Error>>()?;
    if vcpus.is_empty() { Err(Error::Processors) } else { Ok(vcpus) }
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
    use crate::spec::{MemorySpec, OnDeviceError};

    const CPUS: CpuSpec = CpuSpec { sockets: 1, cores: 2, threads: 1 };
    const MEMORY: MemorySpec = MemorySpec { size: 2 << 20, hugepages: None, prefault: false };

    fn spec() -> VmSpec {
        VmSpec {
            name: "test".to_owned(),
            cpus: CPUS,
            affinity: Vec::new(),
            memory: MEMORY,
            memory_policy: Default::default(),
            starts: Starts::AfterFirmware,
            cmdline: String::new(),
            on_reset: OnReset::Restart,
            on_device_error: OnDeviceError::Stop,
            on_panic: None,
            watchdog: None,
            hotplug_ports: 0,
        }
    }

    fn vm() -> Option<Arc<Vm>> {
        crate::vcpu::install_handler().unwrap();
        Vm::new().map(Arc::new).inspect_err(|error| eprintln!("skipped: {error}")).ok()
    }

    fn order() -> Option<Order> {
        Some(Order::of(&spec(), Board::new(vm()?, &spec()).unwrap()))
    }

    #[test]
    fn those_of_a_machine_that_is_known_early_need_no_order() {
        if vm().is_none() {
            return;
        }
        let (known, board, made) = Making::begin(|| Some(spec())).unwrap().board().unwrap();
        assert_eq!(known, spec());
        let processors = made.start().unwrap();
        assert_eq!((processors.vcpus.len(), processors.threads.len()), (2, 2));
        drop(processors);
        assert_eq!(Arc::strong_count(&board.ram), 1);
    }

    #[test]
    fn the_vm_of_one_that_is_not_is_its_owners() {
        if vm().is_none() {
            return;
        }
        let vm = Making::begin(|| None).unwrap().vm().unwrap();
        assert_eq!(Arc::strong_count(&vm), 1);
    }

    #[test]
    fn a_board_that_cannot_be_made_says_why() {
        if vm().is_none() {
            return;
        }
        let memory = MemorySpec { size: 1 << 60, ..MEMORY };
        let error = Making::begin(move || Some(VmSpec { memory, ..spec() })).unwrap().board().err().unwrap();
        assert!(matches!(error, Error::Memory(_)), "{error}");
    }

    #[test]
    fn they_are_made_while_others_work_and_end_when_dropped() {
        let Some(order) = order() else { return };
        let ram = Arc::clone(&order.board.ram);
        let mut made = Made::order(order).unwrap();
        assert!((36..=52).contains(&made.address_bits().unwrap()));
        let processors = made.start().unwrap();
        assert_eq!((processors.vcpus.len(), processors.threads.len()), (2, 2));
        drop(processors);
        assert_eq!(Arc::strong_count(&ram), 1);
    }

    #[test]
    fn the_vcpus_may_run_wherever_their_owner_may() {
        let Some(order) = order() else { return };
        let processors = Made::order(order).unwrap().start().unwrap();
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
        let Some(order) = order() else { return };
        let ram = Arc::clone(&order.board.ram);
        drop(Making::begin(|| Some(spec())).unwrap());
        drop(Making::begin(|| None).unwrap());
        drop(Made::order(order));
        assert_eq!(Arc::strong_count(&ram), 1);
    }

    #[test]
    fn a_processor_that_is_not_there_is_told() {
        let Some(mut order) = order() else { return };
        order.affinity = vec![BTreeSet::from([1023])];
        let error = Made::order(order).unwrap().start().err().unwrap();
        assert!(matches!(error, Error::Affinity { vcpu: 0, .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_made_says_why() {
        let Some(order) = order() else { return };
        let cpus = CpuSpec { sockets: 1, cores: 0, threads: 1 };
        let error = Made::order(Order { cpus, ..order }).unwrap().start().err().unwrap();
        assert!(matches!(error, Error::Cpuid(crate::cpuid::Error::Topology(_))), "{error}");
    }
}
