//! `throughway history`.

use std::time::Duration;

use clap::Args;

use super::{Failure, Place, ended};
use crate::apply::{self, Record, State};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::Exit;

#[derive(Args)]
pub(in crate::cli) struct HistoryArguments {
    /// One change with all its steps and how things were before.
    change: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(in crate::cli) fn history(arguments: &HistoryArguments) -> Exit {
    ended(try_history(arguments))
}

fn try_history(arguments: &HistoryArguments) -> Result<Exit, Failure> {
    let records = Place::at(&arguments.state).history.records()?;
    if let Some(id) = arguments.change {
        let Some(at) = records.iter().position(|record| record.id == id) else {
            return Err(Failure::Refused(anyhow::anyhow!("There is no change {id}")));
        };
        let Some(record) = records.get(at) else { return Ok(Exit::Success) };
        if arguments.json {
            print(&serde_json::to_string_pretty(record).unwrap_or_default());
            return Ok(Exit::Success);
        }
        print(&line(record));
        for (at, step) in record.steps.iter().enumerate() {
            print(&format!("{:>3}. {step}", at + 1));
        }
        let before = records.get(..at).and_then(apply::current).and_then(|before| before.text.as_deref());
        print(&diff(before.unwrap_or_default(), record.text.as_deref().unwrap_or_default()));
    } else if arguments.json {
        print(&serde_json::to_string_pretty(&records).unwrap_or_default());
    } else if records.is_empty() {
        print("Nothing was changed yet.");
    } else {
        records.iter().for_each(|record| print(&line(record)));
    }
    Ok(Exit::Success)
}

fn line(record: &Record) -> String {
    let state = match &record.state {
        State::Applying { .. } => "is being done".to_owned(),
        State::Waiting { .. } => "waits to be confirmed".to_owned(),
        State::Committed => "holds".to_owned(),
        State::Reverted { why } => format!("put back: {why}"),
    };
    let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(record.started));
    format!(
        "{:>4}  {time}  user {}  {}  ({} steps)  {state}",
        record.id,
        record.by.clone().unwrap_or_else(|| record.user.to_string()),
        record.title,
        record.steps.len()
    )
}

/// Lines that differ between two files.
fn diff(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    diff.unified_diff().context_radius(3).header("before", "after").to_string()
}
