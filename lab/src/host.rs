//! Debian packages installed on this machine: only what the cache folder cannot
//! hold (compilers and their headers), named and explained before.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::{command, progress};

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let text = command::text(query.args(["-W", "-f", "${db:Status-Status}\n", package]), "Asking dpkg");
    text.is_ok_and(|text| text.lines().any(|line| line == "installed"))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = if is_root() { Command::new("apt-get") } else { Command::new("sudo") };
    if !is_root() {
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
    command
}

/// Installs those of `packages` (name, and why it is needed) that are missing,
/// with sudo when this user is not root.
pub fn ensure(packages: &[(&str, &str)]) -> Result<()> {
    let missing = || packages.iter().filter(|(name, _)| !installed(name)).collect::<Vec<_>>();
    if missing().is_empty() {
        return Ok(());
    }
    // Two at once would meet at dpkg's lock, where the second fails.
    let _lock = Cache::open()?.lock("host")?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    progress::note("These Debian packages are missing and will be installed with apt:");
    for (name, why) in &missing {
        progress::note(&format!("  {name}: {why}"));
    }
    if !is_root() {
        // Asks for the password now, where a person can see it, not behind a spinner.
        let asked = Command::new("sudo").arg("-v").status().context("Starting sudo")?;
        if !asked.success() {
            bail!("Installing packages needs root: sudo said no");
        }
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let install: Vec<&str> =
        ["install", "-y", "-q", "--no-install-recommends"].iter().chain(&names).copied().collect();
    progress::step(&format!("Installing {}", names.join(", ")), |_| {
        if command::output(&mut apt_get(&install), "Installing packages").is_ok() {
            return Ok(());
        }
        // The machine's package lists may be missing or stale.
        command::output(&mut apt_get(&["update", "-q"]), "Fetching package lists")?;
        command::output(&mut apt_get(&install), "Installing packages").map(drop)
    })
}
