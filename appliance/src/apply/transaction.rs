//! One change of the host, all of it or nothing.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::history::now;
use super::steps::{self, Journal};
use super::{History, Holder, Host, Ledger, Record, State, Undo};
use crate::plan::{HostPlan, Step};

/// How long the host may take until it is as planned.
const SETTLE: Duration = Duration::from_secs(8);
/// How often it is looked at, and a confirmation looked for.
const PAUSE: Duration = Duration::from_millis(100);

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Committed,
    /// Everything was put back; why.
    Reverted(String),
}

/// What happens in a change, as it happens.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step begins.
    Step(&'a Step),
    /// How something is, before it is changed, is on disk.
    Noted(&'a Undo),
    /// All steps are done, and the way to the box was changed: somebody must confirm it.
    Waiting {
        /// The change's number.
        change: u64,
        /// For how long.
        seconds: u64,
    },
    /// Everything is put back; why.
    Reverting(&'a str),
}

/// A change in progress.
pub struct Transaction<'a> {
    /// Where it is noted.
    pub history: &'a History,
    /// The ledger, whose lock keeps others from changing the host.
    pub ledger: &'a Ledger,
    /// What it is done to.
    pub host: &'a Host,
    /// Hears what happens.
    pub hear: &'a dyn Fn(Event<'_>),
    /// What is still to be done, read anew from the host.
    pub left: &'a dyn Fn() -> anyhow::Result<HostPlan>,
}

struct Noting<'a> {
    history: &'a History,
    record: Record,
    hear: &'a dyn Fn(Event<'_>),
}

impl Journal for Noting<'_> {
    fn note(&mut self, undo: Undo) -> anyhow::Result<()> {
        // The first of an object is how it was: later ones are of our own making.
        if self.record.undo.iter().any(|noted| noted.object() == undo.object()) {
            return Ok(());
        }
        self.record.undo.push(undo);
        self.history.write(&self.record)?;
        self.record.undo.last().into_iter().for_each(|undo| (self.hear)(Event::Noted(undo)));
        Ok(())
    }

    fn note_own(&mut self, undo: Undo) -> anyhow::Result<()> {
        self.note(undo)
    }
}

impl Transaction<'_> {
    /// Does what the plan says, looks whether it is so, and waits for a confirmation when the administrator's way was changed.
    /// Who calls holds the ledger's lock; it is let go while a confirmation is waited for.
    pub fn run(
        &self,
        record: Record,
        plan: &HostPlan,
        lock: super::Lock,
        confirm_within: Duration,
    ) -> anyhow::Result<Outcome> {
        self.history.forget_confirmation(record.id);
        self.history.write(&record)?;
        let mut noting = Noting { history: self.history, record, hear: self.hear };
        let done = plan.steps.iter().try_for_each(|planned| {
            (self.hear)(Event::Step(&planned.step));
            steps::take(&planned.step, self.host, &mut noting)
        });
        let mut record = noting.record;
        if let Err(error) = done.and_then(|()| self.settle()) {
            return self.revert(record, format!("{error:#}"));
        }
        record.released = plan.steps.iter().filter_map(|planned| released(&planned.step)).collect();
        if plan.needs_confirmation() {
            let until = now().saturating_add(confirm_within.as_secs());
            record.state = State::Waiting { holder: Holder::this(""), until };
            self.history.write(&record)?;
            drop(lock);
            let seconds = confirm_within.as_secs();
            (self.hear)(Event::Waiting { change: record.id, seconds });
            let confirmed = self.wait_for_confirmation(record.id, confirm_within);
            let _lock = self.ledger.lock()?;
            // At the very end: the lock decides who was first.
            if !confirmed && !self.history.is_confirmed(record.id) {
                return self.revert(record, format!("nobody confirmed it within {seconds} s"));
            }
            return self.commit(record);
        }
        self.commit(record)
    }

    fn commit(&self, mut record: Record) -> anyhow::Result<Outcome> {
        record.state = State::Committed;
        self.history.write(&record)?;
        self.history.forget_confirmation(record.id);
        Ok(Outcome::Committed)
    }

    fn revert(&self, record: Record, why: String) -> anyhow::Result<Outcome> {
        (self.hear)(Event::Reverting(&why));
        revert(record, &why, self.history, self.host)?;
        Ok(Outcome::Reverted(why))
    }

    /// Waits until nothing is left to do; what is left then is an error.
    fn settle(&self) -> anyhow::Result<()> {
        let end = Instant::now() + SETTLE;
        loop {
            let left = (self.left)()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let steps: Vec<String> = left.steps.iter().map(|planned| planned.step.to_string()).collect();
                anyhow::bail!("the host does not keep what it was given: {}", steps.join("; "));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn wait_for_confirmation(&self, id: u64, within: Duration) -> bool {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if self.history.is_confirmed(id) {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }
}

fn released(step: &Step) -> Option<String> {
    match step {
        Step::Release(undo) => Some(undo.object()),
        _ => None,
    }
}

/// Puts back what a change did, as far as it got. May be done twice.
pub fn revert(mut record: Record, why: &str, history: &History, host: &Host) -> anyhow::Result<()> {
    steps::put_back(&record.undo, host)
        .with_context(|| format!("Putting back what change {} ({}) did", record.id, record.title))?;
    record.state = State::Reverted { why: why.to_owned() };
    history.write(&record)?;
    history.forget_confirmation(record.id);
    Ok(())
}

/// Puts back what changes did whose processes are gone; how many.
pub fn revert_the_dead(history: &History, host: &Host) -> anyhow::Result<usize> {
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
        revert(record, why, history, host)?;
        count = count.saturating_add(1);
    }
    Ok(count)
}
