//! The machine: builds all parts, and owns every transition.
//!
//! ```text
//!            new            run                    guest reset
//!   VmSpec -------> built ---------> running ------------------> resetting --+
//!                                      ^  |                                  |
//!                                      +--|----------------------------------+
//!                                         | power-off, crash (but a triple fault resets), stop, device error
//!                                         v
//!                                      stopped: vCPUs joined, devices reset, memory let go
//! ```
//!
//! Running has states of its own, which `requests` draws.

mod console;
mod control;
mod error;
pub(crate) mod events;
mod hierarchy;
mod processors;
mod requests;
mod settle;
mod shutdowns;
mod start;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

pub use control::{Handle, Watched};
pub use error::Error;

use console::ConsoleInput;
use events::{Events, Source};
use hierarchy::Hierarchy;
use processors::{Made, Making, Order, Processors};
use requests::{Controlled, Listen};
use shutdowns::Shutdowns;
use start::Start;

use crate::bus::Bus;
use crate::control::{Message, Recent, RunState};
use crate::legacy::{Cmos, I8042, PowerManagement, PvPanic, SerialPort, ports};
use crate::mailbox::{Event, Mailbox};
use crate::memory::{GuestRam, KvmSlots};
use crate::outcome::{Crash, CrashKind};
use crate::pci::host_bridge::PowerOn;
use crate::spec::{Boot, OnDeviceError, OnReset, OnTrouble, Resources};
use crate::vcpu::{self, Buses, Starts};
use crate::vm::{IrqchipState, Vm};
use crate::{Action, Outcome, VmSpec, layout};

/// A machine that is built and not yet running.
pub struct Machine {
    spec: VmSpec,
    vm: Arc<Vm>,
    ram: Arc<GuestRam>,
    mailbox: Arc<Mailbox>,
    buses: Buses,
    watched: Vec<Box<dyn Watched>>,
    recent: Arc<Recent>,
    listen: Option<Listen>,
    made: Option<Made>,
}

/// A machine of which only that is being made which is the same for all, on a thread of its own.
pub struct Begun(Making);

impl Begun {
    /// Begins; what fails is said by [`Machine::new`].
    pub fn begin() -> Result<Self, Error> {
        Ok(Self(Making::begin()?))
    }
}

impl Machine {
    /// Makes the virtual machine and its memory.
    pub fn new(spec: VmSpec, Begun(making): Begun) -> Result<Self, Error> {
        vcpu::install_handler().map_err(Error::io("Installing the signal handler of vCPU threads"))?;
        let vm = making.vm()?;
        let ram = Arc::new(GuestRam::with_policy(&spec.memory, &spec.memory_policy)?);
        ram.listen(Arc::new(KvmSlots::new(Arc::clone(&vm))))?;
        vm.create_interrupt_controllers()?;
        let mailbox = Arc::new(Mailbox::new().map_err(Error::io("Making the machine's mailbox"))?);
        let buses = Buses { pio: Arc::new(Bus::new()), mmio: Arc::new(Bus::new()) };
        let made = making.make(Order {
            cpus: spec.cpus,
            affinity: spec.affinity.clone(),
            ram: Arc::clone(&ram),
            buses: buses.clone(),
            mailbox: Arc::clone(&mailbox),
            starts: spec.starts,
            resettable: spec.on_reset == OnReset::Restart,
        });
        let recent = Arc::new(Recent::new().map_err(Error::io("Making an eventfd for the console"))?);
        Ok(Self {
            spec,
            vm,
            ram,
            mailbox,
            buses,
            watched: Vec::new(),
            recent,
            listen: None,
            made: Some(made),
        })
    }

    /// The KVM VFIO device, for opening the functions that [`Resources::slots`] will hold.
    pub fn vfio_device(&self) -> Result<OwnedFd, Error> {
        Ok(self.vm.vfio_device()?)
    }

    /// For stopping it while it runs.
    pub fn handle(&self) -> Handle {
        Handle { mailbox: Arc::clone(&self.mailbox) }
    }

    /// Waits for `watched` too while the guest runs; up to 256 of them.
    pub fn watch(&mut self, watched: Box<dyn Watched>) {
        self.watched.push(watched);
    }

    /// Has it controlled over a socket ([`control`](crate::control)). `listen` makes one that listens: on the thread that runs
    /// the machine, once the guest has had a little time for its own start. What fails there is said in the log.
    pub fn control(&mut self, listen: impl FnOnce() -> io::Result<OwnedFd> + Send + 'static) {
        self.listen = Some(Box::new(listen));
    }

