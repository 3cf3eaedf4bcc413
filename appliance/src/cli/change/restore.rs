//! `throughway restore`: what was applied last and holds, on a box that was started anew.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use clap::Args;

use super::apply::{hear, in_a_worker, tell};
use super::{Failure, Place};
use crate::apply::{self, Event, Lock, Outcome, Record, Transaction, Undo};
use crate::cli::StateDir;
use crate::cli::exit::{Exit, complain};
use crate::config::{self, Config, Document};
use crate::host::HostState;
use crate::plan::{HostPlan, Refusal, Step, leave_out, path_of, whole};

/// How often the host is looked at while something of it is not there yet.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(in crate::cli) struct RestoreArguments {
    /// How long to wait for what is not there yet: a card whose driver is slow, a link.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(..=86400))]
    wait: u64,
    #[command(flatten)]
    state: StateDir,
}

pub(in crate::cli) fn restore(arguments: &RestoreArguments) -> Exit {
    in_a_worker(&arguments.state, || try_restore(arguments))
}

fn try_restore(arguments: &RestoreArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
    let lock = place.take()?;
    super::nobody_waits(&place.history)?;
    let records = place.history.records()?;
    let Some(current) = apply::current(&records) else {
        tell("Nothing was applied yet.");
        return Ok(Exit::Success);
    };
    let Some(text) = current.text.clone() else {
        tell(&format!("No file is applied since change {} ({}).", current.id, current.title));
        return Ok(Exit::Success);
    };
    as_it_was_applied(current, &text);
    let document = Document { name: "the file that was applied".into(), text };
    let config = config::load(&document).map_err(Failure::Input)?;
    let mut restoring = Restoring {
        place: &place,
        origin: origin(&records, current),
        current,
        originals: apply::originals(&records),
        config,
        wait: arguments.wait,
        until: None,
        missing: Vec::new(),
        tried: Vec::new(),
    };
    restoring.run(lock)?;
    if restoring.missing.is_empty() {
        return Ok(Exit::Success);
    }
    for (path, why) in &restoring.missing {
        complain(&anyhow::anyhow!("{path} is missing: {why}"));
    }
    tell(
        "The rest is as it was applied. `throughway restore` again, when what is missing is there, does it all.",
    );
    Ok(Exit::Fault)
}

/// The file on disk may have changed since: what nobody has applied is not done at a boot.
fn as_it_was_applied(current: &Record, text: &str) {
    let Some(path) = &current.file else { return };
    let file = path.display();
    match std::fs::read_to_string(path) {
        Ok(now) if now == text => {}
        Ok(_) => tell(&format!(
            "{file} is not as change {} has it, which is what holds: `throughway plan {file}` says what it would change.",
            current.id
        )),
        Err(error) => tell(&format!(
            "{file}, of which change {} was made, cannot be read ({error}); what was applied of it holds.",
            current.id
        )),
    }
}

/// The change that is brought back, as a person knows it.
fn origin<'a>(records: &'a [Record], current: &'a Record) -> &'a Record {
    records.iter().find(|record| record.id == current.origin()).unwrap_or(current)
}

struct Restoring<'a> {
    place: &'a Place,
    /// The change that holds, and the one that somebody asked for.
    current: &'a Record,
    origin: &'a Record,
    originals: Vec<Undo>,
    /// The file, without what was left out of it.
    config: Config,
    /// Seconds that what is missing may take to come, from when it is first missed.
    wait: u64,
    until: Option<Instant>,
    /// What was left out, and why.
    missing: Vec<(String, String)>,
    /// What failed once already.
    tried: Vec<Vec<String>>,
}

