//! `throughway apply`, `confirm` and `rollback`.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::fcntl_setpipe_size;

use super::status::NO_FILE;
use super::{Failure, Place, ended};
use crate::admin::{BEGINS, BEHIND, is_tagged};
use crate::apply::{self, Event, History, Lock, Outcome, Record, State, Transaction, Undo, now};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::{Exit, complain};
use crate::config::{self, Config};
use crate::host::{HostState, session};
use crate::plan::{HostPlan, release};

#[derive(Args)]
pub(in crate::cli) struct ApplyArguments {
    /// The appliance file.
    file: String,
    /// Only where it is the one with this tag: as the admin interface has seen it.
    #[arg(long, hide = true)]
    tag: Option<String>,
    /// Who asks for it, over the admin interface.
    #[arg(long, hide = true)]
    by: Option<String>,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(in crate::cli) struct RollbackArguments {
    /// Who asks for it, over the admin interface.
    #[arg(long, hide = true)]
    by: Option<String>,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(in crate::cli) struct ConfirmArguments {
    /// The change's number; the one that waits where it is not said.
    change: Option<u64>,
    #[command(flatten)]
    state: StateDir,
}

/// Set in the process that does the work: it goes on when the terminal, and with it the first process, is cut off.
const WORKER: &str = "THROUGHWAY_WORKER";

pub(in crate::cli) fn apply(arguments: &ApplyArguments) -> Exit {
    in_a_worker(&arguments.state, || try_apply(arguments))
}

pub(in crate::cli) fn rollback(arguments: &RollbackArguments) -> Exit {
    in_a_worker(&arguments.state, || try_rollback(arguments))
}

/// Runs `work` in a process of its own session, and relays what it says for as long as this one lives.
pub(super) fn in_a_worker(state: &StateDir, work: impl FnOnce() -> Result<Exit, Failure>) -> Exit {
    if std::env::var_os(WORKER).is_some() {
        if let Err(error) = rustix::process::setsid() {
            tracing::debug!("Making a session: {error}");
        }
        never_wait(std::io::stdout().as_fd());
        never_wait(std::io::stderr().as_fd());
        return ended(work());
    }
    match relay(&Place::at(state)) {
        Ok(exit) => exit,
        Err(error) => {
            complain(&error);
            Exit::Fault
        }
    }
}

/// Has what is written to a pipe that nobody reads be lost. A terminal that hangs, as its connection is cut, must not hold up who
/// is to bring it back.
fn never_wait(pipe: BorrowedFd<'_>) {
    // Room for all that a plan with hundreds of steps says.
    let made = fcntl_setpipe_size(pipe, 1 << 20)
        .and_then(|_| fcntl_getfl(pipe))
        .and_then(|flags| fcntl_setfl(pipe, flags | OFlags::NONBLOCK));
    if let Err(error) = made {
        tracing::debug!("Having a pipe never wait: {error}");
    }
}

fn relay(place: &Place) -> anyhow::Result<Exit> {
    // Not by its path: an upgrade may have put another one there meanwhile, or be about to.
    let mut worker = Command::new("/proc/self/exe");
    if let Some(connection) = session::connection() {
        // It looks for it again when this process is gone, and the way up to sshd with it.
        worker.env(session::VARIABLE, connection);
    }
    let mut worker = worker
        .args(std::env::args_os().skip(1))
        .env(WORKER, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Starting the process that does it")?;
    let errors = worker.stderr.take().map(|said| {
        std::thread::spawn(|| {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        })
    });
    if let Some(said) = worker.stdout.take() {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            print(&line);
        }
    }
    errors.map(std::thread::JoinHandle::join);
    let status = worker.wait().context("Waiting for the process that does it")?;
    if let Some(signal) = status.signal() {
        place.take().context("Putting back what was done")?;
        anyhow::bail!("The process that did it was killed by signal {signal}; what it had done was put back");
    }
    Ok(Exit::from_code(status.code()))
}

pub(super) fn hear(event: Event<'_>) {
    match event {
        Event::Step(step) => tell(&step.to_string()),
        Event::Noted(_) => {}
        Event::Waiting { change, seconds } => tell(&format!(
            "The way to this box was changed. Within {seconds} s, say that you still come in: throughway confirm {change}"
        )),
        Event::Reverting(why) => tell(&format!("Putting everything back: {why}")),
    }
}

/// To whoever still listens: a terminal that is gone is no reason to stop.
pub(super) fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn try_apply(arguments: &ApplyArguments) -> Result<Exit, Failure> {
    let file = &arguments.file;
    let place = Place::at(&arguments.state);
    let (document, config) = place.load(file)?;
    is_tagged(file.as_ref(), &document.text, arguments.tag.as_deref())
        .map_err(|why| Failure::Refused(anyhow::anyhow!(why)))?;
    let lock = place.take()?;
    nobody_waits(&place.history)?;
    place.host.sightings.note(&config, &place.read(&config)?)?;
    let plan = place.plan(&document, &config)?;
    if plan.is_empty()
        && apply::current(&place.history.records()?)
            .is_some_and(|current| current.text.as_ref() == Some(&document.text))
    {
        tell("Nothing is to be done: the host is as the file says.");
        return Ok(Exit::Success);
    }
    let steps = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
    let mut record = place.history.begin(format!("apply {file}"), Some(document.text.clone()), steps)?;
    record.file = std::path::absolute(file).ok();
    record.by.clone_from(&arguments.by);
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    finish(&place, record, &plan, lock, within, &|| place.left(&document, &config))
}

fn finish(
    place: &Place,
    record: Record,
    plan: &HostPlan,
    lock: Lock,
    within: Duration,
    left: &dyn Fn() -> anyhow::Result<HostPlan>,
) -> Result<Exit, Failure> {
    let id = record.id;
    if record.by.is_some() {
        // Who hears its number asks for it.
        place.history.write(&record)?;
        tell(&format!("{BEGINS}{id}{BEHIND}"));
    }
    let Place { host, ledger, history } = place;
    let transaction = Transaction { history, ledger, host, hear: &hear, left };
    match transaction.run(record, plan, lock, Some(within))? {
        Outcome::Committed => {
            tell(&format!("Change {id} holds."));
            Ok(Exit::Success)
        }
        Outcome::Reverted(why) => {
            Err(Failure::Fault(anyhow::anyhow!("Change {id} was put back, the host is as before: {why}")))
        }
    }
}

pub(in crate::cli) fn nobody_waits(history: &History) -> Result<(), Failure> {
    let records = history.records()?;
    let waits = records.iter().find(|record| matches!(record.state, State::Waiting { .. }));
    waits.map_or(Ok(()), |record| {
        let id = record.id;
        let message = format!(
            "Change {id} waits to be confirmed: `throughway confirm {id}` first, or let it be put back"
        );
        Err(Failure::Refused(anyhow::anyhow!(message)))
    })
}

fn try_rollback(arguments: &RollbackArguments) -> Result<Exit, Failure> {
    let by = &arguments.by;
    let place = Place::at(&arguments.state);
    let lock = place.take()?;
    nobody_waits(&place.history)?;
    let records = place.history.records()?;
    let Some(last) = apply::current(&records) else {
        return Err(Failure::Refused(anyhow::anyhow!("There is no change to go back from")));
    };
    let before: Vec<Record> =
        records.iter().take_while(|record| record.id != last.origin()).cloned().collect();
    let before = apply::current(&before);
    let (text, path) = before.map_or((None, None), |before| (before.text.clone(), before.file.clone()));
    if last.restores.is_some() || !last.is_of_this_boot() {
        return back_by_file(&place, last, text, path, lock, by);
    }
    let undo = &last.undo;
    let config = text
        .as_deref()
        .map(|text| config::load(&config::Document { name: "the file before".into(), text: text.into() }));
    let mut config = config.and_then(Result::ok).unwrap_or_default();
    guard_what_is_named_now(&mut config, last);
    let read = || place.read(&config);
    let host = read()?;
    if let Some((address, holder)) = held(undo, &host) {
        let message = format!(
            "{address} is in use by guest `{}` (process {}): stop that guest first",
            holder.vm, holder.pid
        );
        return Err(Failure::Refused(anyhow::anyhow!(message)));
    }
    let plan = release(&config, &host, undo);
    let steps = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
    let mut record = place.history.begin(format!("rollback of {}", last.id), text.clone(), steps)?;
    record.file = path;
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    record.by.clone_from(by);
    let left = || Ok(release(&config, &read()?, undo));
    finish(&place, record, &plan, lock, within, &left)
}

/// Who goes back from a change comes in by the link that its file names, whatever the file before names.
fn guard_what_is_named_now(config: &mut Config, last: &Record) {
    let text = last.text.clone().unwrap_or_default();
    let now = config::load(&config::Document { name: "the file now".into(), text });
    if let Some(now) = now.ok().filter(|now| now.management.interface.is_some()) {
        config.management = now.management;
    }
}

/// Goes back from a change of an earlier boot: what it found is nothing to this one, so what held before it is applied.
fn back_by_file(
    place: &Place,
    last: &Record,
    text: Option<String>,
    path: Option<PathBuf>,
    lock: Lock,
    by: &Option<String>,
) -> Result<Exit, Failure> {
    let document = config::Document {
        name: "the file before".into(),
        text: text.clone().unwrap_or_else(|| NO_FILE.to_owned()),
    };
    let mut config = config::load(&document).map_err(Failure::Input)?;
    guard_what_is_named_now(&mut config, last);
    let plan = place.plan(&document, &config)?;
    let steps = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
    let mut record = place.history.begin(format!("rollback of {}", last.origin()), text, steps)?;
    record.file = path;
    record.by.clone_from(by);
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    finish(place, record, &plan, lock, within, &|| place.left(&document, &config))
}

/// A function that a guest holds and that an undo would touch.
fn held<'a>(undo: &[Undo], host: &'a HostState) -> Option<(vfio::PciAddress, &'a apply::Holder)> {
    let touched = undo.iter().flat_map(|undo| match undo {
        Undo::Driver { address, .. } => vec![*address],
        Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => {
            let sriov = host.inventory.function(*pf).and_then(|pf| pf.sriov.as_ref());
            sriov.map(|sriov| sriov.vfs.clone()).unwrap_or_default()
        }
        Undo::Link { .. }
        | Undo::Nat { .. }
        | Undo::Dhcp { .. }
        | Undo::Forward { .. }
        | Undo::Hugepages { .. }
        | Undo::Routes { .. } => Vec::new(),
    });
    touched.into_iter().find_map(|address| Some((address, host.held.get(&address)?)))
}

pub(in crate::cli) fn confirm(arguments: &ConfirmArguments) -> Exit {
    ended(try_confirm(arguments))
}

fn try_confirm(arguments: &ConfirmArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
    // Who puts everything back holds it while he does: what is confirmed under it holds.
    let _lock = place.ledger.lock()?;
    let records = place.history.records()?;
    let mut waiting = records.iter().filter(|record| matches!(record.state, State::Waiting { .. }));
    let record = match arguments.change {
        Some(id) => waiting.find(|record| record.id == id),
        None => waiting.next(),
    };
    let Some(record) = record else {
        return Err(Failure::Refused(anyhow::anyhow!(
            "No change waits to be confirmed; `throughway history` says what became of it"
        )));
    };
    let id = record.id;
    match &record.state {
        State::Waiting { holder, .. } if !holder.is_of_this_boot() => {
            let error = anyhow::anyhow!(
                "Change {id} went when the box was started anew, before it was confirmed: apply its file again"
            );
            return Err(Failure::Refused(error));
        }
        State::Waiting { holder, until } if !holder.is_alive() && now() > *until => {
            let error = anyhow::anyhow!(
                "Change {id} was to be confirmed earlier, and the process that waited for it is gone: `throughway recover` puts it back"
            );
            return Err(Failure::Refused(error));
        }
        State::Waiting { holder, .. } if !holder.is_alive() => {
            place.history.commit(record.clone())?;
        }
        _ => place.history.confirm(id)?,
    }
    print(&format!("Change {id} is confirmed."));
    Ok(Exit::Success)
}
