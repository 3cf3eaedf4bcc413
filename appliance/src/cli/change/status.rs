//! `throughway status`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::watch::watch;
use super::{Failure, Place, ended};
use crate::apply::{self, Record, State};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::Exit;
use crate::config::{self, Config};
use crate::host::HostState;
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
    /// The change that the host is compared with: the last one that holds, or waits to be confirmed.
    change: Option<u64>,
    /// None where no file is applied: then there is nothing to compare the host with.
    in_sync: Option<bool>,
    differs: Vec<&'a Step>,
    waiting: Vec<u64>,
    /// Changes that are being done, and those whose process is gone.
    unfinished: Vec<u64>,
    /// Who else keeps links that the file names.
    owners: BTreeMap<&'a str, String>,
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
    let numbers = |wanted: fn(&State) -> bool| -> Vec<u64> {
        records.iter().filter(|record| wanted(&record.state)).map(|record| record.id).collect()
    };
    let waiting = numbers(|state| matches!(state, State::Waiting { holder, .. } if holder.is_alive()));
    let doing = numbers(|state| matches!(state, State::Applying { holder } if holder.is_alive()));
    let dead = numbers(|state| match state {
        State::Applying { holder } | State::Waiting { holder, .. } => !holder.is_alive(),
        State::Committed | State::Reverted { .. } => false,
    });
    let done = apply::as_done(&records);
    let current = apply::current(&done);
    let (config, host, plan) = match current {
        None => {
            let config = Config::default();
            let host = place.read(&config)?;
            (config, host, HostPlan::default())
        }
        Some(current) => {
            // A change that went back to before any file asks for nothing.
            let text = current.text.clone().unwrap_or_else(|| NO_FILE.to_owned());
            let document = config::Document { name: "the file that was applied".into(), text };
            let config = config::load(&document).map_err(Failure::Input)?;
            let host = place.read(&config)?;
            // What others keep is told, and is no reason not to compare.
            let unowned = HostState { owners: BTreeMap::new(), ..host.clone() };
            let plan = whole(&config, &unowned, &apply::originals(&done)).map_err(|refusals| {
                let texts: Vec<String> = refusals.iter().map(|refusal| refusal.message.clone()).collect();
                Failure::Fault(anyhow::anyhow!("The host cannot be compared: {}", texts.join("; ")))
            })?;
            (config, host, plan)
        }
    };
    let differs: Vec<&Step> = plan.steps.iter().map(|planned| &planned.step).collect();
    let in_sync =
        current.filter(|current| current.text.is_some() || !differs.is_empty()).map(|_| differs.is_empty());
    let named = |name: &&String| {
        let networks = &config.networks;
        networks.contains_key(*name) || networks.values().any(|section| section.ports.contains_key(*name))
    };
    let owners = host.owners.iter().filter(|(name, _)| named(name));
    let owners: BTreeMap<&str, String> =
        owners.map(|(name, owner)| (name.as_str(), owner.to_string())).collect();
    let unfinished = doing.iter().chain(&dead).copied().collect();
    let exit = if in_sync.unwrap_or(true) && dead.is_empty() { Exit::Success } else { Exit::Pending };
    if arguments.json {
        let change = current.map(|current| current.id);
        let status = Status { change, in_sync, differs, waiting, unfinished, owners };
        print(&serde_json::to_string_pretty(&status).unwrap_or_default());
        return Ok(exit);
    }
    match (current, in_sync) {
        (None, _) => print("Nothing was applied yet."),
        (Some(current), None) => {
            print(&format!("No file is applied since change {} ({}).", current.id, current.title));
        }
        (Some(current), Some(true)) => {
            print(&format!("The host is as change {} ({}) made it.", current.id, current.title));
        }
        (Some(current), Some(false)) => {
            let Record { id, title, .. } = current;
            print(&format!("The host is no longer as change {id} ({title}) made it. To be done again:"));
            differs.iter().for_each(|step| print(&format!("  {step}")));
        }
    }
    owners.iter().for_each(|(name, owner)| print(&format!("{name} is kept by {owner}.")));
    doing.iter().for_each(|id| print(&format!("Change {id} is being done.")));
    waiting
        .iter()
        .for_each(|id| print(&format!("Change {id} waits to be confirmed: throughway confirm {id}")));
    dead.iter().for_each(|id| {
        print(&format!("Change {id} was cut short: `throughway recover` puts back what it did."));
    });
    Ok(exit)
}
