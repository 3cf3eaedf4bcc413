//! `throughway apply`, `confirm` and `rollback`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Failure, Place, ended};
use crate::apply::{self, Event, History, Lock, Outcome, Record, State, Transaction, Undo};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::{Exit, complain};
use crate::config;
use crate::host::HostState;
use crate::plan::{HostPlan, release};

#[derive(Args)]
pub(in crate::cli) struct ApplyArguments {
    /// The appliance file.
    file: String,
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
    in_a_worker(|| try_apply(arguments))
}

pub(in crate::cli) fn rollback(state: &StateDir) -> Exit {
    in_a_worker(|| try_rollback(state))
}

/// Runs `work` in a process of its own session, and relays what it says for as long as this one lives.
fn in_a_worker(work: impl FnOnce() -> Result<Exit, Failure>) -> Exit {
    if std::env::var_os(WORKER).is_some() {
        if let Err(error) = rustix::process::setsid() {
            tracing::debug!("Making a session: {error}");
        }
        return ended(work());
    }
    match relay() {
        Ok(exit) => exit,
        Err(error) => {
            complain(&error);
            Exit::Fault
        }
    }
}

fn relay() -> anyhow::Result<Exit> {
    let program = std::env::current_exe().context("Finding this program")?;
    let mut worker = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(WORKER, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("Starting the process that does it")?;
    if let Some(said) = worker.stdout.take() {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            print(&line);
        }
    }
    let status = worker.wait().context("Waiting for the process that does it")?;
    Ok(Exit::from_code(status.code()))
}

fn hear(event: Event<'_>) {
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
fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn try_apply(arguments: &ApplyArguments) -> Result<Exit, Failure> {
    let file = &arguments.file;
    let place = Place::at(&arguments.state);
    let (document, config) = place.load(file)?;
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
    let record = place.history.begin(format!("apply {file}"), Some(document.text.clone()), steps)?;
    let left = || {
        place.plan(&document, &config).map_err(|failure| match failure {
            Failure::Input(problems) => {
                let texts: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
                anyhow::anyhow!("{}", texts.join("; "))
            }
            Failure::Refused(error) | Failure::Fault(error) => error,
        })
    };
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    finish(&place, record, &plan, lock, within, &left)
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
    let Place { host, ledger, history } = place;
    let transaction = Transaction { history, ledger, host, hear: &hear, left };
    match transaction.run(record, plan, lock, within)? {
        Outcome::Committed => {
            tell(&format!("Change {id} holds."));
            Ok(Exit::Success)
        }
        Outcome::Reverted(why) => {
            Err(Failure::Fault(anyhow::anyhow!("Change {id} was put back, the host is as before: {why}")))
        }
    }
}

fn nobody_waits(history: &History) -> Result<(), Failure> {
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

fn try_rollback(state: &StateDir) -> Result<Exit, Failure> {
    let place = Place::at(state);
    let lock = place.take()?;
    nobody_waits(&place.history)?;
    let records = place.history.records()?;
    let Some(last) = apply::current(&records) else {
        return Err(Failure::Refused(anyhow::anyhow!("There is no change to go back from")));
    };
    let before: Vec<Record> = records.iter().take_while(|record| record.id != last.id).cloned().collect();
    let text = apply::current(&before).and_then(|before| before.text.clone());
    let undo = &last.undo;
    let config = text
        .as_deref()
        .map(|text| config::load(&config::Document { name: "the file before".into(), text: text.into() }));
    let config = config.and_then(Result::ok).unwrap_or_default();
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
    let record = place.history.begin(format!("rollback of {}", last.id), text.clone(), steps)?;
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    let left = || Ok(release(&config, &read()?, undo));
    finish(&place, record, &plan, lock, within, &left)
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
        | Undo::Hugepages { .. } => Vec::new(),
    });
    touched.into_iter().find_map(|address| Some((address, host.held.get(&address)?)))
}

pub(in crate::cli) fn confirm(arguments: &ConfirmArguments) -> Exit {
    ended(try_confirm(arguments))
}

fn try_confirm(arguments: &ConfirmArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
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
    place.history.confirm(record.id)?;
    print(&format!("Change {} is confirmed.", record.id));
    Ok(Exit::Success)
}
