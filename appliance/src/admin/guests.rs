//! Guests: how they are, what they have counted, what is done to them, their consoles.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use vmm::control::{Attach, Message, Request, RunState, Statistics, Status};
use web::wire::{Event, Guest, GuestDevice, GuestState, GuestStats};
use web::{Problem, Verb};

use super::{Admin, Parts, Wish, fault};
use crate::config::Vm;
use crate::control::{Client, ClientError, count_host};
use crate::daemon::{Off, State, View, stop_timeout};

/// One that does not answer in this time is shown by what the daemon knows of it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Parts {
    fn connect(&self, name: &str) -> Result<Client, Problem> {
        Client::connect(&self.running.guest(name), name).map_err(problem)
    }
}

fn problem(error: ClientError) -> Problem {
    match error {
        ClientError::NotRunning(_)
        | ClientError::Dead(..)
        | ClientError::Between(_)
        | ClientError::Ended(_)
        | ClientError::Refused(_)
        | ClientError::Version { .. } => Problem::conflict(error.to_string()),
        ClientError::NotAllowed { .. } | ClientError::Io { .. } => Problem::fault(error.to_string()),
    }
}

impl Admin {
    pub(super) async fn guests(&self) -> Vec<Guest> {
        let views = self.0.parts.views.borrow().clone();
        join_all(views.iter().map(|view| self.guest(view))).await
    }

    /// One guest: as it says itself, where it runs.
    pub(super) async fn guest(&self, view: &View) -> Guest {
        let vm = self.0.parts.applied.borrow().vms.get(&view.name).cloned();
        let name = view.name.clone();
        let asked = matches!(view.state, State::Running(_) | State::Stopping).then(|| {
            let ask = self.beside(move |parts| match parts.connect(&name)?.ask(&Request::State) {
                Ok(Message::State(status)) => Ok(status),
                Ok(_) => Err(Problem::fault("It says something else")),
                Err(error) => Err(problem(error)),
            });
            timeout(PATIENCE, ask)
        });
        let status = match asked {
            Some(asked) => asked.await.ok().and_then(Result::ok),
            None => None,
        };
        told(view, vm.as_ref(), status)
    }

    fn view(&self, name: &str) -> Option<View> {
        self.0.parts.views.borrow().iter().find(|view| view.name == name).cloned()
    }

    /// Whether there is one of this name.
    pub(super) fn known(&self, name: &str) -> Result<View, Problem> {
        self.view(name).ok_or_else(|| Problem::not_found(format!("There is no guest `{name}`")))
    }

    pub(super) async fn guest_stats(&self, name: &str) -> Result<GuestStats, Problem> {
        self.known(name)?;
        let name = name.to_owned();
        self.beside(move |parts| {
            let mut client = parts.connect(&name)?;
            let message = client.ask(&Request::Stats).map_err(problem)?;
            let Message::Stats(mut statistics) = message else {
                return Err(Problem::fault(format!("Guest `{name}` has no statistics")));
            };
            count_host(&name, &mut statistics);
            Ok(counted(&statistics))
        })
        .await
    }

    pub(super) async fn act(&self, name: &str, verb: Verb) -> Result<(), Problem> {
        let view = self.known(name)?;
        let runs = view.state.has_process();
        match verb {
            Verb::Start => return self.wish(Wish::Start(name.to_owned())).await,
            Verb::Stop | Verb::Kill if !runs => return self.wish(Wish::Stay(name.to_owned())).await,
            _ => {}
        }
        let within = stop_timeout(self.0.parts.applied.borrow().vms.get(name));
        let guest = name.to_owned();
        self.beside(move |parts| {
            let mut client = parts.connect(&guest)?;
            let request = match verb {
                Verb::Pause => Request::Pause,
                Verb::Resume => Request::Resume,
                Verb::Reset => Request::Reset,
                Verb::PowerButton => Request::PowerButton,
                Verb::Start | Verb::Stop | Verb::Kill => {
                    return stop(parts, &mut client, &guest, verb, within);
                }
            };
            client.ask(&request).map(drop).map_err(problem)
        })
        .await?;
        // Nothing of this is seen from outside of it.
        if let Some(view) = self.view(name) {
            let _ = self.0.events.send(Event::Guest(self.guest(&view).await));
        }
        Ok(())
    }

    pub(super) async fn open_console(
        &self,
        name: &str,
        writes: bool,
    ) -> Result<(Vec<u8>, UnixStream), Problem> {
        self.known(name)?;
        let name = name.to_owned();
        self.beside(move |parts| {
            let mut client = parts.connect(&name)?;
            let how = Attach { write: writes, take: false, recent: true };
            client.ask(&Request::Console(how)).map_err(problem)?;
            let (first, socket) = client.into_console();
            // The console of a guest that says nothing goes on all the same.
            socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None)).map_err(fault)?;
            Ok((first, socket))
        })
        .await
    }
}

