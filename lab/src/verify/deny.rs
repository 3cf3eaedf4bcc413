//! cargo-deny, offline: licences, sources, banned and duplicate crates.

use std::process::Command;

use anyhow::Result;

use super::suite::Outcome;
use super::{Context, cargo};
use crate::{fresh, tool};

/// The version that is installed when there is none.
const VERSION: &str = "0.20.2";

pub(super) fn run(context: &Context) -> Result<Outcome> {
    let program = tool::installed("cargo-deny", VERSION, &["--no-default-features"])?;
    let mut check = Command::new(program);
    check.current_dir(fresh::workspace());
    if let Some(cargo) = std::env::var_os("CARGO") {
        check.env("CARGO", cargo);
    }
    check.args(["--locked", "--offline", "check", "licenses", "bans", "sources"]);
    cargo::verdict(context, "deny", &mut check)
}
