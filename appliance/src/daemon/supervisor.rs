//! The one task that decides: what happened comes in, and each guest goes from one state to the next here alone.

mod file;
mod stopping;
mod wishes;

pub(crate) use stopping::stop_timeout;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch as channel;

use super::Options;
use super::applied::{self, Applied};
use super::change::{self, Change};
use super::guest::{Guest, Off, State, View};
use super::notify::Manager;
use super::order::{drawn_in, unmet};
use super::policy::{Backoff, Verdict};
use super::watch::{self, Happened, OfGuest, Teller};
use crate::admin::{Asked, Parts};
use crate::apply::Ledger;
use crate::config::{Restart, start_order};
use crate::control::{End, Launch, LaunchError, Limits, Place, name_of};

/// What the daemon as a whole does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host is made as it was; guests that are there are watched, and none is started.
    Restoring,
    /// Guests run.
    Running,
    /// All guests are stopped.
    Stopping,
}

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All guests are stopped.
    Stopped,
    /// Guests go on, for the next daemon to find.
    Left,
}

pub(super) struct Supervisor {
    options: Options,
    manager: Rc<Manager>,
    phase: Phase,
    /// Guests that run already have been looked for.
    surveyed: bool,
    /// The file that holds.
    applied: Applied,
    guests: BTreeMap<String, Guest>,
    /// A process changes the host; whether the file was to be read anew meanwhile.
    changing: Option<bool>,
    to: UnboundedSender<Happened>,
    from: UnboundedReceiver<Happened>,
    views: channel::Sender<Vec<View>>,
    /// The file that holds, for who looks at it.
    shown: channel::Sender<Arc<Applied>>,
    /// Raised with each change that was noted.
    noted: channel::Sender<u64>,
}

impl Supervisor {
    pub(super) fn new(options: Options, manager: Rc<Manager>) -> Self {
        let (to, from) = unbounded_channel();
        Self {
            options,
            manager,
            phase: Phase::Restoring,
            surveyed: false,
            applied: Applied::default(),
            guests: BTreeMap::new(),
            changing: None,
            to,
            from,
            views: channel::Sender::new(Vec::new()),
            shown: channel::Sender::new(Arc::default()),
            noted: channel::Sender::new(0),
        }
    }

    /// What the admin interface is about.
    pub(super) fn parts(&self, wishes: UnboundedSender<Asked>) -> Parts {
        let Options { file, state, running, logs, .. } = self.options.clone();
        let (views, applied, noted) = (self.views(), self.shown.subscribe(), self.noted.subscribe());
        Parts { file, state, running, logs, wishes, views, applied, noted }
    }

    /// All guests, now and whenever something of them changes.
    pub(super) fn views(&self) -> channel::Receiver<Vec<View>> {
        self.views.subscribe()
    }

