//! Programs out of cargo's registry and of Debian's packages, in the cache folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::{command, fresh, progress};

/// The program `name` as found on the path, else out of the cache folder, installed now in this `version` when missing.
pub fn installed(name: &str, version: &str, arguments: &[&str]) -> Result<PathBuf> {
    let mut on_path = Command::new(name);
    if command::text(on_path.arg("--version"), &format!("Asking {name}")).is_ok() {
        return Ok(name.into());
    }
    let cache = Cache::open()?;
    let folder = cache.folder("tools", &format!("{name}-{version}"), |scratch| {
        let build = scratch.join("build");
        let mut install = fresh::cargo();
        // Outside of the checkout: its own flags are not for this program.
        install.current_dir(scratch).env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET");
        install.args(["install", name, "--version", version, "--locked"]).args(arguments);
        // It runs for a second: one that compiles in a third of the time is the faster one.
        install.arg("--debug");
        install.arg("--root").arg(scratch).arg("--target-dir").arg(&build);
        let log = cache.path(&format!("{name}.log"));
        let what = format!("Installing {name} into the cache folder (a minute or two, once)");
        progress::step(&what, |step| {
            command::logged_ok(&mut install, &log, &format!("Installing {name}"), |line| step.at(line.trim()))
        })?;
        std::fs::remove_dir_all(&build).with_context(|| format!("Removing {}", build.display()))
    })?;
    let program = folder.join("bin").join(name);
    if !program.exists() {
        bail!("Installing {name} left no {}", program.display());
    }
    Ok(program)
}

/// The folder with the programs of a Debian package that needs the C library alone, out of the cache folder: nothing is installed,
/// and no service of it is started.
pub fn packaged(package: &str) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let apt = Apt::new(&cache)?;
    apt.update()?;
    let version = apt.candidate(package)?;
    let folder = cache.folder("tools", &format!("{package}-{version}"), |scratch| {
        let file = progress::step(&format!("Downloading {package} (into the cache folder, once)"), |_| {
            apt.download(package, scratch)
        })?;
        apt::unpack(&file, scratch)?;
        std::fs::remove_file(&file).with_context(|| format!("Removing {}", file.display()))
    })?;
    Ok(folder.join("usr/bin"))
}
