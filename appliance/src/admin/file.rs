//! The file: read, checked, planned, and written where nobody else has written it meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use web::wire::{Checked, Config as Told, Event, Planned, Step};
use web::{Actor, Problem};

use super::answer::Detail;
use super::exchange::{Put, put};
use super::guard::Guard;
use super::{Admin, Parts, cannot_write, fault, told};
use crate::apply::{self, History, Host, Ledger, originals};
use crate::config::{self, Config, Diagnostic, Document};
use crate::host::HostState;
use crate::plan::{HostPlan, whole};

/// The largest file, as `throughway check` has it.
const LARGEST: u64 = 1 << 20;
/// Where the file is where nobody has said.
const USUAL: &str = "/etc/throughway/appliance.yaml";

/// What is said of a file that is another one than somebody has seen.
pub(super) const STALE: &str = "the file is another one than you have seen: somebody has changed it meanwhile. Nothing was done; look at it again";

/// And where both were written at once, on a file system that keeps only one of them.
const OVER: &str = "somebody else has put another file there in the same moment, and one of the two is gone. Look at it again before you go on";

/// The tag of a file's bytes.
pub(crate) fn tag(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Parts {
    /// Where the file is: what links lead to, so that a link stays one.
    pub(super) fn path(&self) -> PathBuf {
        let given = self.file.clone().or_else(|| self.applied.borrow().file.clone());
        let path = given.unwrap_or_else(|| USUAL.into());
        fs::canonicalize(&path).unwrap_or(path)
    }

    /// A text, as if it were the file.
    pub(super) fn document(&self, text: String) -> Document {
        Document { name: self.path().display().to_string(), text }
    }
}

/// What is on disk; nothing where there is no file yet.
fn on_disk(path: &Path) -> Result<Vec<u8>, Problem> {
    let failed = |error: io::Error| Problem::fault(format!("Reading {}: {error}", path.display()));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
        Ok(about) if about.len() > LARGEST => {
            let why = format!("{} has {} bytes, and {LARGEST} are the most", path.display(), about.len());
            return Err(Problem::fault(why));
        }
        Ok(_) => {}
    }
    fs::read(path).map_err(failed)
}

fn told_of(parts: &Parts, path: &Path, bytes: Vec<u8>) -> Result<Told, Problem> {
    let tag = tag(&bytes);
    let not_text = |_| Problem::fault(format!("{} is not text (UTF-8)", path.display()));
    let text = String::from_utf8(bytes).map_err(not_text)?;
    let applied =
        parts.applied.borrow().text.as_deref() == Some(text.strip_prefix('\u{feff}').unwrap_or(&text));
    Ok(Told { path: path.display().to_string(), text, tag, applied })
}

/// What is wrong with a text by itself, and by who has written it.
fn problems(
    parts: &Parts,
    by: &Actor,
    document: &Document,
    before: &[Config],
) -> (Option<Config>, Vec<Diagnostic>) {
    if document.text.len() as u64 > LARGEST {
        let message = format!("It has {} bytes, and {LARGEST} are the most", document.text.len());
        return (None, vec![Diagnostic::of_file(&document.name, message, None)]);
    }
    let (config, mut problems) = config::load_all(document);
    if let Some(config) = &config {
        let guard = Guard::new(parts, before);
        let found = guard.problems(document, config, by.assign_devices);
        problems = config::together(problems, found);
    }
    (config, problems)
}

/// What root has written, or let through: the file that holds, and the one on disk.
fn before(parts: &Parts, bytes: &[u8]) -> Vec<Config> {
    let text = |text: String| config::load_all(&Document { name: String::new(), text }).0;
    let applied = parts.applied.borrow().text.clone();
    let on_disk = String::from_utf8(bytes.to_vec()).ok();
    applied.into_iter().chain(on_disk).filter_map(text).collect()
}

impl Admin {
    pub(super) async fn config(&self) -> Result<Told, Problem> {
        self.beside(|parts| {
            let path = parts.path();
            told_of(parts, &path, on_disk(&path)?)
        })
        .await
    }

    pub(super) async fn check(&self, by: &Actor, text: String) -> Result<Checked, Problem> {
        let by = by.clone();
        self.reading(move |parts| {
            let document = parts.document(text);
            let before = before(parts, &on_disk(&parts.path())?);
            let (_, problems) = problems(parts, &by, &document, &before);
            Ok(Checked { diagnostics: told::diagnostics(problems) })
        })
        .await
    }

