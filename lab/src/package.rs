//! `cargo lab package`: the Debian package.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{command, fresh, progress, tool};

/// Of cargo-deb.
const VERSION: &str = "3.8.0";

/// Builds the program, its manual pages and completions, and the package, which is returned.
pub fn build() -> Result<PathBuf> {
    // Where Cargo.toml has it, wherever cargo builds into.
    let folder = fresh::workspace().join("target/package");
    fresh::throughway()?;
    let manual = fresh::manual()?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("Removing {}", folder.display()));
        }
        _ => {}
    }
    let mut write = std::process::Command::new(manual);
    command::output(write.arg(folder.join("manual")), "Writing the manual pages")?;
    let mut make = std::process::Command::new(tool::installed("cargo-deb", VERSION, &[])?);
    make.current_dir(fresh::workspace());
    if let Some(cargo) = std::env::var_os("CARGO") {
        make.env("CARGO", cargo);
    }
    make.args(["--no-build", "--no-strip", "--target", "x86_64-unknown-linux-gnu", "--output"]).arg(&folder);
    progress::step("Making the package", |_| command::output(&mut make, "Running cargo-deb"))?;
    let entries = fs::read_dir(&folder).with_context(|| format!("Reading {}", folder.display()))?;
    let mut packages = entries.flatten().map(|entry| entry.path());
    packages
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("cargo-deb left no package in {}", folder.display()))
}