impl Restoring<'_> {
    fn run(&mut self, mut lock: Lock) -> Result<(), Failure> {
        loop {
            let (host, plan) = self.plan()?;
            self.place.host.sightings.note(&self.config, &host)?;
            let (id, title) = (self.origin.id, &self.origin.title);
            if plan.is_empty() {
                if self.missing.is_empty() {
                    tell(&format!("Nothing is to be done: the host is as change {id} ({title}) made it."));
                }
                return Ok(());
            }
            let (change, outcome, last) = self.change(&host, &plan, lock)?;
            match outcome {
                Outcome::Committed => {
                    self.place.history.forget_restores()?;
                    tell(&format!("Change {change} holds: what change {id} ({title}) made is back."));
                    return Ok(());
                }
                // Somebody sits there and was asked, or it is nothing that can be left out: that is the end of it.
                Outcome::Reverted(why) => self.after_a_failure(&host, last.as_ref(), change, why)?,
            }
            lock = self.place.take()?;
        }
    }

    /// Waits until the host can be given all of it, or is out of patience and leaves out what it cannot be given.
    fn plan(&mut self) -> Result<(HostState, HostPlan), Failure> {
        loop {
            let host = self.place.read(&self.config)?;
            let refusals = match whole(&self.config, &host, self.originals()) {
                Ok(plan) => return Ok((host, plan)),
                Err(refusals) => refusals,
            };
            let until = *self.until.get_or_insert_with(|| {
                tell(&format!("Waiting up to {} s: {}", self.wait, in_words(&refusals)));
                Instant::now() + Duration::from_secs(self.wait)
            });
            if Instant::now() < until {
                std::thread::sleep(PAUSE);
                continue;
            }
            let mut less = false;
            for Refusal { path, message, .. } in &refusals {
                if leave_out(&mut self.config, path) {
                    self.missing.push((path.join("."), message.clone()));
                    less = true;
                }
            }
            if !less {
                return Err(Failure::Fault(anyhow::anyhow!(
                    "What was applied cannot be had: {}",
                    in_words(&refusals)
                )));
            }
        }
    }

    /// What a part of the file does not name is no wish to have it gone: then nothing is given back.
    fn originals(&self) -> &[Undo] {
        if self.missing.is_empty() { &self.originals } else { &[] }
    }

    /// Does it; the change's number, what became of it, and the step that it came to.
    fn change(
        &self,
        host: &HostState,
        plan: &HostPlan,
        lock: Lock,
    ) -> anyhow::Result<(u64, Outcome, Option<Step>)> {
        let Place { host: on, ledger, history } = self.place;
        let steps = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
        let mut record =
            history.begin(format!("restore of {}", self.origin.id), self.current.text.clone(), steps)?;
        (record.file, record.restores) = (self.current.file.clone(), Some(self.origin.id));
        record.by.clone_from(&self.current.by);
        let id = record.id;
        let last = RefCell::new(None);
        let hear = |event: Event<'_>| {
            if let Event::Step(step) = event {
                last.replace(Some(step.clone()));
            }
            hear(event);
        };
        let left = || {
            let now = self.place.read(&self.config)?;
            let left = whole(&self.config, &now, self.originals())
                .map_err(|refusals| anyhow::anyhow!(in_words(&refusals)))?;
            if let Some(planned) = left.steps.first() {
                last.replace(Some(planned.step.clone()));
            }
            Ok(left)
        };
        // At a boot nobody is there to confirm what he has confirmed already. Who does this by hand, over the network, is.
        let within = Duration::from_secs(self.config.management.confirm_timeout.0.into());
        let within = host.session.map(|_| within);
        let transaction = Transaction { history, ledger, host: on, hear: &hear, left: &left };
        let outcome = transaction.run(record, plan, lock, within)?;
        Ok((id, outcome, last.into_inner()))
    }

    /// A step that fails is tried once more, and then left out with what it is for.
    fn after_a_failure(
        &mut self,
        host: &HostState,
        last: Option<&Step>,
        change: u64,
        why: String,
    ) -> Result<(), Failure> {
        let path = last.and_then(|step| path_of(step, &self.config, host));
        let fault =
            || Failure::Fault(anyhow::anyhow!("Change {change} was put back, the host is as before: {why}"));
        let Some(path) = path.filter(|_| host.session.is_none()) else { return Err(fault()) };
        if !self.tried.contains(&path) {
            self.tried.push(path);
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        if !leave_out(&mut self.config, &path) {
            return Err(fault());
        }
        self.missing.push((path.join("."), why));
        Ok(())
    }
}

fn in_words(refusals: &[Refusal]) -> String {
    let texts: Vec<String> =
        refusals.iter().map(|refusal| format!("{}: {}", refusal.path.join("."), refusal.message)).collect();
    texts.join("; ")
}
