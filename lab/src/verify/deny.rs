//! cargo-deny, offline: licences, sources, banned and duplicate crates.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::suite::Outcome;
use super::{Context, cargo};
use crate::cache::Cache;
use crate::{command, fresh, progress};

/// The version that is installed when there is none.
const VERSION: &str = "0.20.2";

pub(super) fn run(context: &Context) -> Result<Outcome> {
    let program = installed()?;
    let mut check = Command::new(program);
    check.current_dir(fresh::workspace());
    if let Some(cargo) = std::env::var_os("CARGO") {
        check.env("CARGO", cargo);
    }
    check.args(["--locked", "--offline", "check", "licenses", "bans", "sources"]);
    cargo::verdict(context, "deny", &mut check)
}

/// cargo-deny as found on the path, else out of the cache folder, installed now when missing.
fn installed() -> Result<std::path::PathBuf> {
    let mut on_path = Command::new("cargo-deny");
    if command::text(on_path.arg("--version"), "Asking cargo-deny").is_ok() {
        return Ok("cargo-deny".into());
    }
    let cache = Cache::open()?;
    let folder = cache.folder("tools", &format!("cargo-deny-{VERSION}"), |scratch| {
        let build = scratch.join("build");
        let mut install = fresh::cargo();
        // Outside of the checkout: its own flags are not for this program.
        install.current_dir(scratch).env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET");
        install.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--no-default-features"]);
        // It runs for a second: one that compiles in a third of the time is the faster one.
        install.arg("--debug");
        install.arg("--root").arg(scratch).arg("--target-dir").arg(&build);
        let log = cache.path("cargo-deny.log");
        progress::step("Installing cargo-deny into the cache folder (a minute or two, once)", |step| {
            command::logged_ok(&mut install, &log, "Installing cargo-deny", |line| step.at(line.trim()))
        })?;
        std::fs::remove_dir_all(&build).with_context(|| format!("Removing {}", build.display()))
    })?;
    let program = folder.join("bin/cargo-deny");
    if !program.exists() {
        bail!("Installing cargo-deny left no {}", program.display());
    }
    Ok(program)
}
