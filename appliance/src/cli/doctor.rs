//! `throughway doctor`.

use std::path::Path;

use clap::Args;

use super::StateDir;
use super::check::{load, print};
use super::exit::Exit;
use super::failure::{Failure, ended};
use crate::apply::{Host, Ledger};
use crate::config::Config;
use crate::doctor::{Facts, Health, Report, examine};
use crate::host::HostState;

#[derive(Args)]
pub(super) struct Arguments {
    /// An appliance file: what its guests want is looked at too.
    #[arg(short, long)]
    file: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    ended(look(arguments))
}

fn look(arguments: &Arguments) -> Result<Exit, Failure> {
    let config = match arguments.file.as_deref() {
        Some(file) => load(file).map_err(Failure::Input)?.1,
        None => Config::default(),
    };
    let place = Host::at(&arguments.state.state_dir);
    let mut host = HostState::read_all(&place, &Ledger::at(&arguments.state.state_dir))?;
    host.recognize(&place, &config)?;
    let report = examine(&Facts::read(Path::new("/")), &host, &config);
    if arguments.json {
        print(&serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print(&text(&report));
    }
    Ok(if report.health() == Health::Bad { Exit::BadInput } else { Exit::Success })
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let mark = match finding.health {
            Health::Good => "good",
            Health::Fair => "fair",
            Health::Bad => "BAD ",
        };
        lines.push(format!("{mark}  {}", finding.message));
        lines.extend(finding.help.iter().map(|help| format!("      {help}")));
    }
    if let Some(edit) = &report.edit {
        lines.push(format!("\nFor the next boot, {edit}"));
    }
    lines.join("\n")
}
