//! `throughway plan`.

use clap::Args;

use super::{Failure, Place, ended};
use crate::cli::StateDir;
use crate::cli::check::{self, print};
use crate::cli::exit::Exit;
use crate::plan::{HostPlan, Planned};

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
    let config = check::load(&arguments.file).map_err(Failure::Input)?;
    let plan = Place::at(&arguments.state).plan(&arguments.file, &config)?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&plan).unwrap_or_default());
    } else {
        print(&text(&plan));
    }
    Ok(if plan.is_empty() { Exit::Success } else { Exit::Pending })
}

/// A plan as a person reads it.
fn text(plan: &HostPlan) -> String {
    if plan.is_empty() {
        return "Nothing is to be done: the host is as the file says.".to_owned();
    }
    let step = |(at, planned): (usize, &Planned)| {
        let mut lines = vec![format!("{:>3}. {}", at + 1, planned.step)];
        lines.extend(planned.blast.iter().map(|blast| format!("       {blast}")));
        if planned.management {
            lines.push("       ! this is the way to this box".to_owned());
        }
        lines.join("\n")
    };
    let steps: Vec<String> = plan.steps.iter().enumerate().map(step).collect();
    let confirmation = match plan.needs_confirmation() {
        true => {
            "\nAfter it `apply` waits for `throughway confirm`, and puts everything back where nobody does."
        }
        false => "",
    };
    format!(
        "{}\n{} step{}.{confirmation}",
        steps.join("\n"),
        plan.steps.len(),
        if plan.steps.len() == 1 { "" } else { "s" }
    )
}
