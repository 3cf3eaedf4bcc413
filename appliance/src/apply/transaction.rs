//! One change of the host, all of it or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use netconfig::blocking::with_network;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::history::now;
use super::steps::{self, Journal};
use super::{History, Holder, Host, Ledger, Record, State, Undo};
use crate::plan::{HostPlan, Step};

/// How long the host may take until it is as planned.
const SETTLE: Duration = Duration::from_secs(8);
/// How often it is looked at, and a confirmation looked for.
const PAUSE: Duration = Duration::from_millis(100);
/// How long another process may change the host when everything is to be put back.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Who calls holds the ledger's lock; it is let go while a confirmation is waited for. Without a time nobody has to confirm it.
    pub fn run(
        &self,
        record: Record,
        plan: &HostPlan,
        lock: super::Lock,
        confirm_within: Option<Duration>,
    ) -> anyhow::Result<Outcome> {
        self.history.forget_confirmation(record.id);
        self.history.write(&record)?;
        let mut noting = Noting { history: self.history, record, hear: self.hear };
        let done = self.take_all(plan, &mut noting);
        let mut record = noting.record;
        if let Err(error) = done.and_then(|()| self.settle()) {
            return self.revert(record, format!("{error:#}"));
        }
        record.released = plan.steps.iter().filter_map(|planned| released(&planned.step)).collect();
        let Some(confirm_within) = confirm_within.filter(|_| plan.needs_confirmation()) else {
            return self.commit(record);
        };
        let told_to_end = told_to_end();
        let until = now().saturating_add(confirm_within.as_secs());
        record.state = State::Waiting { holder: Holder::this(""), until };
        // A full disk must not leave the box with a way in that nobody has tried.
        if let Err(error) = self.history.write(&record) {
            return self.revert(record, format!("{error:#}"));
        }
        drop(lock);
        let seconds = confirm_within.as_secs();
        (self.hear)(Event::Waiting { change: record.id, seconds });
        let why = self.wait_for_confirmation(record.id, confirm_within, &told_to_end);
        let _lock = self.lock_in_the_end();
        match why {
            // At the very end: the lock decides who was first.
            Some(why) if !self.history.is_confirmed(record.id) => self.revert(record, why),
            _ => self.commit(record),
        }
    }

    fn take_all(&self, plan: &HostPlan, noting: &mut Noting<'_>) -> anyhow::Result<()> {
        if plan.is_empty() {
            return Ok(());
        }
        // First, so that it is undone last: routes need the addresses that are put back before.
        let before = with_network(async |network| network.routes().await)?;
        noting.note_own(Undo::Routes { before: before.clone() })?;
        for planned in &plan.steps {
            (self.hear)(Event::Step(&planned.step));
            steps::take(&planned.step, self.host, noting)?;
        }
        for carried in with_network(async |network| network.carry_routes(&before).await)? {
            tracing::info!("The route {carried} goes where its gateway is now");
        }
        Ok(())
    }

    /// Puts the lock before everything, but for the way in: who holds it for long would keep everybody out.
    fn lock_in_the_end(&self) -> Option<super::Lock> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.ledger.try_lock() {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if Instant::now() < end => std::thread::sleep(PAUSE),
                Ok(None) => {
                    tracing::warn!("Another process changes the host and does not end; going on beside it");
                    return None;
                }
                Err(error) => {
                    tracing::warn!("{error:#}");
                    return None;
                }
            }
        }
    }

    fn commit(&self, record: Record) -> anyhow::Result<Outcome> {
        self.history.commit(record)?;
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

    /// Why it is to be put back; none where somebody has confirmed it.
    fn wait_for_confirmation(&self, id: u64, within: Duration, told_to_end: &AtomicBool) -> Option<String> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if self.history.is_confirmed(id) {
                return None;
            }
            if told_to_end.load(Ordering::Relaxed) {
                return Some("its process was told to end before anybody confirmed it".to_owned());
            }
            std::thread::sleep(PAUSE);
        }
        Some(format!("nobody confirmed it within {} s", within.as_secs()))
    }
}

/// Set when this process is told to end while it waits, as when its login's processes are ended with the session.
fn told_to_end() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&told)) {
            tracing::debug!("Listening for signal {signal}: {error}");
        }
    }
    told
}

fn released(step: &Step) -> Option<String> {
    match step {
        Step::Release(undo) => Some(undo.object()),
        _ => None,
    }
}

/// Puts back what a change did, as far as it got. May be done twice.
pub fn revert(record: Record, why: &str, history: &History, host: &Host) -> anyhow::Result<()> {
    steps::put_back(&record.undo, host)
        .with_context(|| format!("Putting back what change {} ({}) did", record.id, record.title))?;
    history.give_up(record, why.to_owned())
}

/// Puts back what changes did whose processes are gone; how many. What they did before the box was started anew went with that.
/// Who calls holds the ledger's lock.
pub fn revert_the_dead(history: &History, host: &Host) -> anyhow::Result<usize> {
    let mut count: usize = 0;
    for record in history.records()? {
        let why = match &record.state {
            // Its process ended between the confirmation and noting that it holds.
            State::Waiting { holder, .. } if !holder.is_alive() && history.is_confirmed(record.id) => {
                history.commit(record)?;
                continue;
            }
            // Who applies holds the lock: it is ours now. (A process that is ending lets go of it a moment before it is gone.)
            State::Applying { .. } => "its process ended in the middle of it",
            State::Waiting { holder, .. } if !holder.is_alive() => {
                "its process ended before anybody confirmed it"
            }
            _ => continue,
        };
        if !record.is_of_this_boot() {
            let why = format!("{why}: the box was started anew");
            tracing::warn!("Change {} ({}): {why}; nothing is left of it", record.id, record.title);
            history.give_up(record, why)?;
            count = count.saturating_add(1);
            continue;
        }
        tracing::warn!("Change {} ({}): {why}; putting everything back", record.id, record.title);
        revert(record, why, history, host)?;
        count = count.saturating_add(1);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that was killed lets go of the lock while it can still be seen.
    #[test]
    fn who_has_the_lock_puts_back_what_was_being_applied_although_its_process_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (history, host) = (History::at(folder.path()), Host::at(folder.path()));
        let ledger = Ledger::at(folder.path());
        let record = history.begin("a change".into(), None, Vec::new()).unwrap();
        assert!(matches!(&record.state, State::Applying { holder } if holder.is_alive()));
        history.write(&record).unwrap();
        let mut waits = history.begin("another".into(), None, Vec::new()).unwrap();
        waits.state = State::Waiting { holder: Holder::this(""), until: now() };
        history.write(&waits).unwrap();
        let _lock = ledger.lock().unwrap();
        assert_eq!(revert_the_dead(&history, &host).unwrap(), 1);
        let records = history.records().unwrap();
        assert!(matches!(records[0].state, State::Reverted { .. }));
        assert_eq!(records[1], waits, "who waits has let go of the lock on purpose");
    }
}
