//! `throughway vm start`: `throughway run` in the background.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Guest, print};
use crate::apply::{self, History};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::{StateDir, check, run};
use crate::control::{Launch, LaunchError, Launched, Limits, usual_logs};

/// How often is looked whether it runs.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    guest: Guest,
    /// The appliance file; where it is not given, the one that was applied last.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Folder for the logs NAME.log and NAME.console.log; usually /var/log/throughway, and $XDG_STATE_HOME/throughway for
    /// users but root.
    #[arg(long, value_name = "FOLDER")]
    log_dir: Option<PathBuf>,
    /// Have firmware start from this device of the guest, such as an installer's disk, until the guest first resets.
    #[arg(long, value_name = "DEVICE")]
    boot_once: Option<String>,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn main(arguments: &Arguments, verbose: u8) -> Result<Exit, Failure> {
    let name = arguments.guest.vm.as_str();
    let file = file(arguments)?;
    let text = file.to_string_lossy().into_owned();
    let (_, config) = check::load(&text).map_err(Failure::Input)?;
    let there = || Failure::Refused(run::no_such_guest(&config, &text, name));
    let limits = Limits::of(config.vms.get(name).ok_or_else(there)?);
    let place = arguments.guest.running.folder().guest(name);
    if let Some(pid) = place.holder() {
        return Err(Failure::Refused(anyhow::anyhow!("Guest `{name}` runs already, as process {pid}")));
    }
    let logs = arguments.log_dir.clone().unwrap_or_else(usual_logs);
    let running = arguments.guest.running.folder();
    // Whoever keeps guests running keeps this one again.
    if let Err(error) = running.notes(name).set_stopped(false) {
        return Err(Failure::Refused(error));
    }
    let launch = Launch {
        vm: name,
        limits,
        file: &file,
        relative_to: None,
        logs: &logs,
        state: &arguments.state.state_dir,
        running: &running,
        boot_once: arguments.boot_once.as_deref(),
        verbose,
    };
    let Launched { mut child, mut log, begins, log_path } = launch.start().map_err(|error| match error {
        LaunchError::Fault(error) => Failure::Fault(error),
        LaunchError::Refused(error) => Failure::Refused(error),
        LaunchError::Held(_) => Failure::Refused(error.into()),
    })?;
    loop {
        if place.holder() == Some(child.id()) {
            print(&format!(
                "Guest `{name}` runs, as process {}; its log is {}.",
                child.id(),
                log_path.display()
            ));
            return Ok(Exit::Success);
        }
        if let Some(status) = child.try_wait().context("Waiting for the guest's process")? {
            return did_not_stay(name, status, &mut log, begins, &log_path);
        }
        std::thread::sleep(LOOK);
    }
}

/// The file of the command line, or that which was applied last.
fn file(arguments: &Arguments) -> Result<PathBuf, Failure> {
    if let Some(file) = &arguments.file {
        return Ok(file.clone());
    }
    let records = History::at(&arguments.state.state_dir).records()?;
    let applied = apply::current(&records).and_then(|record| record.file.clone());
    applied.ok_or_else(|| Failure::Refused(anyhow::anyhow!("No file is applied; say which by --file")))
}

/// It has ended before it could be asked anything: says what it said, and ends as it did.
fn did_not_stay(
    name: &str,
    status: ExitStatus,
    log: &mut File,
    begins: u64,
    path: &Path,
) -> Result<Exit, Failure> {
    let mut said = String::new();
    log.seek(SeekFrom::Start(begins))
        .and_then(|_| log.take(1 << 20).read_to_string(&mut said))
        .context("Reading the guest's log")?;
    let error: Vec<&str> = said.lines().skip_while(|line| !is_error(line)).collect();
    let exit = Exit::from_guest(status.code());
    match (exit, error.as_slice()) {
        (Some(exit), []) => {
            print(&format!("Guest `{name}` has ended already: {}.", exit.of_guest()));
            Ok(exit)
        }
        (Some(exit), lines) => {
            eprintln!("{}", lines.join("\n"));
            Ok(exit)
        }
        (None, _) => {
            let error = anyhow::anyhow!(
                "The process of guest `{name}` ended by {status}; {} may say why",
                path.display()
            );
            Err(Failure::Fault(error))
        }
    }
}

/// Whether a line begins what is wrong: by itself, or at a line of the file (`box.yaml:7:12: error: `). What is only logged
/// begins with the time.
fn is_error(line: &str) -> bool {
    let (before, rest) = line.split_once("error: ").unwrap_or((line, ""));
    let place = || {
        let mut parts = before.strip_suffix(": ").unwrap_or_default().rsplitn(3, ':');
        let mut number = || parts.next().is_some_and(|part| part.parse::<u32>().is_ok());
        number() && number()
    };
    !rest.is_empty() && (before.is_empty() || place())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_from_what_is_logged() {
        for line in
            ["error: No", "/a b/box.yaml:7:12: error: The bridge `br0` is not there", "C:1:1: error: x"]
        {
            assert!(is_error(line), "{line}");
        }
        for line in [
            "",
            "error: ",
            "    help: error: x",
            "2026-11-22T00:15:43.513696Z  WARN pci: error: x",
            "box.yaml:19:22: warning: Opening: error: x",
        ] {
            assert!(!is_error(line), "{line}");
        }
    }
}
