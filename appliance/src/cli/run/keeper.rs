//! The keeper of a guest: hands its machine what it was made for, serves it, and sees its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::Signal;
use vmm::VmSpec;

use super::super::terminal::{self, Heard, Raw};
use super::Arguments;
use super::hotplug::Devices;
use super::told::{Ended, Log, Prepare, Say, Start, Tell, unchain};
use crate::apply::{Applied, Taps};
use crate::config::Vm;
use crate::control::{LogFiles, Place, Served};
use crate::guest::{self, BootFiles};
use crate::jail::split::Gone;
use crate::jail::{Files, Machine, User, Wire, trap};

/// Of a console's log: bytes a file, and files.
const LOG_SIZE: (u64, u32) = (4 << 20, 4);
/// Beside guest memory a device's own may be locked, and rings.
const MORE_LOCKED: u64 = 256 << 20;
/// A machine that does not go on with half a message, or takes none, has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long after its last word the start is left alone.
const AFTER_THE_START: Timespec = Timespec { tv_sec: 0, tv_nsec: 30_000_000 };
/// The same after a request.
const AFTER_A_REQUEST: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What was seen of the end of a guest's machine.
pub(super) enum Seen {
    /// It said how.
    Ended(Ended),
    /// It is gone without a word; with what is known of it.
    Killed(String),
}

/// The keeper.
pub(super) struct Keeper<'a> {
    arguments: &'a Arguments,
    machine: Machine,
    vm: &'a Vm,
    place: Place,
    served: &'a Served,
}

/// A log that is written to elsewhere.
struct Logged {
    files: LogFiles,
    wire: Wire,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(
        arguments: &'a Arguments,
        machine: Machine,
        vm: &'a Vm,
        (place, served): (Place, &'a Served),
    ) -> Self {
        Self { arguments, machine, vm, place, served }
    }

    /// Has the machine locked up with what it starts from, and made meanwhile where it is known what it is. What is wrong with
    /// which disk, by its place.
    pub(super) fn prepare(
        &mut self,
        files: BootFiles,
        spec: Option<VmSpec>,
        user: Option<User>,
        verbose: u8,
    ) -> anyhow::Result<Vec<(usize, Vec<String>)>> {
        let BootFiles { boot, disks, vsock, mut files } = files;
        let memlock = user.as_ref().map(|_| self.vm.memory.detail().size.0.saturating_add(MORE_LOCKED));
        let (user, held) = user.map(|User { number, held }| (number, files.put(held))).unzip();
        let to_hear = !disks.is_empty();
        let wire = self.machine.wire()?;
        set_socket_timeout(wire, Timeout::Send, Some(PATIENCE))?;
        set_socket_timeout(wire, Timeout::Recv, Some(PATIENCE))?;
        let prepare = Prepare { verbose, user, held, memlock, boot, disks, vsock, spec };
        let sent = wire.send(&Tell::Prepare(Box::new(prepare)), files);
        // One that is gone has said why, and that is heard later.
        if sent.is_err() || !to_hear {
            return Ok(Vec::new());
        }
        match wire.receive() {
            Ok(Some((Say::Prepared(problems), _))) => Ok(problems),
            Ok(Some((Say::Ended(Ended::Fault(chain)), _))) => Err(unchain(chain)),
            Ok(Some(_)) => anyhow::bail!("The guest's process says what it was not asked"),
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error).context("Hearing of the guest's disks"),
        }
    }

    /// Hands over the rest, does what can wait, and serves the machine until it has ended. Its process is gone then.
    pub(super) fn run(
        mut self,
        spec: Option<VmSpec>,
        applied: &Applied,
        taps: &Taps,
        devices: Devices,
        then: impl FnOnce(),
    ) -> anyhow::Result<Seen> {
        let heard = terminal::hear().context("Setting the console up")?;
        let mut files = Files::default();
        let functions = guest::functions(self.vm, applied, &mut files)?;
        let cards = applied.cards.iter().map(|card| guest::card(card, taps, &mut files));
        let cards = cards.collect::<anyhow::Result<_>>()?;
        let (log, logged) = self.open_log(&mut files)?.unzip();
        let raw =
            if self.arguments.detached { None } else { Some(Raw::new().context("Setting the console up")?) };
        let (rng, console) = (self.vm.rng, guest::console(self.vm));
        let terminal = raw.as_ref().map(Option::is_some);
        let start = Start { spec, functions, cards, rng, console, terminal, log };
        // As above: what it has to say is heard.
        if let Err(error) = self.machine.wire()?.send(&Tell::Start(Box::new(start)), files) {
            tracing::debug!("Handing over to the guest's process: {error}");
        }
        then();
        let seen = self.serve(heard, logged.as_ref(), &Arc::new(devices));
        drop(raw);
        seen
    }

    fn open_log(&self, files: &mut Files) -> anyhow::Result<Option<(Log, Logged)>> {
        let Some(path) = &self.arguments.console_log else { return Ok(None) };
        let (limit, most) = LOG_SIZE;
        let opening = || format!("Opening the console's log {}", path.display());
        let log = LogFiles::at(path, most);
        let file = log.open().with_context(opening)?;
        let (ours, theirs) = Wire::pair().with_context(opening)?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
        let (file, wire) = (files.put(file), files.put(theirs.into_fd()));
        Ok(Some((Log { file, limit, wire }, Logged { files: log, wire: ours })))
    }

