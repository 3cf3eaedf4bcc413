//! `throughway vm list`.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;

use clap::Args;
use serde::Serialize;
use vmm::control::{Message, Request, RunState, Status};

use super::{duration, print, size};
use crate::apply::{self, History};
use crate::cli::devices::arranged;
use crate::cli::exit::{Exit, complain};
use crate::cli::failure::Failure;
use crate::cli::{RunDirOption, StateDir};
use crate::config::{self, Document};
use crate::control::{Client, ClientError, End, Notes, Place};

#[derive(Args)]
pub(super) struct Arguments {
    /// As JSON: all that is known of each.
    #[arg(long)]
    json: bool,
    /// Also guests that do not run: those of the file that was applied last, and those that ran since the box was started.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    running: RunDirOption,
    #[command(flatten)]
    state: StateDir,
}

/// A guest that runs.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    name: String,
    pid: u32,
    #[serde(flatten)]
    status: Status,
}

/// One that does not.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Off {
    name: String,
    /// `off`, or `starting` where its process is there and does not answer yet.
    state: &'static str,
    /// How it ended, where it ran since the box was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut entries = Vec::new();
    let mut silent = false;
    for place in arguments.running.folder().all()? {
        match look(&place) {
            Ok(entry) => entries.push(entry),
            // Not ours, gone in this moment, or long dead and cleaned up now.
            Err(
                ClientError::NotRunning(_)
                | ClientError::Between(_)
                | ClientError::Ended(_)
                | ClientError::NotAllowed { .. },
            ) => {}
            Err(error @ ClientError::Dead(..)) => tracing::warn!("{error}"),
            Err(error) => {
                complain(&error.into());
                silent = true;
            }
        }
    }
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let off = if arguments.all { all_others(arguments, &entries)? } else { Vec::new() };
    if arguments.json {
        let value = |entry| serde_json::to_value(entry).map_err(anyhow::Error::from);
        let running = entries.iter().map(value);
        let others = off.iter().map(|off| serde_json::to_value(off).map_err(anyhow::Error::from));
        let all: Vec<_> = running.chain(others).collect::<Result<_, _>>()?;
        print(&serde_json::to_string_pretty(&all).map_err(anyhow::Error::from)?);
    } else if entries.is_empty() && off.is_empty() {
        print(if arguments.all { "There is no guest." } else { "No guest runs." });
    } else {
        let rows = entries.iter().map(row).chain(off.iter().map(row_of_off)).collect();
        let width = if std::io::stdout().is_terminal() { None } else { Some(u16::MAX) };
        print(&arranged(["NAME", "STATE", "PID", "UPTIME", "VCPUS", "MEMORY", "FUNCTIONS"], rows, width));
    }
    Ok(if silent { Exit::Fault } else { Exit::Success })
}

fn look(place: &Place) -> Result<Entry, ClientError> {
    let folder = place.folder().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut client = Client::connect(place, &folder)?;
    let message = client.ask(&Request::State)?;
    let Message::State(status) = message else {
        return Err(ClientError::Refused(format!("Guest `{}` does not say how it is", client.vm())));
    };
    Ok(Entry { name: client.vm().to_owned(), pid: client.pid(), status })
}

fn row(entry: &Entry) -> [String; 7] {
    let Entry { name, pid, status } = entry;
    let functions = status.devices.iter().filter(|device| device.passthrough);
    let functions: Vec<&str> = functions.map(|device| device.name.as_str()).collect();
    [
        name.clone(),
        word(status.state).to_owned(),
        pid.to_string(),
        duration(status.uptime_ms),
        status.vcpus.to_string(),
        size(status.memory),
        if functions.is_empty() { "-".to_owned() } else { functions.join(" ") },
    ]
}

/// Guests that do not run, in the order of their names.
fn all_others(arguments: &Arguments, running: &[Entry]) -> anyhow::Result<Vec<Off>> {
    let folder = arguments.running.folder();
    let mut names: BTreeSet<String> = folder.noted()?.into_iter().collect();
    let records = History::at(&arguments.state.state_dir).records()?;
    if let Some(text) = apply::current(&records).and_then(|record| record.text.clone()) {
        let (applied, _) = config::load_all(&Document { name: "the file that was applied".into(), text });
        names.extend(applied.into_iter().flat_map(|config| config.vms.into_keys()));
    }
    for entry in running {
        names.remove(&entry.name);
    }
    Ok(names.into_iter().map(|name| of_notes(&folder.notes(&name))).collect())
}

fn of_notes(notes: &Notes) -> Off {
    if notes.is_held() {
        return Off { name: notes.vm().to_owned(), state: "starting", end: None, why: None };
    }
    let process = notes.start().and_then(|start| start.process);
    let ending = process.map(|process| {
        notes.end_of(process.pid).map_or((End::Killed, None), |ending| (ending.end, ending.why))
    });
    let (end, why) = ending.unzip();
    Off { name: notes.vm().to_owned(), state: "off", end, why: why.flatten() }
}

fn row_of_off(off: &Off) -> [String; 7] {
    let why = off.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let state = off.end.map_or_else(|| off.state.to_owned(), |end| format!("{}, {end}{why}", off.state));
    let [pid, uptime, vcpus, memory, functions] = ["-"; 5].map(str::to_owned);
    [off.name.clone(), state, pid, uptime, vcpus, memory, functions]
}

/// A state as it is shown.
pub(super) fn word(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Stopping => "stopping",
    }
}
