//! What the control socket asks of a machine, and how it is done. Each operation is an arm of [`Running::obey`].
//!
//! ```text
//!                   pause                                       stop with a time limit
//!   running -----------------> paused          running -----------------------------> stopping
//!      ^                          |                                     power-off, reset, |
//!      +--------- resume ---------+                                     or the limit      v
//!                                                                                       ended
//! ```
//!
//! A pause stops the vCPUs first and then what serves virtio devices, so that nothing of ours changes guest memory; resume
//! goes the other way. A reset of a paused machine leaves it paused, at its start.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::{Change, Changed, Error, HotplugRequest, Running};
use crate::Outcome;
use crate::control::{Client, Ended, Message, Request, RunState, Server, Statistics, Status, VcpuStatistics};
use crate::disk::{self, Chain};
use crate::own;
use crate::virtio::MediumChange;
use crate::virtio::scsi::Medium;
use crate::vm::Counters;

/// A device that has not come to rest after this long keeps the machine from pausing.
const REST: Duration = Duration::from_secs(2);
/// A stop's time limit is at most this.
const LONGEST_STOP: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes the listening socket; called once the guest runs.
pub(super) type Listen = Box<dyn FnOnce() -> io::Result<OwnedFd> + Send>;

/// The machine as the control socket sees it.
pub(super) struct Controlled {
    listen: Option<Listen>,
    server: Option<Server>,
    pub(super) state: RunState,
    since: Instant,
    started: Instant,
    resets: u64,
    stop_at: Option<Instant>,
    /// What firmware is to begin with at the next start alone.
    boot_once: Option<String>,
    /// Who is answered when a device has come or gone.
    waiting: Vec<(Client, Receiver<Result<Changed, String>>)>,
}

/// What comes of a request.
enum Done {
    /// The answer comes when a device has come or gone.
    Later(Receiver<Result<Changed, String>>),
    /// This is the answer.
    Answer(Message),
    /// This is the answer, and the machine's end.
    End(Message, Outcome),
}

impl Controlled {
    pub(super) fn new(listen: Option<Listen>) -> Self {
        let now = Instant::now();
        Self {
            listen,
            server: None,
            state: RunState::Running,
            since: now,
            started: now,
            resets: 0,
            stop_at: None,
            boot_once: None,
            waiting: Vec::new(),
        }
    }

    fn set(&mut self, state: RunState) {
        if self.state != state {
            (self.state, self.since) = (state, Instant::now());
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.state == RunState::Paused
    }

    /// The machine starts again; what it is to begin with this time.
    pub(super) fn starts_again(&mut self) -> Option<String> {
        self.resets = self.resets.saturating_add(1);
        self.boot_once.take()
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let clients = self.server.as_ref().and_then(Server::deadline);
        clients.into_iter().chain(self.stop_at).min()
    }

    /// A stop's time is up.
    pub(super) fn stop_is_due(&self) -> bool {
        self.stop_at.is_some_and(|at| at <= Instant::now())
    }

    /// A server is there, and nobody is connected.
    pub(super) fn is_quiet(&self) -> bool {
        self.server.as_ref().is_none_or(Server::is_quiet)
    }
}

impl Running {
    /// Opens the control socket, where there is to be one.
    pub(super) fn open_control(&mut self) {
        let Some(listen) = self.controlled.listen.take() else { return };
        let served = listen().and_then(|listener| {
            Server::new(listener, &self.machine.spec.name, &self.machine.recent, &self.events)
        });
        match served {
            Ok(server) => self.controlled.server = Some(server),
            Err(error) => tracing::warn!("The guest runs, and cannot be controlled: {error}"),
        }
    }

    /// A descriptor of the control socket's is ready.
    pub(super) fn control(&mut self, place: u32) -> Result<Option<Outcome>, Error> {
        let room = self.console.room();
        if let Some(server) = &mut self.controlled.server {
            server.ready(place, room, &self.events);
        }
        self.serve_clients()
    }

    /// Does what clients ask, and answers. To be called after anything that they may wait for.
    pub(super) fn serve_clients(&mut self) -> Result<Option<Outcome>, Error> {
        // Each request is taken from the server and answered to it; between the two the whole machine is at hand.
        while let Some((client, request)) = self.controlled.server.as_mut().and_then(Server::next_request) {
            if let Some(outcome) = self.answer(client, request)? {
                return Ok(Some(outcome));
            }
        }
        self.answer_waiting();
        if let Some(server) = &mut self.controlled.server {
            let typed = server.take_typed();
            if !typed.is_empty() {
                self.console.typed(&typed);
            }
            server.settle(self.console.room() > 0, &self.events);
        }
        Ok(None)
    }

    fn answer(&mut self, client: Client, request: Request) -> Result<Option<Outcome>, Error> {
        if let Request::Console(how) = request {
            if let Some(server) = &mut self.controlled.server {
                server.attach(client, how);
            }
            return Ok(None);
        }
        let file = self.controlled.server.as_mut().and_then(|server| server.take_file(client));
        let (message, end) = match self.obey(request, file)? {
            Done::Answer(message) => (message, None),
            Done::Later(result) => {
                self.controlled.waiting.push((client, result));
                return Ok(None);
            }
            Done::End(message, outcome) => (message, Some(outcome)),
        };
        if let Some(server) = &mut self.controlled.server {
            server.answer(client, &message);
        }
        Ok(end)
    }