    /// Finds the guests that run already, and begins to make the host as it was.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        let Options { state, running, .. } = &self.options;
        running.make_notes()?;
        let history = state.join("history");
        std::fs::create_dir_all(&history).with_context(|| format!("Making {}", history.display()))?;
        // Before anything is looked at: what comes afterwards is told.
        watch::folders(running.path(), &running.notes_folder(), &history, self.to.clone())?;
        self.read_what_holds();
        self.survey()?;
        let waits = applied::waits(&self.options.state);
        let change = match (&self.applied.text, &self.options.file) {
            _ if waits.is_some() => None,
            (Some(_), _) => Some(Change::Restore(self.options.wait)),
            (None, Some(file)) if file.exists() => Some(Change::Apply(file)),
            (None, _) => None,
        };
        match change {
            Some(change) => {
                self.changing = Some(false);
                change::begin(change, &self.options.state, &self.to);
            }
            None => {
                match waits {
                    Some(id) => tracing::info!(
                        "Change {id} waits to be confirmed: until `throughway confirm {id}`, or until it is put back, the host is left to it"
                    ),
                    None => tracing::info!(
                        "No file is applied yet: `throughway apply FILE` does it, and its guests start then"
                    ),
                }
                self.go_on();
            }
        }
        self.settle();
        Ok(())
    }

    /// What happened next.
    pub(super) async fn next(&mut self) -> Option<Happened> {
        self.from.recv().await
    }

    /// Acts on what happened.
    pub(super) fn hear(&mut self, happened: Happened) {
        match happened {
            Happened::Guest(name, turn, what) => {
                if self.guests.get(&name).is_some_and(|guest| guest.turn == turn) {
                    self.of_guest(&name, what);
                }
            }
            Happened::Folder(name) => self.somebody_started(&name),
            Happened::StoppedByHand(name) => self.somebody_stopped(&name),
            Happened::History => {
                self.read_what_holds();
                self.noted.send_modify(|count| *count = count.wrapping_add(1));
            }
            Happened::Changed(code) => self.changed(code),
        }
        self.settle();
    }

    /// Does what can be done now, and shows how all is.
    fn settle(&mut self) {
        loop {
            let acted = match self.phase {
                Phase::Restoring => false,
                Phase::Running => self.start_some(),
                Phase::Stopping => self.stop_some(),
            };
            if !acted {
                break;
            }
        }
        let views: Vec<View> = self.guests.iter().map(|(name, guest)| guest.view(name)).collect();
        self.views.send_if_modified(|shown| {
            let differs = *shown != views;
            *shown = views;
            differs
        });
    }

    fn place(&self, name: &str) -> Place {
        self.options.running.guest(name)
    }

    /// The host is as it was: guests may start.
    fn go_on(&mut self) {
        if self.phase == Phase::Restoring {
            self.phase = Phase::Running;
            self.manager.ready();
        }
    }

    // What is found.

    /// Looks at each guest that the file has, that runs, or that was started before this daemon was there.
    fn survey(&mut self) -> anyhow::Result<()> {
        let running = &self.options.running;
        let mut names: BTreeSet<String> = self.guests.keys().cloned().collect();
        let folders = running.all()?;
        let folder_name = |place: &Place| name_of(place.folder().file_name()?.to_str()?);
        names.extend(folders.iter().filter_map(folder_name));
        names.extend(running.noted()?);
        names.iter().for_each(|name| self.meet(name));
        self.surveyed = true;
        Ok(())
    }

    /// A guest of which only this is known, that it is in the file or has left something.
    fn meet(&mut self, name: &str) {
        if self.options.running.notes(name).is_held() || self.place(name).holder().is_some() {
            self.adopt(name);
        } else {
            self.as_noted(name);
        }
    }

    /// Watches a guest whose process is there.
    fn adopt(&mut self, name: &str) {
        let (place, notes) = (self.place(name), self.options.running.notes(name));
        let guest = self.guests.entry(name.to_owned()).or_insert_with(|| Guest::new(None));
        guest.background = notes.is_held();
        guest.started_with = None;
        guest.since = Instant::now();
        let turn = guest.enter(State::Starting);
        watch::found(place, notes, Teller::new(&self.to, name, turn));
    }

    /// A guest that does not run: what becomes of it, by what is noted.
    fn as_noted(&mut self, name: &str) {
        let notes = self.options.running.notes(name);
        let Some(guest) = self.guests.get_mut(name) else { return };
        let Some(vm) = &guest.vm else {
            self.forget(name);
            return;
        };
        if notes.is_stopped() {
            guest.enter(State::Off(Off::ByHand));
            return;
        }
        match notes.start().map(|start| start.process) {
            // Who was to start it came to nothing first.
            Some(None) => drop(guest.enter(State::Waiting(Vec::new()))),
            Some(Some(process)) => {
                let ending = notes.end_of(process.pid);
                let (end, why) = ending.map_or((End::Killed, None), |ending| (ending.end, ending.why));
                self.ended(name, end, why, Duration::ZERO);
            }
            None if vm.autostart => drop(guest.enter(State::Waiting(Vec::new()))),
            None => drop(guest.enter(State::Off(Off::NotStarted))),
        }
    }

    fn somebody_started(&mut self, name: &str) {
        let known = self.guests.get(name).is_some_and(|guest| guest.state.has_process());
        if !known {
            self.adopt(name);
            // Who starts it by hand has put right what was wrong with it, or wants to see it fail.
            if let Some(guest) = self.guests.get_mut(name) {
                guest.backoff = Backoff::default();
            }
        }
    }

    fn somebody_stopped(&mut self, name: &str) {
        let Some(guest) = self.guests.get_mut(name) else { return };
        if !guest.state.has_process() {
            tracing::info!("Guest `{name}` is not started again: somebody stopped it");
            guest.enter(State::Off(Off::ByHand));
        }
    }

    // Guests.

    fn of_guest(&mut self, name: &str, what: OfGuest) {
        let Some(guest) = self.guests.get_mut(name) else { return };
        match what {
            OfGuest::Up(pid, process) => {
                guest.process = Some(process);
                if guest.state == State::Starting {
                    // Its end, which is waited for already, is of this turn.
                    guest.state = State::Running(pid);
                    tracing::info!("Guest `{name}` runs, as process {pid}");
                } else {
                    self.ask_to_end(name);
                }
            }
            OfGuest::Ended(end, why) => {
                let ran = guest.since.elapsed();
                self.ended(name, end, why, ran);
            }
            OfGuest::Gone => self.as_noted(name),
            OfGuest::Due => match guest.state {
                State::BackingOff(_) => drop(guest.enter(State::Waiting(Vec::new()))),
                State::Delayed => self.launch(name),
                State::Stopping => self.kill(name),
                _ => {}
            },
            OfGuest::Deaf(why) => {
                tracing::error!("Guest `{name}` cannot be told to end: {why}");
                self.kill(name);
            }
        }
    }

    fn ended(&mut self, name: &str, end: End, why: Option<String>, ran: Duration) {
        let notes = self.options.running.notes(name);
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        if end == End::Killed {
            self.tidy(name);
        }
        let Some(guest) = self.guests.get_mut(name) else { return };
        let policy = guest.vm.as_ref().map(|vm| vm.restart);
        let told = guest.state == State::Stopping || self.phase == Phase::Stopping;
        if told || notes.is_stopped() || !guest.background {
            tracing::info!("Guest `{name}` has ended: {end}{why}");
            guest.enter(State::Off(if told { Off::Ended(end) } else { Off::ByHand }));
        } else {
            match guest.backoff.judge(policy.unwrap_or(Restart::No), end, ran, &self.options.pace) {
                Verdict::Stays => {
                    tracing::info!("Guest `{name}` has ended: {end}{why}");
                    if end.is_failure() {
                        tracing::error!(
                            "Guest `{name}` stays off; `throughway vm start {name}` starts it again"
                        );
                    }
                    guest.enter(State::Off(Off::Ended(end)));
                }
                Verdict::GivenUp => {
                    tracing::error!(
                        "Guest `{name}` has ended: {end}{why}. That was its failure {} in a row: it stays off until `throughway vm start {name}`",
                        guest.backoff.failures().saturating_add(1)
                    );
                    guest.enter(State::Off(Off::GivenUp(end)));
                }
                Verdict::After(wait) => {
                    tracing::warn!(
                        "Guest `{name}` has ended: {end}{why}; it is started again in {}",
                        humantime::format_duration(wait)
                    );
                    let turn = guest.enter(State::BackingOff(end));
                    watch::after(wait, Teller::new(&self.to, name, turn));
                }
            }
        }
        // Of another file than ours, or of one before.
        if policy.is_none() {
            self.forget(name);
        }
    }

    /// What a killed process left: its folder, and what it held of the host.
    fn tidy(&self, name: &str) {
        if let Err(error) = self.place(name).clean() {
            tracing::warn!("Taking away what guest `{name}` left: {error}");
        }
        if Ledger::at(&self.options.state).claim(name).is_ok_and(|claim| claim.is_some()) {
            change::begin(Change::Recover, &self.options.state, &self.to);
        }
    }

    /// Starts the next guest that may start; false where there is none.
    fn start_some(&mut self) -> bool {
        let drawn = drawn_in(&self.guests);
        for name in &drawn {
            if let Some(guest) = self.guests.get_mut(name) {
                guest.enter(State::Waiting(Vec::new()));
            }
        }
        let order: Vec<String> = match start_order(&self.applied.vms) {
            Ok(order) => order.into_iter().map(str::to_owned).collect(),
            Err(_) => self.applied.vms.keys().cloned().collect(),
        };
        for name in order {
            let waits = |guest: &Guest| matches!(guest.state, State::Waiting(_));
            if !self.guests.get(&name).is_some_and(waits) {
                continue;
            }
            let left = unmet(&self.guests, &name);
            let Some(guest) = self.guests.get_mut(&name) else { continue };
            if !left.is_empty() {
                if guest.state != State::Waiting(left.clone()) {
                    tracing::info!("Guest `{name}` waits for {}", left.join(", "));
                    guest.state = State::Waiting(left);
                }
                continue;
            }
            let delay = guest.vm.as_ref().and_then(|vm| vm.start_delay).map_or(0, |delay| delay.0);
            if delay == 0 {
                self.launch(&name);
            } else {
                let turn = guest.enter(State::Delayed);
                watch::after(Duration::from_secs(delay.into()), Teller::new(&self.to, &name, turn));
            }
            return true;
        }
        !drawn.is_empty()
    }

    fn launch(&mut self, name: &str) {
        let (place, notes) = (self.place(name), self.options.running.notes(name));
        if place.holder().is_some() {
            return self.adopt(name);
        }
        if notes.is_stopped() {
            return self.somebody_stopped(name);
        }
        let Some(vm) = self.guests.get(name).and_then(|guest| guest.vm.as_ref()) else { return };
        let launch = Launch {
            vm: name,
            limits: Limits::of(vm),
            file: &applied::copy(&self.options.state),
            relative_to: self.applied.folder.as_deref(),
            logs: &self.options.logs,
            state: &self.options.state,
            running: &self.options.running,
            boot_once: None,
            verbose: 0,
        };
        let started = launch.start();
        let Some(guest) = self.guests.get_mut(name) else { return };
        guest.background = true;
        guest.since = Instant::now();
        match started {
            Ok(launched) => {
                guest.started_with = guest.vm.clone();
                let process = pidfd_open(Pid::from_child(&launched.child), PidfdFlags::empty());
                let turn = guest.enter(State::Starting);
                guest.process = process.ok().map(Arc::new);
                watch::child(launched.child, place, notes, Teller::new(&self.to, name, turn));
            }
            Err(LaunchError::Held(_)) => self.adopt(name),
            Err(error @ LaunchError::Refused(_)) => {
                self.ended(name, End::Refused, Some(error.to_string()), Duration::ZERO);
            }
            Err(error @ LaunchError::Fault(_)) => {
                self.ended(name, End::Fault, Some(error.to_string()), Duration::ZERO);
            }
        }
    }
}
