//! `throughway status`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::watch::watch;
use super::{Failure, Place, ended};
use crate::apply::{self, State};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::Exit;
use crate::config;
use crate::plan::{HostPlan, Step, whole};

#[derive(Args)]
pub(in crate::cli) struct StatusArguments {
    /// As JSON; with --watch an object a line.
    #[arg(long)]
    json: bool,
    /// Go on, and say each field that differs as it does, and when it is as it should be again, until a signal.
    #[arg(long)]
    watch: bool,
    /// With --watch: how often to look for what the kernel does not tell of, such as huge pages.
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    #[command(flatten)]
    state: StateDir,
}

/// A file that asks for nothing.
pub(super) const NO_FILE: &str = "version: 1\n";

/// What `status --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status<'a> {
    change: Option<u64>,
    in_sync: bool,
    differs: Vec<&'a Step>,
    waiting: Vec<u64>,
}

pub(in crate::cli) fn status(arguments: &StatusArguments) -> Exit {
    if arguments.watch {
        let every = Duration::from_secs(arguments.every);
        return ended(watch(&Place::at(&arguments.state), every, arguments.json));
    }
    ended(try_status(arguments))
}

/// Never "in sync" without having read the host.
fn try_status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
    let records = place.history.records()?;
    let waiting: Vec<u64> = records
        .iter()
        .filter(|record| matches!(record.state, State::Waiting { .. }))
        .map(|record| record.id)
        .collect();
    let current = apply::current(&records);
    let plan = match current {
        None => HostPlan::default(),
        Some(current) => {
            // A change that went back to before any file asks for nothing.
            let text = current.text.clone().unwrap_or_else(|| NO_FILE.to_owned());
            let document = config::Document { name: "the file that was applied".into(), text };
            let config = config::load(&document).map_err(Failure::Input)?;
            let host = place.read(&config)?;
            whole(&config, &host, &apply::originals(&records)).map_err(|refusals| {
                let texts: Vec<String> = refusals.iter().map(|refusal| refusal.message.clone()).collect();
                Failure::Fault(anyhow::anyhow!("The host cannot be compared: {}", texts.join("; ")))
            })?
        }
    };
    let differs: Vec<&Step> = plan.steps.iter().map(|planned| &planned.step).collect();
    let in_sync = differs.is_empty();
    if arguments.json {
        let status = Status { change: current.map(|current| current.id), in_sync, differs, waiting };
        print(&serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        match current {
            None => print("Nothing was applied yet."),
            Some(current) if in_sync => {
                print(&format!("The host is as change {} ({}) made it.", current.id, current.title))
            }
            Some(current) => {
                print(&format!(
                    "The host is no longer as change {} ({}) made it. To be done again:",
                    current.id, current.title
                ));
                differs.iter().for_each(|step| print(&format!("  {step}")));
            }
        }
        waiting
            .iter()
            .for_each(|id| print(&format!("Change {id} waits to be confirmed: throughway confirm {id}")));
    }
    Ok(if in_sync { Exit::Success } else { Exit::Pending })
}
