//! Virtual processors: one thread each.
//!
//! ```text
//!             start               action, crash, kick
//!   created ---------> running ------------------------> parked --+
//!                        ^                                  |      | exit
//!                        +---------------- resume ----------+      v
//!                                                                ended
//! ```
//!
//! A vCPU that meets something the machine must decide about (an [`Action`], a crash) posts it to the mailbox and parks
//! itself; whoever owns the machine makes the transition. While it is parked its KVM handle may be used by others.

mod crash;
mod kick;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::mailbox::{Event, Mailbox};
use crate::memory::GuestRam;
use crate::outcome::{Crash, CrashKind};
use crate::threads::{self, Kind};
use crate::vm::{self, Counters, Stats, Vm};
use crate::{Action, boot};
use kick::Switch;
pub use kick::install_handler;
use state::PowerOn;

/// Bytes of stack of a vCPU's thread.
pub const STACK: usize = 256 << 10;

/// What a vCPU reaches by its exits.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// In which state a vCPU first runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Starts {
    /// As firmware would have left it, for direct boot.
    AfterFirmware,
    /// At the reset vector, for firmware to begin.
    AtReset,
}

impl Starts {
    fn set(self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        match self {
            Self::AfterFirmware => boot::setup_firmware_state(fd),
            Self::AtReset => boot::clear_memory_types(fd),
        }
    }
}

/// One vCPU. Its thread holds `fd` while it runs; parked, the owner of the machine may take it.
pub struct Vcpu {
    index: u32,
    fd: Mutex<VcpuFd>,
    starts: Starts,
    switch: Switch,
    power_on: Option<PowerOn>,
    stats: io::Result<Stats>,
}

impl Vcpu {
    /// Makes a vCPU whose APIC id is `apic_id`, parked. With `resettable`, its state is kept for [`reset`](Self::reset).
    pub fn new(
        vm: &Vm,
        index: u32,
        apic_id: u32,
        cpuid: &CpuId,
        starts: Starts,
        resettable: bool,
    ) -> Result<Arc<Self>, vm::Error> {
        let doing = |what: &str| vm::Error::call(format!("{what} vCPU {index}"));
        let fd = vm.fd().create_vcpu(u64::from(apic_id)).map_err(doing("Creating"))?;
        fd.set_cpuid2(cpuid).map_err(doing("Setting the CPUID of"))?;
        starts.set(&fd).map_err(doing("Setting the first MSRs of"))?;
        let power_on = resettable.then(|| PowerOn::capture(vm.kvm(), &fd)).transpose();
        let power_on = power_on.map_err(doing("Reading the power-on state of"))?;
        // Now, as KVM does not answer while the vCPU runs.
        let stats = Stats::of(&fd);
        Ok(Arc::new(Self { index, fd: Mutex::new(fd), starts, switch: Switch::default(), power_on, stats }))
    }

    /// What KVM has counted of it up to now, whether it runs or not.
    pub fn stats(&self) -> io::Result<Counters> {
        match &self.stats {
            Ok(stats) => stats.read(),
            Err(error) => {
                Err(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error))
            }
        }
    }

    /// Sets the boot vCPU up to enter the kernel.
    pub fn enter_at(&self, entry: &boot::Entry) -> Result<(), boot::Error> {
        boot::setup_registers(&self.fd.lock().unwrap_or_else(PoisonError::into_inner), entry)
    }

    /// Back to power-on. Only while parked.
    pub fn reset(&self) -> Result<(), vm::Error> {
        let fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = &self.power_on else { return Err(vm::Error::Capability("a kept power-on state")) };
        state
            .restore(&fd)
            .and_then(|()| self.starts.set(&fd))
            .map_err(vm::Error::call(format!("Resetting vCPU {}", self.index)))
    }

    /// What its thread is called.
    pub fn name(&self) -> String {
        format!("vcpu{}", self.index)
    }

    /// Starts a thread for it; it is parked until [`resume`](Self::resume).
    pub fn spawn(
        self: &Arc<Self>,
        ram: Arc<GuestRam>,
        buses: Buses,
        mailbox: Arc<Mailbox>,
    ) -> io::Result<JoinHandle<()>> {
        let vcpu = Arc::clone(self);
        let thread = std::thread::Builder::new().name(self.name()).stack_size(STACK);
        thread.spawn(move || {
            threads::begins(Kind::Vcpu);
            vcpu.run(ram, buses, &mailbox);
        })
    }

    /// Makes the calling thread the vCPU's until its end. It is parked until [`resume`](Self::resume).
    pub fn run(&self, ram: Arc<GuestRam>, buses: Buses, mailbox: &Mailbox) {
        self.switch.enter_thread();
        let _leaving = Leaving { vcpu: self, mailbox };
        let runner = Runner { vcpu: self, ram, buses, mailbox };
        while self.switch.wait_to_run(self.index == 0) {
            runner.run();
        }
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.switch.resume();
    }

    /// Lets it run after a pause: its guest is told that it was paused (KVM_KVMCLOCK_CTRL), so that it does not take the time
    /// for a processor that hung. Only while parked.
    pub fn resume_from_pause(&self) {
        let told = self.fd.lock().unwrap_or_else(PoisonError::into_inner).kvmclock_ctrl();
        if let Err(error) = told {
            // EINVAL: the guest does not use kvm-clock.
            tracing::debug!("Telling vCPU {} of the pause: {error}", self.index);
        }
        self.resume();
    }

    /// Asks it to park at its next exit. [`park`](Self::park) does not let it wait for one.
    pub fn ask_to_park(&self) {
        self.switch.park_self();
    }

    /// Stops it between two instructions and returns when it is parked.
    pub fn park(&self) {
        self.switch.park();
    }

    /// Ends its thread; join it afterwards.
    pub fn end(&self) {
        self.switch.end();
    }
}

