//! The guest's machine in its process: locked up, with what its keeper hands over.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak, mpsc};

use anyhow::Context as _;
use vfio::kernel::{Iommu, SpaceFile};
use vmm::machine::{DeviceSource, Error};
use vmm::spec::{Console, NewDevice, Resources, VirtioSlot};
use vmm::threads::{self, Kind};
use vmm::{Begun, Machine, VmSpec};

use super::super::early;
use super::super::terminal::{self, Heard};
use super::told::{Ended, Log, Prepare, Say, Start, Tell, chain};
use crate::control::RotatingLog;
use crate::guest::parts;
use crate::jail::walls::Walls;
use crate::jail::{Everywhere, Files, Lacks, Wire, filter, trap};

/// Around all threads of this process that are there while a guest runs: they are children of the one that has made it.
struct Jail {
    /// The first of them has begun that runs vCPUs.
    has_vcpus: AtomicBool,
    /// Where what fails is told.
    line: Arc<Line>,
}

static JAIL: OnceLock<Jail> = OnceLock::new();

/// Is the machine's process until its end.
pub(in crate::cli) fn main(wire: Wire, lacks: Lacks, everywhere: Everywhere) -> ! {
    everywhere.again();
    early::say_who();
    let line = Arc::new(Line { wire, speaks: Mutex::default(), listens: Mutex::default() });
    let told = match run(&line, lacks, everywhere) {
        Ok(Some(ended)) => line.tell(&Say::Ended(ended)),
        Ok(None) => Ok(()),
        Err(error) => line.tell(&Say::Ended(Ended::Fault(chain(&error)))),
    };
    std::process::exit(if told.is_ok() { 0 } else { 3 })
}

/// None where there is no guest.
fn run(line: &Arc<Line>, lacks: Lacks, everywhere: Everywhere) -> anyhow::Result<Option<Ended>> {
    let mut walls = Walls::begin(lacks);
    early::one_heap();
    let heard = terminal::hear().context("Listening for signals")?;
    trap::install(trap::Then::End).context("Listening for system calls that are not allowed")?;
    // Another thread makes the VM meanwhile, hears what it is to be, and goes on with that where it can.
    let (hears, heard_first) = mpsc::channel();
    let listens = Arc::clone(line);
    let begun = Begun::begin(move || {
        let mut first = hear_first(&listens);
        let spec = first.as_mut().ok().and_then(|first| early_spec(&mut first.as_mut()?.0));
        let _ = hears.send((first, spec.is_some()));
        spec
    })?;
    early::pages_ahead();
    vmm::own::keep(walls.has_users()).context("Opening what the kernel says of this process")?;
    walls.apart();
    let Ok((first, is_known)) = heard_first.recv() else {
        // There is no VM, and nobody has listened.
        Machine::known(begun)?;
        anyhow::bail!("The guest's VM was not made");
    };
    let Some((prepare, mut files)) = first? else { return Ok(None) };
    everywhere.again();
    super::super::log_to_stderr(prepare.verbose, false, false);
    let Prepare { user, held, memlock, boot, disks, vsock, spec, .. } = *prepare;
    let _held = held.map(|held| files.take(held)).transpose()?;
    walls.enter(user, memlock).context("Locking the guest's process up")?;
    if line.wire.is_hung_up()? {
        return Ok(None);
    }
    let lacks = walls.lacks.to_string();
    if !lacks.is_empty() {
        tracing::info!("The guest's process is locked up, but for what this host does not give it: {lacks}");
    }
    JAIL.get_or_init(|| Jail { has_vcpus: AtomicBool::new(false), line: Arc::clone(line) });
    threads::guard(guard);
    filter::enter(Kind::Control).context("Filtering the system calls of the guest's process")?;

    let looked_at = !disks.is_empty();
    let (disks, problems) = look_at(disks, &mut files);
    if looked_at {
        line.tell(&Say::Prepared(problems))?;
    }
    let machine = match spec {
        Some(spec) => Making::Made(Box::new(Machine::new(spec, begun)?)),
        None if is_known => Making::Made(Box::new(Machine::known(begun)?)),
        None => Making::Begun(begun),
    };
    let Some((start, more)) = line.hear()? else { return Ok(None) };
    let Tell::Start(start) = start else { anyhow::bail!("The keeper went on with something else") };
    let devices = (boot, disks, vsock, files);
    run_machine(*start, more, machine, heard, line, devices).map(Some)
}