    /// Runs the guest to its end. Whatever the end, devices are reset and let go before this returns.
    pub fn run(self, resources: Resources) -> Result<Outcome, Error> {
        let mut running = Running::build(self, resources)?;
        let result = running.power_on().and_then(|()| running.serve());
        running.say_goodbye(&result);
        running.stop();
        if tracing::enabled!(tracing::Level::DEBUG) {
            running.each_stats(|line| tracing::debug!("{line}"));
        }
        result
    }
}

/// A machine with all its parts.
struct Running {
    machine: Machine,
    start: Start,
    hierarchy: Hierarchy,
    pm: Arc<PowerManagement>,
    serial: Arc<SerialPort>,
    panic: Option<Arc<PvPanic>>,
    console: ConsoleInput,
    events: Events,
    irqchip: Option<IrqchipState>,
    processors: Processors,
    shutdowns: Shutdowns,
    controlled: Controlled,
    made: Option<Made>,
}

impl Running {
    fn build(mut machine: Machine, resources: Resources) -> Result<Self, Error> {
        let Resources { boot, console, slots, virtio } = resources;
        let power_on = match (&boot, machine.spec.starts) {
            (Boot::Kernel { .. }, Starts::AfterFirmware) => PowerOn::Programmed,
            (Boot::Firmware(_), Starts::AtReset) => PowerOn::Bare,
            _ => return Err(Error::Starts),
        };
        let made = machine.made.take().ok_or(Error::Processors)?;
        let (address_bits, made) = made.address_bits()?;
        let buses = machine.buses.clone();
        let resettable = machine.spec.on_reset == OnReset::Restart;
        let irqchip = resettable.then(|| machine.vm.irqchip_state()).transpose()?;

        let pm = Arc::new(power_management(&machine.vm));
        machine.recent.has_log(console.log.is_some());
        let serial = SerialPort::new(&machine.vm, console.output, console.log, &machine.recent)?;
        insert_legacy(&buses, &machine.ram, &serial)?;
        let panic = machine.spec.on_panic.map(|_| Arc::new(PvPanic::default()));
        if let Some(port) = &panic {
            buses.pio.insert(ports::PVPANIC.into(), 1, Arc::clone(port) as _)?;
        }

        let chipset = (&pm, power_on);
        let mut hierarchy =
            Hierarchy::build(&machine.vm, &machine.ram, &buses, chipset, slots, address_bits)?;
        for slot in virtio {
            hierarchy.add_virtio(&machine.vm, &machine.ram, slot)?;
        }
        if machine.spec.watchdog.is_some() {
            hierarchy.add_watchdog()?;
        }
        let start = Start::new(&machine, &buses, &hierarchy, boot, address_bits)?;

        let events = Events::new().map_err(Error::io("Making the machine's event loop"))?;
        let failed = Error::io("Watching the machine's descriptors");
        let console = events
            .watch(&*machine.mailbox, Source::Mailbox)
            .and_then(|_| events.watch(machine.recent.more().fd(), Source::Said))
            .and_then(|_| hierarchy.watch(&events))
            .and_then(|()| ConsoleInput::new(Arc::clone(&serial), console.input, &events))
            .map_err(failed)?;

        for (watched, index) in machine.watched.iter().zip(0..=u8::MAX) {
            events
                .watch(watched.descriptor(), Source::Owner(index))
                .map_err(Error::io("Watching a descriptor of the machine's owner"))?;
        }

        let controlled = Controlled::new(machine.listen.take());
        Ok(Self {
            machine,
            start,
            hierarchy,
            pm,
            serial,
            panic,
            console,
            events,
            irqchip,
            processors: Processors::default(),
            shutdowns: Shutdowns::default(),
            controlled,
            made: Some(made),
        })
    }

    /// Makes ready what the boot processor starts with, and lets it.
    fn power_on(&mut self) -> Result<(), Error> {
        let entry = self.start.prepare(&self.machine, &self.hierarchy)?;
        if let Some(made) = self.made.take() {
            self.processors = made.finish()?;
        }
        if let (Some(entry), Some(first)) = (entry, self.processors.vcpus.first()) {
            first.enter_at(&entry)?;
        }
        if !self.controlled.is_paused() {
            self.processors.resume();
        }
        Ok(())
    }

