//! What people wish, over the admin interface.

use web::Problem;

use super::super::guest::{Off, State};
use super::super::policy::Backoff;
use super::{Phase, Supervisor};
use crate::admin::Wish;

impl Supervisor {
    /// Does what somebody wishes, or says why not.
    pub(in crate::daemon) fn wished(&mut self, wish: Wish) -> Result<(), Problem> {
        let done = match wish {
            Wish::Start(name) => self.start_by_wish(&name),
            Wish::Stay(name) => self.stay_by_wish(&name),
            Wish::Changing => self.change_by_wish(),
            Wish::Changed(code) => {
                self.changed(code);
                Ok(())
            }
        };
        self.settle();
        done
    }

    fn start_by_wish(&mut self, name: &str) -> Result<(), Problem> {
        match self.phase {
            Phase::Stopping => return Err(Problem::conflict("All guests are being stopped")),
            Phase::Restoring => {
                return Err(Problem::conflict("The host is being made as it was; guests start after that"));
            }
            Phase::Running => {}
        }
        let notes = self.options.running.notes(name);
        let Some(guest) = self.guests.get_mut(name).filter(|guest| guest.vm.is_some()) else {
            return Err(Problem::not_found(format!("The file that holds has no guest `{name}`")));
        };
        if guest.state.has_process() {
            return Err(Problem::conflict(format!("Guest `{name}` runs already")));
        }
        notes.set_stopped(false).map_err(|error| Problem::fault(format!("{error:#}")))?;
        guest.backoff = Backoff::default();
        guest.enter(State::Waiting(Vec::new()));
        Ok(())
    }

    fn stay_by_wish(&mut self, name: &str) -> Result<(), Problem> {
        let notes = self.options.running.notes(name);
        let Some(guest) = self.guests.get_mut(name) else {
            return Err(Problem::not_found(format!("There is no guest `{name}`")));
        };
        match guest.state {
            State::Off(_) => return Err(Problem::conflict(format!("Guest `{name}` does not run"))),
            State::Starting | State::Running(_) | State::Stopping => {
                return Err(Problem::conflict(format!("Guest `{name}` has just been started; try again")));
            }
            State::Waiting(_) | State::Delayed | State::BackingOff(_) => {}
        }
        notes.set_stopped(true).map_err(|error| Problem::fault(format!("{error:#}")))?;
        tracing::info!("Guest `{name}` is not started: somebody stopped it");
        guest.enter(State::Off(Off::ByHand));
        Ok(())
    }

    fn change_by_wish(&mut self) -> Result<(), Problem> {
        if self.phase != Phase::Running {
            return Err(Problem::conflict("The daemon is just starting or ending; try again in a moment"));
        }
        if self.changing.is_some() {
            return Err(Problem::conflict("Another change is being made, or waits to be confirmed"));
        }
        self.changing = Some(false);
        Ok(())
    }
}
