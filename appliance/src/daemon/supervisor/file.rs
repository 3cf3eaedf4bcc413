//! The file: what of it holds, and reading it anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::applied;
use super::super::change::{self, Change};
use super::super::guest::Guest;
use super::{Phase, Supervisor};

impl Supervisor {
    /// Reads the file anew, and makes the host as it says.
    pub(in crate::daemon) fn reload(&mut self) {
        if self.phase == Phase::Stopping {
            return;
        }
        if let Some(again) = &mut self.changing {
            *again = true;
            tracing::info!("The file is read anew once the change that is being made is done");
            return;
        }
        let given = self.options.file.clone();
        let there = given.clone().filter(|file| file.exists());
        let Some(file) = there.or_else(|| self.applied.file.clone()).or(given) else {
            tracing::error!("No file is applied, and none was given: `throughway apply FILE` does it");
            return;
        };
        tracing::info!("Reading {} anew", file.display());
        self.manager.reloading();
        self.changing = Some(false);
        change::begin(Change::Apply(&file), &self.options.state, &self.to);
    }

    /// Takes the guests of the file that holds now.
    pub(super) fn read_what_holds(&mut self) {
        let applied = match applied::read(&self.options.state) {
            Ok(applied) => applied,
            Err(error) => return tracing::error!("{error:#}"),
        };
        if applied == self.applied {
            return;
        }
        let before: BTreeSet<String> = self.applied.vms.keys().cloned().collect();
        self.applied = applied;
        self.shown.send_replace(Arc::new(self.applied.clone()));
        for (name, vm) in self.applied.vms.clone() {
            let guest = self.guests.entry(name.clone()).or_insert_with(|| Guest::new(None));
            let fresh = guest.vm.is_none();
            if !fresh && guest.vm.as_ref() != Some(&vm) && guest.state.has_process() {
                tracing::info!("Guest `{name}` has changed in the file: that holds from its next start on");
            }
            guest.vm = Some(vm);
            if self.surveyed && fresh && !guest.state.has_process() && self.phase != Phase::Stopping {
                tracing::info!("Guest `{name}` is new in the file");
                self.meet(&name);
            }
        }
        for name in before.into_iter().filter(|name| !self.applied.vms.contains_key(name)).collect::<Vec<_>>()
        {
            self.removed(&name);
        }
    }

    /// A guest that the file has no more.
    fn removed(&mut self, name: &str) {
        let Some(guest) = self.guests.get_mut(name) else { return };
        tracing::info!("Guest `{name}` is in the file no more");
        if !guest.state.has_process() {
            self.forget(name);
        } else if guest.background && self.phase != Phase::Stopping && self.surveyed {
            self.tell_to_end(name);
        }
        if let Some(guest) = self.guests.get_mut(name) {
            (guest.vm, guest.started_with) = (None, None);
        }
    }

    /// Nothing is known of it any more, and nothing noted.
    pub(super) fn forget(&mut self, name: &str) {
        if let Err(error) = self.options.running.notes(name).forget() {
            tracing::warn!("{error:#}");
        }
        self.guests.remove(name);
    }

    /// A process that changed the host has ended.
    pub(super) fn changed(&mut self, code: Option<i32>) {
        let again = self.changing.take().unwrap_or(false);
        if self.phase == Phase::Stopping {
            return;
        }
        self.read_what_holds();
        match (self.phase, code) {
            (Phase::Restoring, code) => {
                match &self.applied.text {
                    _ if code == Some(0) => {}
                    Some(_) => {
                        tracing::error!(
                            "Not all of the host is as it was applied; guests start all the same"
                        );
                    }
                    None => tracing::error!(
                        "The file is not applied, so no guest starts: put it right, then reload"
                    ),
                }
                self.go_on();
            }
            (_, Some(0)) => tracing::info!("The host is as the file says"),
            (_, _) => tracing::error!("The file is not applied: what held before holds on"),
        }
        self.manager.ready();
        if again {
            self.reload();
        }
    }
}
