//! The Debian package: what lintian says of it, and its life on a host of its own.

use std::process::Command;

use anyhow::Result;

use super::suite::Outcome;
use super::{Context, cargo};
use crate::{host, package};

pub(super) fn run(context: &Context) -> Result<Outcome> {
    let file = package::build()?;
    host::ensure(&[("lintian", "looks for what is wrong with a Debian package")])?;
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(&file);
    let Outcome::Ran(mut counts) = cargo::verdict(context, "lintian", &mut lintian)? else {
        return Ok(Outcome::Skipped("lintian did not run".to_owned()));
    };
    match cargo::package(context, &file)? {
        Outcome::Ran(more) => counts.add(more),
        skipped @ Outcome::Skipped(_) => return Ok(skipped),
    }
    Ok(Outcome::Ran(counts))
}
