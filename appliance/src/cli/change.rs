//! `throughway plan`, `apply`, `confirm`, `rollback`, `history` and `status`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use vfio::Sysfs;

use super::check::{self, at_their_lines, print};
use super::exit::{Exit, complain};
use super::{StateDir, run};
use crate::apply::{self, History, Ledger, Lock, Outcome, Record, State, Transaction, Undo};
use crate::config::{self, Config, Diagnostic};
use crate::host::HostState;
use crate::plan::{HostPlan, Planned, Step, whole};

#[derive(Args)]
pub(super) struct PlanArguments {
    /// The appliance file.
    file: String,
    /// The steps as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(super) struct ApplyArguments {
    /// The appliance file.
    file: String,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(super) struct ConfirmArguments {
    /// The change's number; the one that waits where it is not said.
    change: Option<u64>,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(super) struct HistoryArguments {
    /// One change with all its steps and how things were before.
    change: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Args)]
pub(super) struct StatusArguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

/// Why nothing was done, or not all.
enum Failure {
    Input(Vec<Diagnostic>),
    Refused(anyhow::Error),
    Fault(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(error)
    }
}

fn ended(result: Result<Exit, Failure>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(Failure::Input(problems)) => {
            check::complain(&problems);
            Exit::BadInput
        }
        Err(Failure::Refused(error)) => {
            complain(&error);
            Exit::BadInput
        }
        Err(Failure::Fault(error)) => {
            complain(&error);
            Exit::Fault
        }
    }
}

/// The state folder's parts, and the host's PCI functions.
struct Place {
    sysfs: Sysfs,
    ledger: Ledger,
    history: History,
}

impl Place {
    fn at(state: &StateDir) -> Self {
        let folder = &state.state_dir;
        Self { sysfs: Sysfs::default(), ledger: Ledger::at(folder), history: History::at(folder) }
    }

    fn plan(&self, file: &str, config: &Config) -> Result<HostPlan, Failure> {
        let originals = apply::originals(&self.history.records()?);
        let host = HostState::read_all(&self.sysfs, &self.ledger)?;
        whole(config, &host, &originals).map_err(|refusals| Failure::Input(at_their_lines(file, &refusals)))
    }

    /// Takes the lock and puts back what the dead left.
    fn take(&self) -> anyhow::Result<Lock> {
        let lock = self.ledger.lock()?;
        run::put_back_the_dead(&self.sysfs, &self.ledger)?;
        revert_the_dead(&self.history, &self.sysfs)?;
        Ok(lock)
    }
}

/// Puts back what changes did whose processes are gone; how many.
pub(super) fn revert_the_dead(history: &History, sysfs: &Sysfs) -> anyhow::Result<usize> {
    let mut count: usize = 0;
    for record in history.records()? {
        let why = match &record.state {
            State::Applying { holder } if !holder.is_alive() => "its process ended in the middle of it",
            State::Waiting { holder, .. } if !holder.is_alive() => {
                "its process ended before anybody confirmed it"
            }
            _ => continue,
        };
        tracing::warn!("Change {} ({}): {why}; putting everything back", record.id, record.title);
        apply::revert(record, why, history, sysfs)?;
        count = count.saturating_add(1);
    }
    Ok(count)
}

pub(super) fn plan(arguments: &PlanArguments) -> Exit {
    ended(try_plan(arguments))
}

fn try_plan(arguments: &PlanArguments) -> Result<Exit, Failure> {
    let config = check::load(&arguments.file).map_err(Failure::Input)?;
    let plan = Place::at(&arguments.state).plan(&arguments.file, &config)?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&plan).unwrap_or_default());
    } else {
        print(&text(&plan));
    }
    Ok(if plan.is_empty() { Exit::Success } else { Exit::Pending })
}

/// A plan as a person reads it.
fn text(plan: &HostPlan) -> String {
    if plan.is_empty() {
        return "Nothing is to be done: the host is as the file says.".to_owned();
    }
    let step = |(at, planned): (usize, &Planned)| {
        let mut lines = vec![format!("{:>3}. {}", at + 1, planned.step)];
        lines.extend(planned.blast.iter().map(|blast| format!("       {blast}")));
        if planned.management {
            lines.push("       ! this is the way to this box".to_owned());
        }
        lines.join("\n")
    };
    let steps: Vec<String> = plan.steps.iter().enumerate().map(step).collect();
    let confirmation = match plan.needs_confirmation() {
        true => {
            "\nAfter it `apply` waits for `throughway confirm`, and puts everything back where nobody does."
        }
        false => "",
    };
    format!(
        "{}\n{} step{}.{confirmation}",
        steps.join("\n"),
        plan.steps.len(),
        if plan.steps.len() == 1 { "" } else { "s" }
    )
}

/// Set in the process that does the work: it goes on when the terminal, and with it the first process, is cut off.
const WORKER: &str = "THROUGHWAY_WORKER";

pub(super) fn apply(arguments: &ApplyArguments) -> Exit {
    in_a_worker(|| try_apply(arguments))
}

