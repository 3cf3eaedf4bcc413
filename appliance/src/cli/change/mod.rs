//! Changes of the whole host: `throughway plan`, `apply`, `confirm`, `rollback`, `restore`, `history` and `status`.

mod apply;
mod history;
mod plan;
mod restore;
mod status;
mod watch;

pub(super) use apply::{
    ApplyArguments, ConfirmArguments, RollbackArguments, apply, confirm, nobody_waits, rollback,
};
pub(super) use history::{HistoryArguments, history};
pub(super) use plan::{PlanArguments, plan};
pub(super) use restore::{RestoreArguments, restore};
pub(super) use status::{StatusArguments, status};

use super::check::at_their_lines;
use super::failure::{Failure, ended};
use super::{StateDir, run};
use crate::apply::{History, Host, Ledger, Lock, after_restart, originals, revert_the_dead};
use crate::config::{self, Config, Document};
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

    fn plan(&self, document: &Document, config: &Config) -> Result<HostPlan, Failure> {
        let originals = originals(&self.history.records()?);
        let host = self.read(config)?;
        whole(config, &host, &originals)
            .map_err(|refusals| Failure::Input(at_their_lines(document, &refusals)))
    }

    /// What is still to be done, where being refused is a failure of its own.
    fn left(&self, document: &Document, config: &Config) -> anyhow::Result<HostPlan> {
        self.plan(document, config).map_err(|failure| match failure {
            Failure::Input(problems) => {
                let texts: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
                anyhow::anyhow!("{}", texts.join("; "))
            }
            Failure::Refused(error) | Failure::Fault(error) => error,
        })
    }

    /// The host now, as far as a file needs it.
    fn read(&self, config: &Config) -> anyhow::Result<HostState> {
        let mut host = HostState::read_all(&self.host, &self.ledger)?;
        host.recognize(&self.host, config)?;
        Ok(host)
    }

    /// Reads a file. What is wrong with it comes together with all that the host refuses of it.
    fn load(&self, file: &str) -> Result<(Document, Config), Failure> {
        let document = config::read(file).map_err(|problem| Failure::Input(vec![problem]))?;
        let (config, problems) = config::load_all(&document);
        let Some(config) = config else { return Err(Failure::Input(problems)) };
        if problems.is_empty() {
            return Ok((document, config));
        }
        let more = match self.plan(&document, &config) {
            Err(Failure::Input(more)) => more,
            _ => Vec::new(),
        };
        Err(Failure::Input(config::together(problems, more)))
    }

    /// Takes the lock and puts back what the dead left.
    fn take(&self) -> anyhow::Result<Lock> {
        let lock = self.ledger.lock()?;
        run::put_back_the_dead(&self.host, &self.ledger)?;
        revert_the_dead(&self.history, &self.host)?;
        after_restart(&self.history, &self.host)?;
        Ok(lock)
    }
}