/// As `throughway vm stop`: the wish that it stays off is noted before it ends.
fn stop(parts: &Parts, client: &mut Client, name: &str, verb: Verb, within: Duration) -> Result<(), Problem> {
    let notes = parts.running.notes(name);
    let was_stopped = notes.is_stopped();
    notes.start().map_or(Ok(()), |_| notes.set_stopped(true)).map_err(fault)?;
    let within = if verb == Verb::Kill { Duration::ZERO } else { within };
    let timeout_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    match client.ask(&Request::Stop { timeout_ms }) {
        Ok(_) | Err(ClientError::Ended(_)) => Ok(()),
        Err(error) => {
            if let Err(error) = notes.set_stopped(was_stopped) {
                tracing::warn!("{error:#}");
            }
            Err(problem(error))
        }
    }
}

fn counted(statistics: &Statistics) -> GuestStats {
    let mut exits = BTreeMap::<String, u64>::new();
    for (name, count) in statistics.vcpus.iter().flat_map(|vcpu| &vcpu.kvm) {
        let sum = exits.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
    let counts = statistics.devices.iter().filter(|device| !device.interrupts_in_kernel);
    let interrupts = counts.map(|device| (device.name.clone(), device.interrupts));
    let counters = statistics.devices.iter().map(|device| (device.name.clone(), device.counters.clone()));
    GuestStats {
        cpu_ms: statistics.cpu_ms,
        resident: statistics.resident,
        pinned: statistics.mapped,
        exits,
        interrupts: interrupts.collect(),
        counters: counters.filter(|(_, counters)| !counters.is_empty()).collect(),
    }
}

fn told(view: &View, vm: Option<&Vm>, status: Option<Status>) -> Guest {
    let (state, detail) = match &view.state {
        State::Off(off) => (GuestState::Off, Some(why_off(off))),
        State::Waiting(names) if names.is_empty() => (GuestState::Waiting, None),
        State::Waiting(names) => (GuestState::Waiting, Some(format!("it waits for {}", names.join(", ")))),
        State::Delayed => (GuestState::Waiting, Some("it starts after its delay".to_owned())),
        State::Starting => (GuestState::Starting, None),
        State::Running(_) => (GuestState::Running, None),
        State::Stopping => (GuestState::Stopping, None),
        State::BackingOff(end) => (GuestState::BackingOff, Some(format!("{end}; it is started again soon"))),
    };
    let said = status.as_ref().map(|status| match status.state {
        RunState::Running => GuestState::Running,
        RunState::Paused => GuestState::Paused,
        RunState::Stopping => GuestState::Stopping,
    });
    let state = match (state, said) {
        (GuestState::Stopping, _) | (_, None) => state,
        (_, Some(said)) => said,
    };
    let pid = match view.state {
        State::Running(pid) => Some(pid),
        _ => None,
    };
    let devices = match &status {
        Some(status) => status.devices.iter().map(device).collect(),
        None => vm.map(by_file).unwrap_or_default(),
    };
    Guest {
        name: view.name.clone(),
        state,
        detail,
        pid,
        uptime_ms: status.as_ref().map(|status| status.uptime_ms),
        vcpus: status
            .as_ref()
            .map_or_else(|| vm.map_or(0, |vm| vm.cpus.topology().count), |status| status.vcpus),
        memory: status
            .as_ref()
            .map_or_else(|| vm.map_or(0, |vm| vm.memory.detail().size.0), |status| status.memory),
        autostart: vm.is_some_and(|vm| vm.autostart),
        in_file: vm.is_some(),
        changed: view.changed,
        failures: view.failures,
        devices,
    }
}

fn why_off(off: &Off) -> String {
    match off {
        Off::NotStarted => "nobody has started it".to_owned(),
        Off::ByHand => "somebody stopped it".to_owned(),
        Off::Ended(end) => end.to_string(),
        Off::GivenUp(end) => format!("{end}, too often: it stays off until somebody starts it"),
    }
}

fn device(device: &vmm::control::Device) -> GuestDevice {
    GuestDevice {
        name: device.name.clone(),
        report: device.report.clone(),
        link: device.link,
        passthrough: device.passthrough,
    }
}

/// What it will have when it runs.
fn by_file(vm: &Vm) -> Vec<GuestDevice> {
    let one =
        |name: String, report: String, passthrough| GuestDevice { name, report, link: None, passthrough };
    let nics = vm.nics.iter().map(|(key, nic)| {
        let (report, passthrough) = match (&nic.network, &nic.pool, &nic.pf, nic.vf) {
            (Some(network), ..) => (format!("on {network}"), false),
            (_, Some(pool), ..) => (format!("a VF of {pool}"), true),
            (_, _, Some(pf), Some(vf)) => (format!("VF {vf} of {pf}"), true),
            _ => (String::new(), false),
        };
        one(format!("nic {key}"), report, passthrough)
    });
    let disks =
        vm.disks.iter().map(|(key, disk)| one(format!("disk {key}"), disk.path.display().to_string(), false));
    let functions = vm.pci.iter().map(|(key, given)| one(format!("pci {key}"), given.device.clone(), true));
    nics.chain(disks).chain(functions).collect()
}
