//! `throughway plan`.

use clap::Args;

use super::{Failure, Place, ended};
use crate::cli::StateDir;
use crate::cli::check::print;
use crate::cli::exit::Exit;

#[derive(Args)]
pub(in crate::cli) struct PlanArguments {
    /// The appliance file.
    file: String,
    /// The steps as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(in crate::cli) fn plan(arguments: &PlanArguments) -> Exit {
    ended(try_plan(arguments))
}

fn try_plan(arguments: &PlanArguments) -> Result<Exit, Failure> {
    let place = Place::at(&arguments.state);
    let (document, config) = place.load(&arguments.file)?;
    let plan = place.plan(&document, &config)?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&plan).unwrap_or_default());
    } else {
        print(&plan.to_string());
    }
    Ok(if plan.is_empty() { Exit::Success } else { Exit::Pending })
}