    pub(super) async fn plan(&self, by: &Actor, text: String) -> Result<Planned, Problem> {
        let by = by.clone();
        self.reading(move |parts| {
            let document = parts.document(text);
            let before = before(parts, &on_disk(&parts.path())?);
            let config = sound(parts, &by, &document, &before)?;
            let plan = planned(parts, &document, &config)?;
            let step = |planned: &crate::plan::Planned| Step {
                text: planned.step.to_string(),
                blast_radius: planned.blast.clone(),
            };
            Ok(Planned {
                steps: plan.steps.iter().map(step).collect(),
                diagnostics: Vec::new(),
                wants_confirmation: plan.needs_confirmation(),
            })
        })
        .await
    }

    pub(super) async fn save(
        &self,
        by: &Actor,
        text: String,
        tag: String,
        detail: &mut Detail,
    ) -> Result<Told, Problem> {
        let _alone = self.0.writes.lock().await;
        let by = by.clone();
        let (saved, diff) = self
            .reading(move |parts| {
                let path = parts.path();
                let bytes = on_disk(&path)?;
                same(&path, &bytes, &tag)?;
                let document = parts.document(text);
                sound(parts, &by, &document, &before(parts, &bytes))?;
                let diff = diff(&String::from_utf8_lossy(&bytes), &document.text);
                let doing = || format!("Writing {}", path.display());
                match put(&path, document.text.as_bytes(), &tag) {
                    Ok(Put::Done) => {}
                    Ok(Put::Other) => return Err(stale(&path)),
                    Ok(Put::Over) => return Err(Problem::conflict(format!("{}: {OVER}", path.display()))),
                    Err(error) => return Err(cannot_write(&doing(), &error)),
                }
                Ok((told_of(parts, &path, document.text.into_bytes())?, diff))
            })
            .await?;
        detail.0 = format!("{}\n{diff}", saved.path);
        let _ = self.0.events.send(Event::Config(saved.tag.clone()));
        Ok(saved)
    }

    /// Whether the file is that of the tag, and this login may make the host as it says; where it is, and how it differs.
    pub(super) async fn may_apply(&self, by: &Actor, tag: &str) -> Result<(PathBuf, String), Problem> {
        let (by, tag) = (by.clone(), tag.to_owned());
        self.reading(move |parts| {
            let path = parts.path();
            let bytes = on_disk(&path)?;
            same(&path, &bytes, &tag)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let applied = parts.applied.borrow().text.clone().unwrap_or_default();
            let document = parts.document(text);
            let (config, problems) = config::load_all(&document);
            let config = config.filter(|_| problems.is_empty());
            let config = config
                .ok_or_else(|| Problem::refused("The file has problems", told::diagnostics(problems)))?;
            // What root has written on disk is his; but who may not give devices away may not have it done either.
            if !by.assign_devices {
                let before = before(parts, &[]);
                let found = Guard::new(parts, &before).devices(&document, &config);
                if !found.is_empty() {
                    let why = "This login may not give devices of the host to guests";
                    return Err(Problem { diagnostics: told::diagnostics(found), ..Problem::forbidden(why) });
                }
            }
            planned(parts, &document, &config)?;
            Ok((path, diff(&applied, &document.text)))
        })
        .await
    }
}

/// The file of a text without a problem.
fn sound(parts: &Parts, by: &Actor, document: &Document, before: &[Config]) -> Result<Config, Problem> {
    let (config, problems) = problems(parts, by, document, before);
    match config {
        Some(config) if !problems.iter().any(|one| one.severity == config::Severity::Error) => Ok(config),
        _ => Err(Problem::refused("The file has problems", told::diagnostics(problems))),
    }
}

/// What has to be done so that the host is as the file says, or why it cannot be.
fn planned(parts: &Parts, document: &Document, config: &Config) -> Result<HostPlan, Problem> {
    let place = Host::at(&parts.state);
    let records = History::at(&parts.state).records().map_err(fault)?;
    let mut host = HostState::read_all(&place, &Ledger::at(&parts.state)).map_err(fault)?;
    host.recognize(&place, config).map_err(fault)?;
    whole(config, &host, &originals(&records)).map_err(|refusals| {
        Problem::refused("The host cannot be as the file says", told::refusals(document, &refusals))
    })
}

fn same(path: &Path, bytes: &[u8], seen: &str) -> Result<(), Problem> {
    if tag(bytes) == seen {
        return Ok(());
    }
    Err(stale(path))
}

fn stale(path: &Path) -> Problem {
    Problem::stale(format!("{}: {STALE}", path.display()))
}

fn diff(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    diff.unified_diff().context_radius(3).header("before", "after").to_string()
}

/// Whether something is applied by this text already.
pub(super) fn holds(parts: &Parts) -> Result<Option<u64>, Problem> {
    let records = History::at(&parts.state).records().map_err(fault)?;
    Ok(apply::current(&records).map(|record| record.id))
}