    fn obey(&mut self, request: Request, file: Option<OwnedFd>) -> Result<Done, Error> {
        let answer = match request {
            Request::State => Message::State(self.status()),
            Request::Stats => Message::Stats(self.statistics()),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Reset if self.controlled.state == RunState::Stopping => {
                Message::refused("The guest is about to stop; it is not reset any more")
            }
            Request::Reset => {
                return Ok(match self.reset()? {
                    Some(outcome) => Done::End(Message::Done, outcome),
                    None => Done::Answer(Message::Done),
                });
            }
            Request::PowerButton => self.press_power_button(),
            Request::Stop { timeout_ms: 0 } => return Ok(Done::End(Message::Done, Outcome::Stopped)),
            Request::Stop { timeout_ms } => self.stop_within(Duration::from_millis(timeout_ms)),
            Request::BootOnce { device } => self.boot_once(device),
            Request::Link { nic, up } => match self.hierarchy.set_link(&nic, up) {
                Ok(()) => {
                    let what = if up { "plugged in" } else { "pulled" };
                    tracing::info!("nic {nic}: its cable is {what}, as was asked for");
                    Message::Done
                }
                Err(nics) => Message::refused(no_such("virtio network card", &nic, &nics)),
            },
            Request::Medium { disk, path, force } => self.change_medium(&disk, path.as_deref(), file, force),
            Request::Add { device, timeout_ms } => {
                return Ok(self.change(Change::Add { name: device }, timeout_ms));
            }
            Request::Remove { force: false, .. } if self.controlled.is_paused() => Message::refused(
                "The guest is paused and cannot let go of a device; resume it first, or use force",
            ),
            Request::Remove { device, force, timeout_ms } => {
                return Ok(self.change(Change::Remove { name: device, force }, timeout_ms));
            }
            // The connection's own affair.
            Request::Console(_) => Message::Done,
        };
        Ok(Done::Answer(answer))
    }

    fn change(&mut self, change: Change, timeout_ms: u64) -> Done {
        let (reply, result) = mpsc::channel();
        let request = HotplugRequest { change, within: Duration::from_millis(timeout_ms), reply };
        self.with_hotplug(|hotplug, parts| hotplug.request(request, parts));
        Done::Later(result)
    }

    /// Answers those whose device has come or gone.
    fn answer_waiting(&mut self) {
        for (client, result) in std::mem::take(&mut self.controlled.waiting) {
            let message = match result.try_recv() {
                Ok(Ok(Changed::Added | Changed::Removed)) => Message::Done,
                Ok(Ok(Changed::Plugged)) => Message::Plugged,
                Ok(Err(why)) => Message::refused(why),
                Err(TryRecvError::Disconnected) => Message::failed("The guest has ended"),
                Err(TryRecvError::Empty) => {
                    self.controlled.waiting.push((client, result));
                    continue;
                }
            };
            if let Some(server) = &mut self.controlled.server {
                server.answer(client, &message);
            }
        }
    }

    pub(super) fn pause(&mut self) -> Message {
        if self.controlled.is_paused() {
            return Message::Done;
        }
        if self.controlled.state == RunState::Stopping {
            return Message::refused("The guest is about to stop; it is not paused any more");
        }
        // A vCPU that waits for the console's reader would never park.
        self.output.hurry();
        self.processors.park();
        self.output.take_time();
        let rest = Instant::now().checked_add(REST).map_or(Ok(()), |until| self.hierarchy.rest(until));
        if let Err(why) = rest {
            self.hierarchy.go_on();
            self.processors.resume_from_pause();
            return Message::failed(format!("{why}; the guest goes on. Try again later"));
        }
        self.controlled.set(RunState::Paused);
        tracing::info!("The guest is paused");
        Message::Done
    }

    fn resume(&mut self) -> Message {
        if self.controlled.is_paused() {
            self.hierarchy.go_on();
            self.processors.resume_from_pause();
            self.controlled.set(RunState::Running);
            tracing::info!("The guest goes on, as was asked for");
        }
        Message::Done
    }

    /// The image is who asks': this process finds no paths.
    fn change_medium(&self, disk: &str, path: Option<&Path>, file: Option<OwnedFd>, force: bool) -> Message {
        let opened = path.zip(file).map(|(path, file)| {
            let image = Chain::of_medium(File::from(file), path)?.image()?;
            Ok::<_, disk::Error>(Medium { image, path: path.display().to_string() })
        });
        if opened.is_none() && path.is_some() {
            return Message::refused("The image is to come with the request, as a descriptor");
        }
        let medium = match opened.transpose() {
            Ok(medium) => medium,
            Err(error) => return Message::refused(format!("{error}; the drive is as it was")),
        };
        match self.hierarchy.change_medium(disk, medium, force) {
            Ok(MediumChange::Done) => {
                let what =
                    path.map_or("is taken out".to_owned(), |path| format!("is {} now", path.display()));
                tracing::info!("disk {disk}: its medium {what}, as was asked for");
                Message::Done
            }
            Ok(MediumChange::Locked) => Message::refused(format!(
                "The guest has locked the drive `{disk}`, as it does while it has the medium mounted. It is asked to let go: unmount it there, or use force"
            )),
            Ok(MediumChange::NoDrive) => Message::refused(format!(
                "`{disk}` is a disk, and has no medium to change: that needs `device: cdrom` in the file"
            )),
            Err(disks) => Message::refused(no_such("disk", disk, &disks)),
        }
    }

