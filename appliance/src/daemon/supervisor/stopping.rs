//! Guests are told to end: all of them, or one that the file has no more.

use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use vmm::control::Request;

use super::super::guest::{Guest, Off, State};
use super::super::order::is_needed;
use super::super::watch::{self, OfGuest, Teller};
use super::{Phase, Supervisor};
use crate::config::{Seconds, Vm};
use crate::control::{Client, ClientError, Place};

/// A guest is given this long to shut down where its file does not say.
const STOP: Seconds = Seconds(60);
/// Beyond that its process may take this long to give its devices back; then it is killed.
const GIVING_BACK: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Begins to stop all guests.
    pub(in crate::daemon) fn stop(&mut self) {
        if self.phase == Phase::Stopping {
            return;
        }
        tracing::info!("Stopping all guests");
        self.phase = Phase::Stopping;
        let longest =
            self.guests.values().map(|guest| stop_timeout(guest.vm.as_ref())).max().unwrap_or_default();
        let rounds = u32::try_from(self.guests.len().max(1)).unwrap_or(u32::MAX);
        self.manager.stopping((longest + GIVING_BACK).saturating_mul(rounds));
        for guest in self.guests.values_mut().filter(|guest| !guest.state.has_process()) {
            if !matches!(guest.state, State::Off(_)) {
                guest.enter(State::Off(Off::NotStarted));
            }
        }
        self.settle();
    }

    /// All are stopped.
    pub(in crate::daemon) fn is_done(&self) -> bool {
        self.phase == Phase::Stopping
            && !self.guests.values().any(|guest| guest.background && guest.state.has_process())
    }

    /// After all guests were stopped: the next daemon begins as after the start of the box.
    pub(in crate::daemon) fn forget_all(&self) {
        for name in self.options.running.noted().unwrap_or_default() {
            let notes = self.options.running.notes(&name);
            if let Err(error) = if notes.is_held() { Ok(()) } else { notes.forget() } {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Tells the next guests to end that nobody depends on; false where there is none.
    pub(super) fn stop_some(&mut self) -> bool {
        let may = |name: &String, guest: &Guest| {
            let runs = matches!(guest.state, State::Starting | State::Running(_));
            runs && guest.background && !is_needed(&self.guests, name)
        };
        let next = self.guests.iter().find(|(name, guest)| may(name, guest)).map(|(name, _)| name.clone());
        let Some(name) = next else { return false };
        self.tell_to_end(&name);
        true
    }

    /// Tells a guest to end, at once or as soon as it can be told.
    pub(super) fn tell_to_end(&mut self, name: &str) {
        let Some(guest) = self.guests.get_mut(name) else { return };
        let up = matches!(guest.state, State::Running(_));
        guest.stop_within = stop_timeout(guest.vm.as_ref());
        // What is waited for already, its socket and its end, is of this turn.
        guest.state = State::Stopping;
        let patience = guest.stop_within.saturating_add(GIVING_BACK);
        watch::after(patience, Teller::new(&self.to, name, guest.turn));
        if up {
            self.ask_to_end(name);
        }
    }

    pub(super) fn ask_to_end(&self, name: &str) {
        let Some(guest) = self.guests.get(name) else { return };
        let (place, within) = (self.place(name), guest.stop_within);
        let seconds = within.as_secs();
        tracing::info!("Guest `{name}`: its power button is pressed, and its plug pulled after {seconds} s");
        let teller = Teller::new(&self.to, name, guest.turn);
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = end(&place, &name, within) {
                teller.tell(OfGuest::Deaf(error.to_string()));
            }
        });
    }

    pub(super) fn kill(&self, name: &str) {
        let Some(process) = self.guests.get(name).and_then(|guest| guest.process.clone()) else { return };
        tracing::error!("Guest `{name}` does not end: its process is killed");
        if let Err(error) = pidfd_send_signal(&*process, Signal::KILL) {
            tracing::debug!("Killing guest `{name}`: {error}");
        }
    }
}

/// How long a guest may take to shut down.
pub(crate) fn stop_timeout(vm: Option<&Vm>) -> Duration {
    Duration::from_secs(vm.and_then(|vm| vm.stop_timeout).unwrap_or(STOP).0.into())
}

/// Presses its power button, with the plug later; a guest that cannot be asked that, as it is paused, is stopped at once.
fn end(place: &Place, name: &str, within: Duration) -> Result<(), ClientError> {
    let ask = |timeout_ms| match Client::connect(place, name) {
        Ok(mut client) => client.ask(&Request::Stop { timeout_ms }).map(drop),
        Err(error) => Err(error),
    };
    let milliseconds = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    match ask(milliseconds) {
        Err(ClientError::Refused(why)) => {
            tracing::warn!("Guest `{name}` is stopped at once: {why}");
            ask(0)
        }
        asked => asked,
    }
    .or_else(|error| match error {
        // It has ended by itself meanwhile.
        ClientError::NotRunning(_) | ClientError::Dead(..) | ClientError::Ended(_) => Ok(()),
        error => Err(error),
    })
}
