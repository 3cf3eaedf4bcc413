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

mod board;
mod card;
mod console;
mod control;
mod error;
pub(crate) mod events;
mod hierarchy;
mod hotplug;
mod processors;
mod requests;
mod settle;
mod shutdowns;
mod start;
mod trouble;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

pub use control::{Handle, Watched};
pub use error::Error;
pub use hotplug::{Change, Changed, DeviceSource, HotplugRequest};
pub use settle::settle;

use board::Board;
use console::{ConsoleInput, GuestEnd};
use events::{Events, Source};
use hierarchy::Hierarchy;
use hotplug::{Hotplug, Parts};
use processors::{Made, Making, Order, Processors};
use requests::{Controlled, Listen};
use shutdowns::Shutdowns;
use start::Start;

use crate::control::{Recent, RunState};
use crate::legacy::{Cmos, ConsoleOutput, I8042, PowerManagement, PvPanic, SerialPort, ports};
use crate::mailbox::{Event, Mailbox};
use crate::memory::GuestRam;
use crate::pci::host_bridge::PowerOn;
use crate::spec::{Boot, ConsoleDevice, OnReset, Resources, VirtioSlot};
use crate::vcpu::{self, Buses, Starts};
use crate::virtio::console::{Console, Keyboard};
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
    devices: Option<Arc<dyn DeviceSource>>,
    made: Option<Made>,
}

/// A machine in the making, on a thread of its own: of which there is only what is the same for all, or more where it is known early
/// what it is to be.
pub struct Begun(Making);

impl Begun {
    /// Begins to make a VM; what fails is said by [`Machine::new`] or [`Machine::known`]. `early` is then asked, on that thread,
    /// what the machine is to be: where it says so, all is made that KVM takes long for, while the owner does other things. Not
    /// for one whose memory is touched before the start: other threads do that, which would not be [guarded](crate::threads)
    /// yet.
    pub fn begin(early: impl FnOnce() -> Option<VmSpec> + Send + 'static) -> Result<Self, Error> {
        vcpu::install_handler().map_err(Error::io("Installing the signal handler of vCPU threads"))?;
        Ok(Self(Making::begin(early)?))
    }
}

impl Machine {
    /// Makes the virtual machine and its memory.
    pub fn new(spec: VmSpec, Begun(making): Begun) -> Result<Self, Error> {
        let board = Board::new(making.vm()?, &spec)?;
        let made = Made::order(Order::of(&spec, board.clone()))?;
        Self::on(spec, board, made)
    }

    /// The same of one that was known early.
    pub fn known(Begun(making): Begun) -> Result<Self, Error> {
        let (spec, board, made) = making.board()?;
        Self::on(spec, board, made)
    }

