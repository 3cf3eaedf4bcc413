//! Changes of the host: each is a process of its own, as always (docs/decisions/0502). It says its number first, then what it does.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::sync::oneshot;
use web::wire::Event;
use web::{Actor, Problem};

use super::answer::Detail;
use super::{Admin, Wish, fault, file, told};
use crate::apply::{History, Record, State};

/// What comes before the number of a change in what its process says.
pub(crate) const BEGINS: &str = "Change ";
/// What comes behind it.
pub(crate) const BEHIND: &str = " begins.";
/// Lines of what went wrong that are kept.
const LINES: usize = 50;

/// Where the number goes, once.
type First = oneshot::Sender<Result<u64, Problem>>;

impl Admin {
    pub(super) async fn apply(&self, by: &Actor, tag: String, detail: &mut Detail) -> Result<u64, Problem> {
        let _alone = self.0.writes.lock().await;
        let (path, diff) = self.may_apply(by, &tag).await?;
        detail.0 = format!("{}\n{diff}", path.display());
        let mut command = self.command("apply");
        command.arg(&path).arg("--tag").arg(tag).arg("--by").arg(&by.name);
        let id = self.begin("apply", command).await?;
        detail.0 = format!("change {id} of {}", detail.0);
        Ok(id)
    }

    pub(super) async fn rollback(&self, by: &Actor, detail: &mut Detail) -> Result<u64, Problem> {
        let _alone = self.0.writes.lock().await;
        let mut command = self.command("rollback");
        command.arg("--by").arg(&by.name);
        let id = self.begin("rollback", command).await?;
        detail.0 = format!("change {id}");
        Ok(id)
    }

    /// Only who asked for a change says that he still comes in, wherever he logs in from; and root on the box.
    pub(super) async fn confirm(&self, by: &Actor, id: u64) -> Result<(), Problem> {
        let (by, mut command) = (by.clone(), self.command("confirm"));
        self.beside(move |parts| {
            let records = History::at(&parts.state).records().map_err(fault)?;
            let record = records.iter().find(|record| record.id == id);
            let record = record.ok_or_else(|| Problem::not_found(format!("There is no change {id}")))?;
            if !matches!(record.state, State::Waiting { .. }) {
                return Err(Problem::conflict(format!("Change {id} does not wait to be confirmed")));
            }
            if !may_confirm(record, &by) {
                let asker = told::asker(record);
                return Err(Problem::forbidden(format!(
                    "Change {id} was asked for by {asker}: only {asker}, or root on the box, says that he still comes in"
                )));
            }
            let output = command.arg(id.to_string()).output().map_err(fault)?;
            if output.status.success() {
                return Ok(());
            }
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(complaint(output.status.code(), &errors.lines().map(str::to_owned).collect::<Vec<_>>()))
        })
        .await
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(name).arg("--state-dir").arg(&self.0.parts.state).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Begins a change: its number, as soon as it has one.
    async fn begin(&self, name: &'static str, command: Command) -> Result<u64, Problem> {
        self.wish(Wish::Changing).await?;
        let (first, begun) = oneshot::channel();
        let admin = self.clone();
        tokio::spawn(async move {
            let other = admin.clone();
            let ran = admin.beside(move |_| Ok(other.run(name, command, first))).await;
            let code = ran.unwrap_or_else(|problem| {
                tracing::error!("{name}: {problem}");
                None
            });
            // Who decides reads what holds now, and starts what is new in it.
            let _ = admin.wish(Wish::Changed(code)).await;
        });
        begun
            .await
            .unwrap_or_else(|_| Err(Problem::fault("The change has ended without a word; see the log")))
    }

    /// Runs it to its end: its exit code.
    fn run(&self, name: &'static str, mut command: Command, first: First) -> Option<i32> {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = first.send(Err(Problem::fault(format!("Starting `throughway {name}`: {error}"))));
                return None;
            }
        };
        let errors = child.stderr.take().map(|said| {
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                for line in BufReader::new(said).lines().map_while(Result::ok) {
                    tracing::warn!("{name}: {line}");
                    if kept.len() < LINES {
                        kept.push(line);
                    }
                }
                kept
            })
        });
        let (mut first, mut change) = (Some(first), 0);
        if let Some(said) = child.stdout.take() {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                tracing::info!("{name}: {line}");
                if let Some(id) = number(&line) {
                    change = id;
                    let _ = first.take().map(|first| first.send(Ok(id)));
                    continue;
                }
                let _ = self.0.events.send(Event::Progress { change, line });
            }
        }
        let errors = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
        let code = child.wait().ok().and_then(|status| status.code());
        if let Some(first) = first {
            let nothing = || file::holds(&self.0.parts).map(Option::unwrap_or_default);
            let _ = first.send(if code == Some(0) { nothing() } else { Err(complaint(code, &errors)) });
        } else if code != Some(0) {
            for line in errors {
                let _ = self.0.events.send(Event::Progress { change, line });
            }
        }
        code
    }
}

