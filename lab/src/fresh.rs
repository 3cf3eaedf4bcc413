//! The programs that go into the box, and where this checkout is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::progress;

/// The checkout's root folder.
#[must_use]
pub fn workspace() -> &'static Path {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent().unwrap_or(lab)
}

/// cargo, as it started us or as found on the path.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    // Set by the cargo that runs us; they would make the inner one rebuild.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// The folder cargo builds into.
pub fn target_folder() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let text = crate::command::text(&mut command, "Asking cargo for its target folder")?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("Reading cargo's metadata")?;
    let folder = metadata.get("target_directory").and_then(serde_json::Value::as_str);
    Ok(PathBuf::from(folder.context("cargo's metadata names no target_directory")?))
}

/// Builds `throughway` with optimizations and returns the binary.
pub fn throughway() -> Result<PathBuf> {
    build("throughway (release)", &["--release", "--bin", "throughway"])
}

/// The `throughway` that was given, or a fresh one.
pub fn given(binary: Option<&Path>) -> Result<PathBuf> {
    match binary {
        Some(path) => std::path::absolute(path).context("Resolving the binary"),
        None => throughway(),
    }
}

/// Builds the program that writes the manual pages.
pub fn manual() -> Result<PathBuf> {
    build("the manual's writer", &["--package", "throughway", "--example", "manual"])
}

/// Builds a program of the lab's own and returns it: an example of the crate `vfio`, or of another one as `netconfig/vf`; or a
/// suite of whole-program tests as `tests/netns`.
pub fn example(name: &str) -> Result<PathBuf> {
    let (folder, example) = name.split_once('/').unwrap_or(("vfio", name));
    if folder == "tests" {
        return build(&format!("the tests {example}"), &["--package", "throughway", "--test", example]);
    }
    let package = format!("throughway-{folder}");
    let mut arguments = vec!["--package", &package];
    if folder == "vfio" {
        arguments.extend(["--features", "testing"]);
    }
    arguments.extend(["--example", example]);
    build(&format!("the example {name}"), &arguments)
}

/// Has cargo build one program.
fn build(what: &str, arguments: &[&str]) -> Result<PathBuf> {
    progress::step(&format!("Building {what}"), |_| {
        let mut command = cargo();
        command.args(["build", "--message-format=json-render-diagnostics", "-q"]).args(arguments);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let done = command.output().context("Starting cargo")?;
        if !done.status.success() {
            bail!("Building {what} failed");
        }
        let text = String::from_utf8_lossy(&done.stdout);
        let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        // With tests come the programs that they test; what was asked for is named last.
        let asked = arguments.last().copied();
        let mut built = messages
            .filter(|message| message.pointer("/target/name").and_then(|name| name.as_str()) == asked)
            .filter_map(|message| Some(message.get("executable")?.as_str()?.to_owned()));
        let binary = built.next();
        binary.map(PathBuf::from).with_context(|| format!("cargo built no program for {what}"))
    })
}