    /// Waits, and does what is asked for, until the end.
    fn serve(&mut self) -> Result<Outcome, Error> {
        // Later, as both hold up the vCPUs' first page faults.
        let mut settle_at = Some(Instant::now() + settle::AFTER);
        loop {
            let due = settle_at.into_iter().chain(self.controlled.deadline()).min();
            let left = due.map(|at| at.saturating_duration_since(Instant::now()));
            let ready = self.events.wait(left).map_err(Error::io("Waiting for events"))?;
            if self.controlled.stop_is_due() {
                tracing::info!("The guest has not shut down in time, and is stopped");
                return Ok(Outcome::Stopped);
            }
            if settle_at.take_if(|at| *at <= Instant::now()).is_some() {
                self.open_control();
                settle::settle();
            }
            let was_quiet = self.controlled.is_quiet();
            for source in ready {
                let end = match source {
                    Source::Mailbox => self.take_mail()?,
                    Source::ConsoleInput => {
                        self.console.readable(&self.events).map_err(Error::io("Reading the console"))?;
                        None
                    }
                    Source::ConsoleDrained => {
                        self.console.drained(&self.events).map_err(Error::io("Reading the console"))?;
                        None
                    }
                    Source::Owner(index) => {
                        self.owner(index).map_err(Error::io("Waiting no more for a descriptor"))?;
                        None
                    }
                    Source::Device(index) => {
                        let action = self.hierarchy.ready(index);
                        self.act(action)?
                    }
                    Source::Said => {
                        self.machine.recent.look();
                        self.serial.write_log();
                        None
                    }
                    Source::Control(place) => self.control(place)?,
                };
                if let Some(outcome) = end {
                    return Ok(outcome);
                }
            }
            if let Some(outcome) = self.serve_clients()? {
                return Ok(outcome);
            }
            if !was_quiet && self.controlled.is_quiet() {
                // What answered them is needed no more.
                settle_at = settle_at.or(Some(Instant::now() + settle::AFTER_A_CLIENT));
            }
        }
    }

    fn owner(&mut self, index: u8) -> io::Result<()> {
        let Some(watched) = self.machine.watched.get_mut(usize::from(index)) else { return Ok(()) };
        if watched.ready() { Ok(()) } else { self.events.forget(watched.descriptor()) }
    }