    fn press_power_button(&mut self) -> Message {
        if self.controlled.is_paused() {
            return Message::refused("The guest is paused and feels no power button; resume it first");
        }
        self.pm.press_power_button();
        Message::Done
    }

    fn stop_within(&mut self, timeout: Duration) -> Message {
        if self.controlled.is_paused() {
            let message = "The guest is paused and feels no power button; resume it first, or stop it at once with a time limit of 0";
            return Message::refused(message);
        }
        self.controlled.stop_at = Instant::now().checked_add(timeout.min(LONGEST_STOP));
        self.controlled.set(RunState::Stopping);
        self.pm.press_power_button();
        Message::Done
    }

    fn boot_once(&mut self, device: Option<String>) -> Message {
        if let Some(why) = self.start.cannot_boot_once() {
            return Message::refused(why);
        }
        if self.irqchip.is_none() {
            return Message::refused(
                "The guest's file says `on-reset: exit`: this machine has no next start. Start it with the device instead",
            );
        }
        if let Some(device) = &device
            && !self.hierarchy.boot_names().any(|name| name == device)
        {
            let names: Vec<String> = self.hierarchy.boot_names().map(str::to_owned).collect();
            return Message::refused(no_such("device to boot from", device, &names));
        }
        self.controlled.boot_once = device;
        Message::Done
    }

    fn status(&self) -> Status {
        let controlled = &self.controlled;
        let (readers, writers) = controlled.server.as_ref().map_or((0, 0), Server::consoles);
        Status {
            state: controlled.state,
            since_ms: milliseconds(controlled.since),
            uptime_ms: milliseconds(controlled.started),
            resets: controlled.resets,
            vcpus: self.machine.spec.cpus.count(),
            memory: self.machine.ram.size(),
            boot_once: controlled.boot_once.clone(),
            console_writers: writers,
            console_readers: readers,
            devices: self.hierarchy.describe(),
        }
    }

    fn statistics(&self) -> Statistics {
        let vcpus = self.processors.vcpus.iter();
        let counted = |counters: io::Result<Counters>| counters.map(Counters::into_map).unwrap_or_default();
        let status = own::status();
        Statistics {
            vm: counted(self.machine.vm.stats()),
            vcpus: vcpus.map(|vcpu| VcpuStatistics { kvm: counted(vcpu.stats()) }).collect(),
            devices: self.hierarchy.describe(),
            cpu_ms: own::cpu_ms(),
            mapped: self.hierarchy.pinned(),
            pinned: bytes_of(&status, "VmPin:"),
            locked: bytes_of(&status, "VmLck:"),
            resident: bytes_of(&status, "VmRSS:"),
        }
    }

    /// Tells clients of the end.
    pub(super) fn say_goodbye(&mut self, result: &Result<Outcome, Error>) {
        let ended = match result {
            Ok(Outcome::PowerOff) => Ended::PowerOff,
            Ok(Outcome::Reset) => Ended::Reset,
            Ok(Outcome::Stopped) => Ended::Stopped,
            Ok(Outcome::Crash(_)) => Ended::Crash,
            Ok(Outcome::DeviceError { .. }) => Ended::DeviceError,
            Ok(Outcome::Trouble { .. }) => Ended::Trouble,
            Err(_) => Ended::Fault,
        };
        if let Some(server) = self.controlled.server.take() {
            server.say_goodbye(&Message::Ended(ended));
        }
    }
}

fn no_such(what: &str, name: &str, names: &[String]) -> String {
    let known =
        if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
    format!("The guest has no {what} `{name}`; {known}")
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A line of proc_pid_status(5), which is in KiB: `VmPin:\t       0 kB`.
fn bytes_of(status: &str, key: &str) -> u64 {
    let value =
        status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    value.map_or(0, |kib: u64| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_status() {
        let status = "Name:\tx\nVmPin:\t      12 kB\nVmRSS:\t  2048 kB\n";
        assert_eq!((bytes_of(status, "VmPin:"), bytes_of(status, "VmLck:")), (12 << 10, 0));
        assert!(bytes_of(&own::status(), "VmRSS:") > 1 << 20);
    }

    #[test]
    fn a_name_that_is_not_known_is_told_with_those_that_are() {
        let names = ["lan".to_owned(), "wan".to_owned()];
        assert_eq!(no_such("card", "dmz", &names), "The guest has no card `dmz`; it has lan, wan");
        assert!(no_such("card", "dmz", &[]).ends_with("it has none"));
    }
}
