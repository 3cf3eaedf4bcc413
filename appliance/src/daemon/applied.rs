//! The file that holds: what was applied last, by anybody. What is on disk beside it is no wish yet.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::apply::{self, History};
use crate::config::{self, Document, Vm};

/// What of it the daemon needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Applied {
    /// Its text; none where none is applied.
    pub(super) text: Option<String>,
    /// Where it was read from.
    pub(super) file: Option<PathBuf>,
    /// Where its relative paths start.
    pub(super) folder: Option<PathBuf>,
    /// Its guests.
    pub(super) vms: BTreeMap<String, Vm>,
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
    write(&copy(state), &document.text)?;
    let folder = current.file.as_deref().and_then(Path::parent).map(Path::to_owned);
    Ok(Applied { text: Some(document.text), file: current.file.clone(), folder, vms: config.vms })
}

/// The copy.
pub(super) fn copy(state: &Path) -> PathBuf {
    state.join("applied.yaml")
}

/// Whole, or as it was before.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("Writing {}", path.display()))
}