    fn on(spec: VmSpec, board: Board, made: Made) -> Result<Self, Error> {
        let Board { vm, ram, buses, mailbox } = board;
        // While the vCPUs are made.
        vm.create_timer()?;
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
            devices: None,
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

    /// Devices that are plugged in while the guest runs come from there. Without one, it takes none.
    pub fn plug_from(&mut self, devices: Arc<dyn DeviceSource>) {
        self.devices = Some(devices);
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
    output: Arc<ConsoleOutput>,
    panic: Option<Arc<PvPanic>>,
    console: ConsoleInput,
    events: Events,
    irqchip: Option<IrqchipState>,
    processors: Processors,
    shutdowns: Shutdowns,
    controlled: Controlled,
    made: Option<Made>,
    hotplug: Hotplug,
}

impl Running {
    fn build(mut machine: Machine, resources: Resources) -> Result<Self, Error> {
        let Resources { boot, console, slots, virtio } = resources;
        let power_on = match (&boot, machine.spec.starts) {
            (Boot::Kernel { .. }, Starts::AfterFirmware) => PowerOn::Programmed,
            (Boot::Firmware(_), Starts::AtReset) => PowerOn::Bare,
            _ => return Err(Error::Starts),
        };
        let mut made = machine.made.take().ok_or(Error::Processors)?;
        let address_bits = made.address_bits()?;
        let buses = machine.buses.clone();
        let resettable = machine.spec.on_reset == OnReset::Restart;
        let irqchip = resettable.then(|| machine.vm.irqchip_state()).transpose()?;

        let pm = Arc::new(power_management(&machine.vm));
        machine.recent.has_log(console.log.is_some());
        let output = ConsoleOutput::new(console.output, console.log, &machine.recent)
            .map_err(Error::io("Making the console's eventfd"))?;
        let serial = SerialPort::new(&machine.vm, Arc::clone(&output))?;
        insert_legacy(&buses, &machine.ram, &serial, power_on)?;
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
        let input = match console.device {
            ConsoleDevice::Serial => GuestEnd::Serial(Arc::clone(&serial)),
            ConsoleDevice::Virtio => {
                let made = Keyboard::new().and_then(|keyboard| {
                    let keyboard = Arc::new(keyboard);
                    Ok((Console::new(Arc::clone(&keyboard), Arc::clone(&output))?, keyboard))
                });
                let (device, keyboard) = made.map_err(Error::io("Making the virtio console"))?;
                let slot = VirtioSlot { name: "console".to_owned(), device: Box::new(device) };
                hierarchy.add_virtio(&machine.vm, &machine.ram, slot)?;
                GuestEnd::Virtio(keyboard)
            }
        };
        if machine.spec.watchdog.is_some() {
            hierarchy.add_watchdog()?;
        }
        hierarchy.add_spare_ports(&machine.vm, machine.spec.hotplug_ports)?;
        let start = Start::new(&machine, &buses, &hierarchy, boot, address_bits)?;

        let events = Events::new().map_err(Error::io("Making the machine's event loop"))?;
        let failed = Error::io("Watching the machine's descriptors");
        let console = events
            .watch(&*machine.mailbox, Source::Mailbox)
            .and_then(|_| events.watch(machine.recent.more().fd(), Source::Said))
            .and_then(|_| hierarchy.watch(&events))
            .and_then(|()| ConsoleInput::new(input, console.input, &events))
            .map_err(failed)?;

        for (watched, index) in machine.watched.iter().zip(0..=u8::MAX) {
            events
                .watch(watched.descriptor(), Source::Owner(index))
                .map_err(Error::io("Watching a descriptor of the machine's owner"))?;
        }

        let controlled = Controlled::new(machine.listen.take());
        let hotplug = Hotplug::new(machine.devices.take());
        Ok(Self {
            machine,
            hotplug,
            start,
            hierarchy,
            pm,
            serial,
            output,
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
        let mut made = self.made.take();
        let vcpus = match &mut made {
            Some(made) => made.vcpus()?,
            None => &self.processors.vcpus,
        };
        if let (Some(entry), Some(first)) = (entry, vcpus.first()) {
            first.enter_at(&entry)?;
        }
        if !self.controlled.is_paused() {
            vcpus.iter().for_each(|vcpu| vcpu.resume());
        }
        if let Some(made) = made {
            self.processors = made.start()?;
        }
        Ok(())
    }

    /// Waits, and does what is asked for, until the end.
    fn serve(&mut self) -> Result<Outcome, Error> {
        // Later, as both hold up the vCPUs' first page faults.
        let mut settle_at = Some(Instant::now() + settle::AFTER);
        loop {
            let due = [self.controlled.deadline(), self.hotplug.deadline()].into_iter().flatten();
            let due = settle_at.into_iter().chain(due).min();
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
            if self.hotplug.deadline().is_some_and(|at| at <= Instant::now()) {
                self.with_hotplug(|hotplug, parts| hotplug.look(parts));
            }
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
                    Source::Hotplug => {
                        self.with_hotplug(|hotplug, parts| hotplug.look(parts));
                        None
                    }
                    Source::Device(index) => {
                        let action = self.hierarchy.ready(index);
                        self.act(action)?
                    }
                    Source::Said => {
                        self.machine.recent.look();
                        self.output.write_log();
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
                Event::Hotplug(request) => {
                    self.with_hotplug(|hotplug, parts| hotplug.request(request, parts));
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

    fn with_hotplug(&mut self, does: impl FnOnce(&mut Hotplug, &mut Parts<'_>)) {
        let Self { hotplug, machine, hierarchy, events, .. } = self;
        does(hotplug, &mut Parts { vm: &machine.vm, ram: &machine.ram, hierarchy, events });
    }

    fn reset(&mut self) -> Result<Option<Outcome>, Error> {
        if self.controlled.state == RunState::Stopping {
            // Whether it shuts down or starts again: this is where it may be ended.
            return Ok(Some(Outcome::Stopped));
        }
        if self.irqchip.is_none() {
            return Ok(Some(Outcome::Reset));
        }
        tracing::info!("The guest resets");
        self.output.hurry();
        self.processors.park();
        self.machine.mailbox.forget_guest();
        self.with_hotplug(Hotplug::guest_was_reset);
        self.hierarchy.reset();
        self.pm.reset();
        if let Some(panic) = &self.panic {
            panic.reset();
        }
        let once = self.controlled.starts_again();
        self.start.reset(once.and_then(|name| self.hierarchy.boot_order(&[name]).first().copied()));
        self.serial.reset().map_err(Error::io("Resetting COM1"))?;
        if let Some(irqchip) = &self.irqchip {
            self.machine.vm.restore_irqchip(irqchip)?;
        }
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
        self.output.hurry();
        drop(self.made.take());
        self.processors.end();
        self.output.write_log();
        self.start.close();
        self.hotplug.stop();
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

fn insert_legacy(
    buses: &Buses,
    ram: &GuestRam,
    serial: &Arc<SerialPort>,
    power_on: PowerOn,
) -> Result<(), Error> {
    let pio = &buses.pio;
    pio.insert(ports::COM1.into(), 8, Arc::clone(serial) as _)?;
    pio.insert(ports::CMOS.into(), 2, Arc::new(Cmos::new(ram.size())))?;
    let command = match power_on {
        PowerOn::Programmed => {
            pio.insert(ports::I8042_DATA.into(), 1, Arc::new(I8042::Data))?;
            I8042::Command
        }
        PowerOn::Bare => I8042::ResetLine,
    };
    pio.insert(ports::I8042_COMMAND.into(), 1, Arc::new(command))?;
    Ok(())
}
