//! `throughway vm list`.

use std::io::IsTerminal as _;

use clap::Args;
use serde::Serialize;
use vmm::control::{Message, Request, RunState, Status};

use super::{duration, print, size};
use crate::cli::RunDirOption;
use crate::cli::devices::arranged;
use crate::cli::exit::{Exit, complain};
use crate::cli::failure::Failure;
use crate::control::{Client, ClientError, Place};

#[derive(Args)]
pub(super) struct Arguments {
    /// As JSON: all that is known of each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    running: RunDirOption,
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

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut entries = Vec::new();
    let mut silent = false;
    for place in arguments.running.folder().all()? {
        match look(&place) {
            Ok(entry) => entries.push(entry),
            // Not ours, gone in this moment, or long dead and cleaned up now.
            Err(ClientError::NotRunning(_) | ClientError::Between(_) | ClientError::NotAllowed { .. }) => {}
            Err(error @ ClientError::Dead(..)) => tracing::warn!("{error}"),
            Err(error) => {
                complain(&error.into());
                silent = true;
            }
        }
    }
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    if arguments.json {
        print(&serde_json::to_string_pretty(&entries).map_err(anyhow::Error::from)?);
    } else if entries.is_empty() {
        print("No guest runs.");
    } else {
        let rows = entries.iter().map(row).collect();
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

/// A state as it is shown.
pub(super) fn word(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Stopping => "stopping",
    }
}
