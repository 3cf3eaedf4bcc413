//! Changes of the host, each by a process of its own: `throughway restore`, `apply` and `recover`. One that was begun goes on
//! to its end, or puts everything back, whatever becomes of the daemon.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::sync::mpsc::UnboundedSender;

use super::watch::Happened;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// What was applied last and holds; seconds for what is late.
    Restore(u64),
    /// A file.
    Apply(&'a Path),
    /// What guests held that are gone.
    Recover,
}

/// Begins it; its end is said, but for that of `Recover`, and what it says is in the log.
pub(super) fn begin(change: Change<'_>, state: &Path, to: &UnboundedSender<Happened>) {
    let mut command = Command::new("/proc/self/exe");
    match change {
        Change::Restore(seconds) => command.args(["restore", "--wait", &seconds.to_string()]),
        Change::Apply(file) => command.arg("apply").arg(file),
        Change::Recover => command.arg("recover"),
    };
    let name = match change {
        Change::Restore(_) => "restore",
        Change::Apply(_) => "apply",
        Change::Recover => "recover",
    };
    command.arg("--state-dir").arg(state).env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let to = (change != Change::Recover).then(|| to.clone());
    tokio::task::spawn_blocking(move || {
        let code = run(name, command);
        if let Some(to) = to {
            let _ = to.send(Happened::Changed(code));
        }
    });
}

fn run(name: &'static str, mut command: Command) -> Option<i32> {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            tracing::error!("Starting `throughway {name}`: {error}");
            return None;
        }
    };
    let errors = child.stderr.take().map(|said| {
        std::thread::spawn(move || {
            for line in lines(said) {
                // A line of its log has its own time, and how grave it is, before what it says.
                let said = line.split_once(" WARN ").or_else(|| line.split_once(" ERROR "));
                let said = said.map_or(line.as_str(), |(_, said)| said);
                match said.strip_prefix("error: ") {
                    Some(error) => tracing::error!("{name}: {error}"),
                    None if said.contains(": error: ") => tracing::error!("{name}: {said}"),
                    None => tracing::warn!("{name}: {said}"),
                }
            }
        })
    });
    for line in child.stdout.take().into_iter().flat_map(lines) {
        tracing::info!("{name}: {line}");
    }
    let _ = errors.map(std::thread::JoinHandle::join);
    match child.wait() {
        Ok(status) => status.code(),
        Err(error) => {
            tracing::error!("Waiting for `throughway {name}`: {error}");
            None
        }
    }
}

fn lines(said: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(said).lines().map_while(Result::ok)
}