    fn serve(
        &mut self,
        mut heard: Heard,
        mut logged: Option<&Logged>,
        devices: &Arc<Devices>,
    ) -> anyhow::Result<Seen> {
        let mut ended = None;
        // One at a time: the machine asks for no second device before it has heard of the first.
        let mut work: Option<Work> = None;
        let mut hears = true;
        // What only the start needed, or a request, is let go of as the machine does it.
        let mut settles = Some(AFTER_THE_START);
        loop {
            let log = logged.map(|logged| logged.wire.as_fd());
            let wire = self.machine.wire()?;
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.machine.process(), PollFlags::IN),
                PollFd::new(&heard.stop, PollFlags::IN),
                PollFd::new(&heard.stats, PollFlags::IN),
                // What has hung up would be found ready for ever.
                PollFd::from_borrowed_fd(
                    if hears { wire.as_fd() } else { self.machine.process() },
                    PollFlags::IN,
                ),
            ];
            fds.extend(log.map(|log| PollFd::from_borrowed_fd(log, PollFlags::IN)));
            match poll(&mut fds, settles.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => {
                    settles = None;
                    vmm::machine::settle();
                    continue;
                }
                ready => ready.context("Waiting for the guest's process")?,
            };
            settles = settles.or(Some(AFTER_A_REQUEST));
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let is = |at: usize| ready.get(at).copied().unwrap_or(false);
            if is(1) && came(&mut heard.stop) {
                self.machine.signal(Signal::TERM);
            }
            if is(2) && came(&mut heard.stats) {
                self.machine.signal(Signal::USR1);
            }
            if is(4) && !logged.is_some_and(rotate) {
                logged = None;
            }
            if hears && is(3) {
                match self.machine.wire()?.receive::<Say>() {
                    Ok(Some((Say::Ended(how), _))) => ended = Some(how),
                    Ok(Some((said, _))) => {
                        // Else it does not wait for its answer, and would have us wait with all that is to be heard.
                        if work.as_ref().is_some_and(|work| !work.answered.load(Ordering::Acquire)) {
                            tracing::error!("The guest's process asks for two things at once, and is ended");
                            hears = false;
                            self.machine.signal(Signal::KILL);
                            continue;
                        }
                        work = self.answer(said, devices)?;
                    }
                    Ok(None) => hears = false,
                    Err(error) => {
                        tracing::error!(
                            "The guest's process does not keep to what it may say, and is ended: {error}"
                        );
                        hears = false;
                        self.machine.signal(Signal::KILL);
                    }
                }
            } else if is(0) {
                break;
            }
        }
        if let Some(work) = work.take() {
            let _ = work.thread.join();
        }
        let gone = self.machine.wait().context("Waiting for the end of the guest's process")?;
        Ok(match ended {
            Some(how) => Seen::Ended(how),
            None => Seen::Killed(match gone {
                Gone::Signal(signal) => format!("its process was ended by signal {signal}"),
                Gone::Exit(trap::CODE) => {
                    "its process made a system call that it never makes, and was ended".to_owned()
                }
                Gone::Exit(code) => format!("its process ended with code {code}, without a word"),
            }),
        })
    }

    /// Does what the machine asks for; what takes long, on a thread.
    fn answer(&self, said: Say, devices: &Arc<Devices>) -> anyhow::Result<Option<Work>> {
        let wire = self.machine.wire()?;
        match said {
            Say::Listen => {
                let mut files = Files::default();
                let listener = self.place.clone().listen(self.served).map(|listener| files.put(listener));
                send(wire, &Tell::Listener(listener.map_err(|error| error.to_string())), files);
                Ok(None)
            }
            Say::Open(name) => {
                let devices = Arc::clone(devices);
                Work::begin(wire, move || match devices.open(&name) {
                    Ok((new, files)) => (Tell::Device(Box::new(Ok(new))), files),
                    Err(error) => (Tell::Device(Box::new(Err(format!("{error:#}")))), Files::default()),
                })
                .map(Some)
            }
            Say::GiveBack(name) => {
                let devices = Arc::clone(devices);
                Work::begin(wire, move || {
                    let done = devices.give_back(&name).map_err(|error| format!("{error:#}"));
                    (Tell::Done(done), Files::default())
                })
                .map(Some)
            }
            // Said already.
            Say::Prepared(_) | Say::Ended(_) => Ok(None),
        }
    }
}

/// What is done on a thread, as it takes long.
struct Work {
    thread: JoinHandle<()>,
    /// All is done, but for the answer's way.
    answered: Arc<AtomicBool>,
}

impl Work {
    fn begin(wire: &Wire, does: impl FnOnce() -> (Tell, Files) + Send + 'static) -> anyhow::Result<Self> {
        let (wire, answered) = (wire.try_clone()?, Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&answered);
        let thread = std::thread::Builder::new().name("hotplug".into()).spawn(move || {
            let (answer, files) = does();
            seen.store(true, Ordering::Release);
            send(&wire, &answer, files);
        })?;
        Ok(Self { thread, answered })
    }
}

/// A machine that has gone meanwhile needs no answer.
fn send(wire: &Wire, answer: &Tell, files: Files) {
    if let Err(error) = wire.send(answer, files) {
        tracing::debug!("Answering the guest's process: {error}");
    }
}

/// Whether a signal has come.
fn came(pipe: &mut File) -> bool {
    pipe.read(&mut [0; 16]).is_ok_and(|count| count > 0)
}

/// The log's file is full: hands over the next. False at the end.
fn rotate(logged: &Logged) -> bool {
    let turn = || -> io::Result<bool> {
        if logged.wire.receive::<()>()?.is_none() {
            return Ok(false);
        }
        let mut files = Files::default();
        let next = logged.files.rotate().map(|file| files.put(file)).map_err(|error| error.to_string());
        logged.wire.send(&next, files)?;
        Ok(true)
    };
    turn().unwrap_or_else(|error| {
        tracing::warn!("The console's log: {error}");
        false
    })
}