/// It is he who asked for it, whatever address he comes from now; or root on the box.
fn may_confirm(record: &Record, by: &Actor) -> bool {
    let local = by.from == "local";
    // A number of the box's own users is a name on the box alone.
    local && by.name == "uid 0" || told::asker(record) == by.name && (record.by.is_some() || local)
}

/// The number of a change, in the line that says it.
fn number(line: &str) -> Option<u64> {
    line.strip_prefix(BEGINS)?.strip_suffix(BEHIND)?.parse().ok()
}

/// What a command that did not do what it was asked for has said.
fn complaint(code: Option<i32>, errors: &[String]) -> Problem {
    let text = errors.join("\n");
    let text = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
    match code {
        Some(1) if text.contains(file::STALE) => Problem::stale(text),
        Some(1) if text.is_empty() => Problem::conflict("It was refused; see the log"),
        Some(1) => Problem::conflict(text),
        _ if text.contains("No space left on device") => Problem::no_room(text),
        _ if text.is_empty() => Problem::fault("It failed without a word; see the log"),
        _ => Problem::fault(text),
    }
}

/// Whether a file is the one that somebody has seen; what to say otherwise.
pub(crate) fn is_tagged(path: &Path, text: &str, seen: Option<&str>) -> Result<(), String> {
    match seen {
        // It may have had a mark in front of it.
        Some(seen)
            if file::tag(text.as_bytes()) != seen
                && file::tag(format!("\u{feff}{text}").as_bytes()) != seen =>
        {
            Err(format!("{}: {}", path.display(), file::STALE))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_for_a_change_confirms_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = History::at(folder.path()).begin("a".into(), None, Vec::new()).unwrap();
        (record.user, record.by) = (1000, Some("ada".into()));
        let actor = |name: &str, from: &str| Actor {
            name: name.into(),
            role: web::Role::Admin,
            assign_devices: true,
            from: from.into(),
            token: None,
        };
        let may = |record: &Record, who: &[(&str, &str)]| {
            who.iter().map(|(name, from)| may_confirm(record, &actor(name, from))).collect::<Vec<_>>()
        };
        let who = [
            ("ada", "192.0.2.1"),
            ("ada", "192.0.2.2"),
            ("otto", "192.0.2.1"),
            ("uid 0", "local"),
            ("uid 0", "192.0.2.1"),
            ("uid 1000", "192.0.2.1"),
            ("uid 1000", "local"),
        ];
        assert_eq!(may(&record, &who), [true, true, false, true, false, false, false]);
        record.by = None;
        assert_eq!(may(&record, &who), [false, false, false, true, false, false, true]);
    }

    #[test]
    fn a_change_says_its_number() {
        assert_eq!(number("Change 7 begins."), Some(7));
        for other in ["Change 7 holds.", "Change  begins.", "Change -1 begins.", "br0: mtu 1500 -> 1400"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