pub(super) fn rollback(state: &StateDir) -> Exit {
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

/// To whoever still listens: a terminal that is gone is no reason to stop.
fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn try_apply(arguments: &ApplyArguments) -> Result<Exit, Failure> {
    let file = &arguments.file;
    let document = config::read(file).map_err(|problem| Failure::Input(vec![problem]))?;
    let config = config::load(&document).map_err(Failure::Input)?;
    let place = Place::at(&arguments.state);
    let lock = place.take()?;
    nobody_waits(&place.history)?;
    let plan = place.plan(file, &config)?;
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
        place.plan(file, &config).map_err(|failure| match failure {
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
    let Place { sysfs, ledger, history } = place;
    let transaction = Transaction { history, ledger, sysfs, tell: &tell, left };
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
    let read = || HostState::read_all(&place.sysfs, &place.ledger);
    let config = text
        .as_deref()
        .map(|text| config::load(&config::Document { name: "the file before".into(), text: text.into() }));
    let config = config.and_then(Result::ok).unwrap_or_default();
    let host = read()?;
    if let Some((address, holder)) = held(undo, &host) {
        let message = format!(
            "{address} is in use by guest `{}` (process {}): stop that guest first",
            holder.vm, holder.pid
        );
        return Err(Failure::Refused(anyhow::anyhow!(message)));
    }
    let plan = crate::plan::release(&config, &host, undo);
    let steps = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
    let record = place.history.begin(format!("rollback of {}", last.id), text.clone(), steps)?;
    let within = Duration::from_secs(config.management.confirm_timeout.0.into());
    let left = || Ok(crate::plan::release(&config, &read()?, undo));
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
        Undo::Link { .. } | Undo::Hugepages { .. } => Vec::new(),
    });
    touched.into_iter().find_map(|address| Some((address, host.held.get(&address)?)))
}

pub(super) fn confirm(arguments: &ConfirmArguments) -> Exit {
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

pub(super) fn history(arguments: &HistoryArguments) -> Exit {
    ended(try_history(arguments))
}

fn try_history(arguments: &HistoryArguments) -> Result<Exit, Failure> {
    let records = Place::at(&arguments.state).history.records()?;
    if let Some(id) = arguments.change {
        let Some(at) = records.iter().position(|record| record.id == id) else {
            return Err(Failure::Refused(anyhow::anyhow!("There is no change {id}")));
        };
        let Some(record) = records.get(at) else { return Ok(Exit::Success) };
        if arguments.json {
            print(&serde_json::to_string_pretty(record).unwrap_or_default());
            return Ok(Exit::Success);
        }
        print(&line(record));
        for (at, step) in record.steps.iter().enumerate() {
            print(&format!("{:>3}. {step}", at + 1));
        }
        let before = records.get(..at).and_then(apply::current).and_then(|before| before.text.as_deref());
        print(&diff(before.unwrap_or_default(), record.text.as_deref().unwrap_or_default()));
    } else if arguments.json {
        print(&serde_json::to_string_pretty(&records).unwrap_or_default());
    } else if records.is_empty() {
        print("Nothing was changed yet.");
    } else {
        records.iter().for_each(|record| print(&line(record)));
    }
    Ok(Exit::Success)
}

fn line(record: &Record) -> String {
    let state = match &record.state {
        State::Applying { .. } => "is being done".to_owned(),
        State::Waiting { .. } => "waits to be confirmed".to_owned(),
        State::Committed => "holds".to_owned(),
        State::Reverted { why } => format!("put back: {why}"),
    };
    let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(record.started));
    format!(
        "{:>4}  {time}  user {}  {}  ({} steps)  {state}",
        record.id,
        record.user,
        record.title,
        record.steps.len()
    )
}

/// Lines that differ between two files.
fn diff(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    diff.unified_diff().context_radius(3).header("before", "after").to_string()
}

/// What `status --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status<'a> {
    change: Option<u64>,
    in_sync: bool,
    differs: Vec<&'a Step>,
    waiting: Vec<u64>,
}

pub(super) fn status(arguments: &StatusArguments) -> Exit {
    ended(try_status(arguments))
}

/// Never "in sync" without having read the host.
fn try_status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
    let records = place.history.records()?;
    let waiting: Vec<u64> = records
        .iter()
        .filter(|record| matches!(record.state, State::Waiting { .. }))
        .map(|record| record.id)
        .collect();
    let current = apply::current(&records);
    let plan = match current.and_then(|current| current.text.as_deref()) {
        None => HostPlan::default(),
        Some(text) => {
            let document = config::Document { name: "the file that was applied".into(), text: text.into() };
            let config = config::load(&document).map_err(Failure::Input)?;
            let host = HostState::read_all(&place.sysfs, &place.ledger)?;
            whole(&config, &host, &apply::originals(&records)).map_err(|refusals| {
                let texts: Vec<String> = refusals.iter().map(|refusal| refusal.message.clone()).collect();
                Failure::Fault(anyhow::anyhow!("The host cannot be compared: {}", texts.join("; ")))
            })?
        }
    };
    let differs: Vec<&Step> = plan.steps.iter().map(|planned| &planned.step).collect();
    let in_sync = differs.is_empty();
    if arguments.json {
        let status = Status { change: current.map(|current| current.id), in_sync, differs, waiting };
        print(&serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        match current {
            None => print("Nothing was applied yet."),
            Some(current) if in_sync => {
                print(&format!("The host is as change {} ({}) made it.", current.id, current.title))
            }
            Some(current) => {
                print(&format!(
                    "The host is no longer as change {} ({}) made it. To be done again:",
                    current.id, current.title
                ));
                differs.iter().for_each(|step| print(&format!("  {step}")));
            }
        }
        waiting
            .iter()
            .for_each(|id| print(&format!("Change {id} waits to be confirmed: throughway confirm {id}")));
    }
    Ok(if in_sync { Exit::Success } else { Exit::Pending })
}
