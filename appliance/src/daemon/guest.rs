//! One guest as the daemon sees it.
//!
//! ```text
//!              autostart, depended on            all it depends on run
//!       Off ------------------------> Waiting ---------------------------> Delayed
//!        ^                               ^                                   |
//!        | that is its policy,           | after a while                     | its delay is over
//!        | somebody stopped it,          |                                   v
//!        | it fails too often            |          its process is gone   Starting <-- found, or started by hand
//!        +---------- (its end) ------ BackingOff <----- (its end) ------     |
//!        |                                                  |                | its socket is there
//!        |                                                  |                v
//!        +---------- (its end) ------ Stopping <-------- Running <-----------+
//!                                          it is removed, or the box stops
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::policy::Backoff;
use crate::config::Vm;
use crate::control::End;

/// Why a guest is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Off {
    /// Nobody has asked for it.
    NotStarted,
    /// Somebody stopped it.
    ByHand,
    /// It ended, and its file says that it stays off then.
    Ended(End),
    /// It failed too often.
    GivenUp(End),
}

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has no process, and is to have none.
    Off(Off),
    /// It is to be started once these run.
    Waiting(Vec<String>),
    /// It is to be started after its delay.
    Delayed,
    /// It has a process, which is not to be asked anything yet.
    Starting,
    /// It runs, as this process.
    Running(u32),
    /// It was told to end.
    Stopping,
    /// It ended, and is to be started again after a while.
    BackingOff(End),
}

impl State {
    /// It has a process.
    pub fn has_process(&self) -> bool {
        matches!(self, Self::Starting | Self::Running(_) | Self::Stopping)
    }
}

/// A guest, for whoever looks at the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct View {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: State,
    /// Ends in a row that were failures soon after it began.
    pub failures: u32,
    /// The file has changed since it was started.
    pub changed: bool,
}

/// What the daemon keeps of a guest.
pub(super) struct Guest {
    /// In the file; none for one that somebody started from another.
    pub(super) vm: Option<Vm>,
    /// What it was started with, where this daemon did it.
    pub(super) started_with: Option<Vm>,
    pub(super) state: State,
    pub(super) backoff: Backoff,
    /// Since when it has its process.
    pub(super) since: Instant,
    /// Its process, where it is known.
    pub(super) process: Option<Arc<OwnedFd>>,
    /// How long it may take to shut down, once it was told to.
    pub(super) stop_within: Duration,
    /// It runs in the background, so that its end is ours to judge; a guest on somebody's terminal is his.
    pub(super) background: bool,
    /// Raised with each change of what is waited for: what was waited for before is nothing to it any more.
    pub(super) turn: u64,
}

impl Guest {
    pub(super) fn new(vm: Option<Vm>) -> Self {
        Self {
            vm,
            started_with: None,
            state: State::Off(Off::NotStarted),
            backoff: Backoff::default(),
            since: Instant::now(),
            process: None,
            stop_within: Duration::ZERO,
            background: true,
            turn: 0,
        }
    }

    /// A new state, in which nothing of the one before is waited for.
    pub(super) fn enter(&mut self, state: State) -> u64 {
        self.turn = self.turn.wrapping_add(1);
        if !state.has_process() {
            self.process = None;
        }
        self.state = state;
        self.turn
    }

    pub(super) fn view(&self, name: &str) -> View {
        let changed = self.state.has_process() && self.started_with.is_some() && self.started_with != self.vm;
        View { name: name.to_owned(), state: self.state.clone(), failures: self.backoff.failures(), changed }
    }

    /// Who depends on it may start.
    pub(super) fn is_enough(&self) -> bool {
        match &self.state {
            State::Running(_) => true,
            // It has done what it was there for.
            State::Off(Off::Ended(end)) => !end.is_failure() && *end != End::Stopped,
            _ => false,
        }
    }
}
