//! Changes of the whole host: `throughway plan`, `apply`, `confirm`, `rollback`, `history` and `status`.

mod apply;
mod history;
mod plan;
mod status;
mod watch;

pub(super) use apply::{ApplyArguments, ConfirmArguments, apply, confirm, rollback};
pub(super) use history::{HistoryArguments, history};
pub(super) use plan::{PlanArguments, plan};
pub(super) use status::{StatusArguments, status};

use super::check::at_their_lines;
use super::failure::{Failure, ended};
use super::{StateDir, run};
use crate::apply::{History, Host, Ledger, Lock, originals, revert_the_dead};
use crate::config::Config;
use crate::host::HostState;
use crate::plan::{HostPlan, whole};

/// The state folder's parts, and the host.
struct Place {
    host: Host,
    ledger: Ledger,
    history: History,
}

impl Place {
    fn at(state: &StateDir) -> Self {
        let folder = &state.state_dir;
        Self { host: Host::at(folder), ledger: Ledger::at(folder), history: History::at(folder) }
    }

    fn plan(&self, file: &str, config: &Config) -> Result<HostPlan, Failure> {
        let originals = originals(&self.history.records()?);
        let host = HostState::read_all(&self.host, &self.ledger)?;
        whole(config, &host, &originals).map_err(|refusals| Failure::Input(at_their_lines(file, &refusals)))
    }

    /// Takes the lock and puts back what the dead left.
    fn take(&self) -> anyhow::Result<Lock> {
        let lock = self.ledger.lock()?;
        run::put_back_the_dead(&self.host, &self.ledger)?;
        revert_the_dead(&self.history, &self.host)?;
        Ok(lock)
    }
}