/// Says that the thread is gone, also where it ends by a panic: nobody may wait for it then.
struct Leaving<'a> {
    vcpu: &'a Vcpu,
    mailbox: &'a Mailbox,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.vcpu.switch.leave_thread();
        if std::thread::panicking() {
            self.mailbox.post(Event::Fault { vcpu: self.vcpu.index });
        }
    }
}

/// What one turn of the loop decided.
enum Turn {
    Again,
    Post(Event),
}

struct Runner<'a> {
    vcpu: &'a Vcpu,
    ram: Arc<GuestRam>,
    buses: Buses,
    mailbox: &'a Mailbox,
}

impl Runner<'_> {
    /// Runs until someone wants it parked, or until it has posted something that the machine must decide about.
    fn run(&self) {
        let mut fd = self.vcpu.fd.lock().unwrap_or_else(PoisonError::into_inner);
        while self.vcpu.switch.may_run() {
            if let Turn::Post(event) = self.turn(&mut fd) {
                self.vcpu.switch.park_self();
                self.mailbox.post(event);
            }
        }
    }

    fn turn(&self, fd: &mut VcpuFd) -> Turn {
        let unit = io_unit(fd);
        let kind = match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                for chunk in data.chunks_mut(unit.read()) {
                    self.buses.pio.read(u64::from(port), chunk);
                }
                return Turn::Again;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let mut turn = Turn::Again;
                for chunk in data.chunks(unit.read()) {
                    if let Turn::Post(event) = self.after(self.buses.pio.write(u64::from(port), chunk)) {
                        turn = Turn::Post(event);
                    }
                }
                return turn;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.buses.mmio.read(address, data);
                return Turn::Again;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                return self.after(self.buses.mmio.write(address, data));
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => return Turn::Again,
            Ok(VcpuExit::Shutdown) => CrashKind::TripleFault,
            Ok(VcpuExit::FailEntry(reason, _)) => CrashKind::EntryFailure { reason },
            Ok(VcpuExit::InternalError) => CrashKind::InternalError { suberror: crash::suberror(fd) },
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                CrashKind::Unexpected { exit: format!("memory fault at guest address {gpa:#x}") }
            }
            Ok(other) => CrashKind::Unexpected { exit: format!("{other:?}") },
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Turn::Again,
            Err(error) => CrashKind::Unexpected {
                exit: format!("KVM_RUN: {}", io::Error::from_raw_os_error(error.errno())),
            },
        };
        let crash = Crash {
            kind,
            vcpu: self.vcpu.index,
            registers: crash::registers(fd),
            instruction: crash::instruction(fd, self.ram.memory(), &self.buses.mmio),
        };
        Turn::Post(Event::Crash(Box::new(crash)))
    }

    fn after(&self, action: Action) -> Turn {
        match action {
            Action::None => Turn::Again,
            // These do not stop the processor by themselves: the policy may be to go on.
            Action::DeviceError { .. } | Action::Panicked | Action::CrashKernel | Action::WatchdogExpired => {
                self.mailbox.post(Event::Action(action));
                Turn::Again
            }
            Action::PowerOff | Action::Reset => Turn::Post(Event::Action(action)),
        }
    }
}

/// The size of one element of a string I/O exit, read after the exit (`kvm-ioctls` gives only all elements together).
struct IoUnit(*const kvm_bindings::kvm_run);

fn io_unit(fd: &mut VcpuFd) -> IoUnit {
    IoUnit(std::ptr::from_mut(fd.get_kvm_run()).cast_const())
}

impl IoUnit {
    /// 1, 2 or 4 bytes.
    fn read(&self) -> usize {
        // SAFETY: the page is mapped as long as the vCPU's handle, which `turn` borrows around every use; in an I/O exit
        // this member of the union is the one that KVM wrote.
        let size = unsafe { (*self.0).__bindgen_anon_1.io.size };
        usize::from(size).clamp(1, 4)
    }
}
