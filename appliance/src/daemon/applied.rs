//! The file that holds: what was applied last, by anybody. What is on disk beside it is no wish yet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::apply::{self, History, Record, State, write_whole};
use crate::config::{self, Document, Listen, Vm, Web};

/// What of it the daemon needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Applied {
    /// Its text; none where none is applied.
    pub(crate) text: Option<String>,
    /// Where it was read from.
    pub(crate) file: Option<PathBuf>,
    /// Where its relative paths start.
    pub(crate) folder: Option<PathBuf>,
    /// Its guests.
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Where the admin interface is served, where it says so.
    pub(crate) listen: Option<Vec<Listen>>,
    /// What it says of that.
    pub(crate) web: Web,
}

/// Reads it, and leaves a copy for processes of guests.
pub(super) fn read(state: &Path) -> anyhow::Result<Applied> {
    let records = History::at(state).records()?;
    let Some(current) = apply::current(&records) else { return Ok(Applied::default()) };
    let Some(text) = current.text.clone() else { return Ok(Applied::default()) };
    let document = Document { name: "the file that was applied".into(), text };
    let (config, problems) = config::load_all(&document);
    for problem in &problems {
        tracing::warn!("The file that was applied by change {}: {}", current.id, problem.message);
    }
    let config =
        config.with_context(|| format!("Change {}: its file cannot be read any more", current.id))?;
    let copied = copy(state);
    if !fs::read_to_string(&copied).is_ok_and(|now| now == document.text) {
        write_whole(&copied, 0o600, document.text.as_bytes())
            .with_context(|| format!("Writing {}", copied.display()))?;
    }
    let folder = current.file.as_deref().and_then(Path::parent).map(Path::to_owned);
    Ok(Applied {
        text: Some(document.text),
        file: current.file.clone(),
        folder,
        vms: config.vms,
        listen: config.management.listen,
        web: config.web,
    })
}

/// The change that waits to be confirmed, where one does, with the process that puts it back in time.
pub(super) fn waits(state: &Path) -> Option<u64> {
    let records = History::at(state).records().ok()?;
    let is_alive =
        |record: &&Record| matches!(&record.state, State::Waiting { holder, .. } if holder.is_alive());
    let waits = records.iter().find(is_alive);
    waits.map(|record| record.id)
}

/// The copy.
pub(super) fn copy(state: &Path) -> PathBuf {
    state.join("applied.yaml")
}
