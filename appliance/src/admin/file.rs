//! The file: read, checked, planned, and written where nobody else has written it meanwhile.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use web::wire::{Checked, Config as Told, Event, Planned, Step};
use web::{Actor, Problem};

use super::answer::Detail;
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
                exchange(&path, document.text.as_bytes(), &tag)?;
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
    Err(Problem::stale(format!("{}: {STALE}", path.display())))
}

fn diff(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    diff.unified_diff().context_radius(3).header("before", "after").to_string()
}

/// Puts a text where the file is that has this tag. It is looked at again once nobody finds it there any more: what somebody
/// wrote in the last moment is put back, and nothing is lost.
fn exchange(path: &Path, text: &[u8], seen: &str) -> Result<(), Problem> {
    let failed = |error: io::Error| cannot_write(&format!("Writing {}", path.display()), &error);
    let mut fresh = OsString::from(path);
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let about = fs::metadata(path).ok();
    let written = write(&fresh, text, about.as_ref());
    let flags = if about.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    let exchanged = written.and_then(|()| Ok(renameat_with(CWD, &fresh, CWD, path, flags)?));
    match exchanged {
        Ok(()) => {}
        Err(error) => {
            let _ = fs::remove_file(&fresh);
            // It is there by now, or gone.
            if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) {
                same(path, &on_disk(path)?, seen)?;
            }
            return Err(failed(error));
        }
    }
    if about.is_some() {
        let before = fs::read(&fresh).map_err(failed)?;
        if tag(&before) != seen {
            renameat_with(CWD, &fresh, CWD, path, RenameFlags::EXCHANGE)
                .map_err(|error| failed(error.into()))?;
            let _ = fs::remove_file(&fresh);
            return same(path, &before, seen);
        }
        fs::remove_file(&fresh).map_err(failed)?;
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Whole and on disk, with the mode and the owner of the one before.
fn write(path: &Path, text: &[u8], before: Option<&fs::Metadata>) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        fs::create_dir_all(folder)?;
    }
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    let mode = before.map_or(0o644, |before| before.mode() & 0o7777);
    if let Some(before) = before {
        std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Whether something is applied by this text already.
pub(super) fn holds(parts: &Parts) -> Result<Option<u64>, Problem> {
    let records = History::at(&parts.state).records().map_err(fault)?;
    Ok(apply::current(&records).map(|record| record.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_is_exchanged_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.yaml");
        exchange(&path, b"one", &tag(b"")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        exchange(&path, b"two", &tag(b"one")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_somebody_wrote_in_the_last_moment_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.yaml");
        fs::write(&path, "by hand").unwrap();
        let problem = exchange(&path, b"by api", &tag(b"seen")).unwrap_err();
        assert_eq!(problem.status, 412, "{problem}");
        assert_eq!(fs::read(&path).unwrap(), b"by hand");
        let problem = exchange(&folder.path().join("new.yaml"), b"x", &tag(b"")).map(|()| 0);
        assert!(problem.is_ok());
        let problem = exchange(&folder.path().join("new.yaml"), b"y", &tag(b"")).unwrap_err();
        assert_eq!(problem.status, 412, "there is one by now");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
