//! `cargo lab fuzz`: the targets of `tests/fuzz`, for longer than the suites run them (docs/fuzzing.md).

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use crate::{command, fresh};

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// Names of targets; all where there are none.
    pub targets: Vec<String>,
    /// How long each.
    pub minutes: u64,
    /// Where to begin; the clock says where it is not given.
    pub seed: Option<u64>,
    /// How many seeds, whatever the time.
    pub count: Option<u64>,
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = fresh::cargo();
    command.args(["test", "--quiet", "--locked", "--package", "throughway-vmm", "--test", "fuzz"]);
    command.args(arguments);
    command
}

/// Runs them, side by side where several were named; true if all held.
///
/// # Errors
/// A target that does not exist, or that does not compile.
pub fn run(options: &Options) -> Result<bool> {
    let listed = command::text(&mut cargo(&["--", "--list"]), "Listing the fuzz targets")?;
    let known: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let mut tests = Vec::new();
    for target in &options.targets {
        let found = known.iter().find(|test| test.rsplit("::").next() == Some(target));
        match found {
            Some(test) => tests.push(*test),
            None => bail!("There is no fuzz target {target:?}; there are: {}", names(&known)),
        }
    }
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs().saturating_mul(1 << 24))
    });
    let mut command = cargo(&["--", "--nocapture", "--exact"]);
    command.args(&tests);
    command.env("FUZZ_SECONDS", options.minutes.saturating_mul(60).to_string());
    command.env("FUZZ_SEED", seed.to_string());
    if let Some(count) = options.count {
        command.env("FUZZ_COUNT", count.to_string());
    }
    Ok(command.status()?.success())
}

fn names(tests: &[&str]) -> String {
    tests.iter().filter_map(|test| test.rsplit("::").next()).collect::<Vec<_>>().join(", ")
}