/// The keeper's first word, and what it hands over with it. None where there is no guest.
fn hear_first(line: &Line) -> anyhow::Result<Option<(Box<Prepare>, Files)>> {
    match line.hear()? {
        Some((Tell::Prepare(prepare), files)) => Ok(Some((prepare, files))),
        Some(_) => anyhow::bail!("The keeper began with something else"),
        None => Ok(None),
    }
}

/// What can be made before this process is locked up: threads that touch memory are to have walls already.
fn early_spec(prepare: &mut Prepare) -> Option<VmSpec> {
    prepare.spec.take_if(|spec| !spec.memory.prefault)
}

/// Opens the disks' images. What is wrong with which, too.
fn look_at(disks: Vec<parts::Disk>, files: &mut Files) -> (Vec<VirtioSlot>, Vec<(usize, Vec<String>)>) {
    let (mut opened, mut problems) = (Vec::with_capacity(disks.len()), Vec::new());
    for (place, disk) in disks.into_iter().enumerate() {
        match disk.open(files) {
            Ok(slot) => opened.push(slot),
            Err(error) => problems.push((place, chain(&error))),
        }
    }
    (opened, problems)
}

/// A thread begins: it may do less than the one that started it, where its kind says so.
fn guard(kind: Kind) {
    let Some(jail) = JAIL.get() else { return };
    let entered = match kind {
        // The others are the first one's children.
        Kind::Vcpu if jail.has_vcpus.swap(true, Ordering::AcqRel) => Ok(()),
        Kind::Vcpu => filter::enter(kind),
        Kind::Control | Kind::Hotplug => Ok(()),
        Kind::Queue | Kind::Prefault => filter::enter(kind),
    };
    if let Err(error) = entered {
        let why = vec!["Locking a thread of the guest's process up".to_owned(), error.to_string()];
        let _ = jail.line.tell(&Say::Ended(Ended::Fault(why)));
        std::process::exit(3);
    }
}

type Opened = (parts::Boot, Vec<VirtioSlot>, Option<parts::VsockPart>, Files);

/// How far the machine is when the keeper has all.
enum Making {
    /// It was known what to make.
    Made(Box<Machine>),
    /// It depends on what the host gave.
    Begun(Begun),
}

fn run_machine(
    start: Start,
    mut files: Files,
    machine: Making,
    heard: Heard,
    line: &Arc<Line>,
    (boot, disks, vsock, mut prepared): Opened,
) -> anyhow::Result<Ended> {
    let Start { spec, functions, cards, rng, console: device, terminal, log } = start;
    let mut machine = match (machine, spec) {
        (Making::Made(machine), _) => *machine,
        (Making::Begun(begun), Some(spec)) => Machine::new(spec, begun)?,
        (Making::Begun(_), None) => anyhow::bail!("The keeper did not say what to make"),
    };
    let asked = Arc::clone(line);
    machine.control(move || asked.listen());
    terminal::heed_signals(&mut machine, heard);
    let log = log.map(|log| open_log(log, &mut files)).transpose().context("The console's log")?;
    let console = match terminal {
        None => Console { device, input: None, output: None, log },
        Some(raw) => {
            let console = terminal::console(&mut machine, raw).context("Setting the console up")?;
            Console { device, log, ..console }
        }
    };
    let devices = Arc::new(Devices { line: Arc::clone(line), iommu: Mutex::default() });
    let slots = match functions {
        Some(functions) => {
            let iommu = |space| devices.iommu(space, || Ok(machine.vfio_device()?));
            functions.open(&mut files, iommu)?
        }
        None => Vec::new(),
    };
    let mut virtio = Vec::new();
    for card in cards {
        virtio.push(card.open(&mut files)?);
    }
    virtio.extend(rng.then(parts::rng));
    virtio.extend(disks);
    virtio.extend(vsock.map(|vsock| vsock.open(&mut prepared)).transpose()?);
    let boot = boot.open(&mut prepared)?;
    machine.plug_from(devices);
    // What is left over is closed.
    drop((files, prepared));
    Ok(match machine.run(Resources { boot, console, slots, virtio }) {
        Ok(outcome) => outcome.into(),
        Err(error @ Error::Boot(_)) => Ended::Kernel(chain(&error.into())),
        Err(error @ Error::Firmware(_)) => Ended::Firmware(chain(&error.into())),
        Err(error) => Ended::Fault(chain(&error.into())),
    })
}

