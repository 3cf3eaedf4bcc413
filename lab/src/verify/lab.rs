//! Scenarios in the emulated box: on each of the two kernels, and those of suites of their own.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::suite::{Counts, Outcome};
use super::{Context, tail};
use crate::kernel::Flavour;
use crate::scenario::Scenario;
use crate::session::{Lab, Options};
use crate::{apt, fresh, scenario};

pub(super) fn debian(context: &Context) -> Result<Outcome> {
    gating(context, Flavour::Debian, "lab")
}

pub(super) fn iommufd(context: &Context) -> Result<Outcome> {
    gating(context, Flavour::Iommufd, "lab-iommufd")
}

/// Guests that firmware starts.
pub(super) fn uefi(context: &Context) -> Result<Outcome> {
    of_suite(context, "uefi")
}

/// What takes long of a guest's devices.
pub(super) fn guest(context: &Context) -> Result<Outcome> {
    of_suite(context, "guest")
}

fn of_suite(context: &Context, name: &str) -> Result<Outcome> {
    let chosen = scenario::of_suite(&folder(), name, Flavour::Debian)?;
    if !rustix::process::geteuid().is_root() && chosen.iter().any(|scenario| scenario.image.is_some()) {
        return Ok(Outcome::Skipped("only root can install Debian on an image".to_owned()));
    }
    run(context, chosen, Flavour::Debian, name, name)
}

fn gating(context: &Context, flavour: Flavour, name: &str) -> Result<Outcome> {
    run(context, scenario::choose(&folder(), &[], flavour)?, flavour, name, flavour.name())
}

fn folder() -> PathBuf {
    fresh::workspace().join("tests/lab")
}

/// Runs the scenarios of the suite `name`, whose files go to `target/lab/<output>`.
fn run(
    context: &Context,
    chosen: Vec<Scenario>,
    flavour: Flavour,
    name: &str,
    output: &str,
) -> Result<Outcome> {
    if let Err(error) = apt::Release::detect() {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    let lab = Lab::prepare(flavour)?;
    let outcomes = lab.run(chosen, &Options::default(), &context.target.join("lab").join(output))?;
    let (mut counts, mut text) = (Counts::default(), String::new());
    for outcome in outcomes {
        let (passed, failed) = outcome.counts();
        counts.add(Counts { passed, failed, skipped: 0 });
        for why in &outcome.again {
            context.noted(format!("{name}: {}: {why}", outcome.name));
        }
        writeln!(text, "# {}: files in {}", outcome.name, outcome.folder.display())
            .context("Writing the log")?;
        for (number, check) in (1_usize..).zip(&outcome.checks) {
            let verdict = if check.passed { "ok" } else { "not ok" };
            let why = check.why.as_ref().map(|why| format!(" # {why}")).unwrap_or_default();
            let line = format!("{verdict} {number} - {}{why}", check.text);
            writeln!(text, "{line}").context("Writing the log")?;
            if !check.passed {
                context.failed(format!("{name}: {}: {line}", outcome.name));
            }
        }
        if failed > 0 {
            context.failed(tail(&outcome.folder.join("log"), 60));
        }
    }
    let log = context.log(name);
    std::fs::write(&log, text).with_context(|| format!("Writing {}", log.display()))?;
    Ok(Outcome::Ran(counts))
}