    fn take_mail(&mut self) -> Result<Option<Outcome>, Error> {
        while let Some(event) = self.machine.mailbox.take() {
            let end = match event {
                Event::Action(action) => self.act(action)?,
                Event::Crash(crash) => self.crash(crash)?,
                Event::Fault { vcpu } => return Err(Error::Fault { vcpu }),
                Event::Stop => Some(Outcome::Stopped),
                Event::PowerButton => {
                    self.pm.press_power_button();
                    None
                }
                Event::Stats => {
                    self.each_stats(|line| tracing::info!("{line}"));
                    None
                }
            };
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    fn act(&mut self, action: Action) -> Result<Option<Outcome>, Error> {
        match action {
            Action::None => Ok(None),
            Action::PowerOff => Ok(Some(Outcome::PowerOff)),
            Action::Reset => self.reset(),
            Action::DeviceError { device, what } => self.device_error(device, what),
            Action::Panicked => self.trouble("a panic of its kernel", "on-panic", self.machine.spec.on_panic),
            Action::CrashKernel => {
                tracing::warn!("A panic of the guest's kernel; its crash kernel goes on");
                Ok(None)
            }
            Action::WatchdogExpired => {
                self.trouble("its watchdog was not reloaded in time", "watchdog", self.machine.spec.watchdog)
            }
        }
    }

    /// A processor that a triple fault shut down is reset by the board (Intel SDM, volume 3, 7.15, interrupt 8), and some
    /// systems restart that way. Anything else is the end.
    fn crash(&mut self, crash: Box<Crash>) -> Result<Option<Outcome>, Error> {
        let restarts = self.machine.spec.on_reset == OnReset::Restart;
        if crash.kind != CrashKind::TripleFault || !restarts || !self.shutdowns.may_reset(Instant::now()) {
            return Ok(Some(Outcome::Crash(crash)));
        }
        tracing::warn!("{crash}\nThe guest is reset, as a board does after a triple fault");
        self.reset()
    }

    fn trouble(
        &mut self,
        what: &'static str,
        key: &str,
        policy: Option<OnTrouble>,
    ) -> Result<Option<Outcome>, Error> {
        match policy.unwrap_or(OnTrouble::Log) {
            OnTrouble::Log => {
                tracing::error!("The guest is in trouble: {what}; it goes on, as `{key}: log` asks");
                Ok(None)
            }
            OnTrouble::Pause => {
                tracing::error!("The guest is in trouble: {what}; it is paused, as `{key}: pause` asks");
                if let Message::Error(refusal) = self.pause() {
                    tracing::error!("Pausing the guest: {}", refusal.message);
                }
                Ok(None)
            }
            OnTrouble::Reset => {
                tracing::error!("The guest is in trouble: {what}; it is reset, as `{key}: reset` asks");
                self.reset()
            }
            OnTrouble::Stop => Ok(Some(Outcome::Trouble { what })),
        }
    }

    fn device_error(&mut self, device: String, what: String) -> Result<Option<Outcome>, Error> {
        match self.machine.spec.on_device_error {
            OnDeviceError::Ignore => {
                tracing::warn!("{device}: {what}; ignored, as `on-device-error: ignore` asks");
                Ok(None)
            }
            OnDeviceError::Stop => Ok(Some(Outcome::DeviceError { device, what })),
            OnDeviceError::Reset => {
                tracing::warn!("{device}: {what}; the guest is reset, as `on-device-error: reset` asks");
                self.reset()
            }
            OnDeviceError::Detach => {
                tracing::warn!(
                    "{device}: {what}; it is taken from the guest, as `on-device-error: detach` asks"
                );
                self.hierarchy.detach(&device);
                Ok(None)
            }
        }
    }

    fn reset(&mut self) -> Result<Option<Outcome>, Error> {
        if self.controlled.state == RunState::Stopping {
            // Whether it shuts down or starts again: this is where it may be ended.
            return Ok(Some(Outcome::Stopped));
        }
        let Some(irqchip) = &self.irqchip else { return Ok(Some(Outcome::Reset)) };
        tracing::info!("The guest resets");
        self.serial.hurry();
        self.processors.park();
        self.machine.mailbox.forget_guest();
        self.hierarchy.reset();
        self.pm.reset();
        if let Some(panic) = &self.panic {
            panic.reset();
        }
        let once = self.controlled.starts_again();
        self.start.reset(once.and_then(|name| self.hierarchy.boot_order(&[name]).first().copied()));
        self.serial.reset().map_err(Error::io("Resetting COM1"))?;
        self.machine.vm.restore_irqchip(irqchip)?;
        for vcpu in &self.processors.vcpus {
            vcpu.reset()?;
        }
        self.power_on()?;
        Ok(None)
    }

    /// What KVM has counted of each vCPU and what the virtio devices say, as lines for the log.
    fn each_stats(&self, log: impl Fn(&str)) {
        self.hierarchy.each_report(&log);
        for (vcpu, index) in self.processors.vcpus.iter().zip(0..) {
            match vcpu.stats() {
                Ok(counters) => log(&format!("KVM statistics of vCPU {index}: {counters}")),
                Err(error) => log(&format!("KVM has no statistics of vCPU {index}: {error}")),
            }
        }
    }

    /// Ends the processors first: nothing may touch a device while it is let go.
    fn stop(&mut self) {
        self.serial.hurry();
        drop(self.made.take());
        self.processors.end();
        self.serial.write_log();
        self.start.close();
        self.hierarchy.reset();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.made.is_some() || !self.processors.threads.is_empty() {
            self.stop();
        }
    }
}

fn power_management(vm: &Arc<Vm>) -> PowerManagement {
    let vm = Arc::clone(vm);
    PowerManagement::new(Box::new(move |asserted| {
        if let Err(error) = vm.set_line(layout::SCI_IRQ, asserted) {
            tracing::error!("The interrupt of ACPI events: {error}");
        }
    }))
}

fn insert_legacy(buses: &Buses, ram: &GuestRam, serial: &Arc<SerialPort>) -> Result<(), Error> {
    let pio = &buses.pio;
    pio.insert(ports::COM1.into(), 8, Arc::clone(serial) as _)?;
    pio.insert(ports::CMOS.into(), 2, Arc::new(Cmos::new(ram.size())))?;
    pio.insert(ports::I8042_DATA.into(), 1, Arc::new(I8042::Data))?;
    pio.insert(ports::I8042_COMMAND.into(), 1, Arc::new(I8042::Command))?;
    Ok(())
}