fn open_log(log: Log, files: &mut Files) -> io::Result<Box<dyn io::Write + Send>> {
    let wire = Wire::of(files.take(log.wire)?);
    let next = move || -> io::Result<File> {
        wire.send(&(), Files::default())?;
        let (place, mut files) = wire.receive::<Result<_, String>>()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        files.take(place.map_err(io::Error::other)?).map(File::from)
    };
    Ok(Box::new(RotatingLog::new(files.take(log.file)?.into(), log.limit, Box::new(next))?))
}

/// The way to the keeper: one question at a time.
struct Line {
    wire: Wire,
    /// Held by who says something.
    speaks: Mutex<()>,
    /// Held by who waits for an answer.
    listens: Mutex<()>,
}

impl Line {
    fn tell(&self, what: &Say) -> io::Result<()> {
        let _speaks = self.speaks.lock().unwrap_or_else(PoisonError::into_inner);
        self.wire.send(what, Files::default())
    }

    /// What comes unasked, at the start.
    fn hear(&self) -> anyhow::Result<Option<(Tell, Files)>> {
        let _listens = self.listens.lock().unwrap_or_else(PoisonError::into_inner);
        self.wire.receive().context("Hearing what the guest's machine is to be")
    }

    fn ask(&self, what: &Say) -> io::Result<(Tell, Files)> {
        let _listens = self.listens.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.tell(what).and_then(|()| self.wire.receive());
        let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Err(error) if !gone.contains(&error.kind()) => Err(error),
            // Without a keeper nobody could ever reach the guest, and what it was given is somebody else's soon.
            Ok(None) | Err(_) => std::process::exit(3),
        }
    }

    fn listen(&self) -> io::Result<OwnedFd> {
        match self.ask(&Say::Listen)? {
            (Tell::Listener(Ok(place)), mut files) => files.take(place),
            (Tell::Listener(Err(why)), _) => Err(io::Error::other(why)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Devices that are plugged in come from the keeper.
struct Devices {
    line: Arc<Line>,
    /// All functions of the guest are in one I/O address space, which ends with the last of them.
    iommu: Mutex<Weak<Iommu>>,
}

impl Devices {
    fn iommu(
        &self,
        space: SpaceFile,
        kvm: impl FnOnce() -> anyhow::Result<OwnedFd>,
    ) -> anyhow::Result<Arc<Iommu>> {
        let mut held = self.iommu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(iommu) = held.upgrade() {
            return Ok(iommu);
        }
        let iommu = Iommu::of(space, Some(kvm()?))?;
        *held = Arc::downgrade(&iommu);
        Ok(iommu)
    }
}

impl DeviceSource for Devices {
    fn open(&self, name: &str, kvm: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<NewDevice, String> {
        let asking = |error: io::Error| format!("Asking for the device: {error}");
        let (new, mut files) = match self.line.ask(&Say::Open(name.to_owned())).map_err(asking)? {
            (Tell::Device(new), files) => ((*new)?, files),
            _ => return Err(asking(io::ErrorKind::InvalidData.into())),
        };
        let given = new.given();
        let opened = new.open(&mut files, |space| self.iommu(space, || Ok(kvm()?)));
        drop(files);
        opened.map_err(|error| match self.give_back(&given) {
            Ok(()) => format!("{error:#}"),
            Err(why) => format!("{error:#}; and giving it back: {why}"),
        })
    }

    fn give_back(&self, name: &str) -> Result<(), String> {
        match self.line.ask(&Say::GiveBack(name.to_owned())) {
            Ok((Tell::Done(done), _)) => done,
            Ok(_) => Err("The keeper answered something else".to_owned()),
            Err(error) => Err(format!("Asking to give the device back: {error}")),
        }
    }
}
