//! `throughway vm start`: `throughway run` in the background.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Guest, print};
use crate::apply::{self, History, file_name};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::{StateDir, check, run};

/// How often is looked whether it runs.
const LOOK: Duration = Duration::from_millis(5);
/// A log larger than this is put aside before the next start.
const LARGE: u64 = 4 << 20;

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
    if !config.vms.contains_key(name) {
        return Err(Failure::Refused(run::no_such_guest(&config, &text, name)));
    }
    let running = arguments.guest.running.run_dir.clone().unwrap_or_else(crate::control::RunDir::usual);
    let place = arguments.guest.running.folder().guest(name);
    if let Some(pid) = place.holder() {
        return Err(Failure::Refused(anyhow::anyhow!("Guest `{name}` runs already, as process {pid}")));
    }
    let logs = arguments.log_dir.clone().unwrap_or_else(usual_logs);
    let (mut log, log_path) = open_log(&logs, name).map_err(Failure::Refused)?;
    let begins = log.seek(SeekFrom::End(0)).context("Finding the end of the log")?;
    let said = log.try_clone().context("Opening the guest's log")?;

    let absolute = |path: &Path| std::path::absolute(path).context("Finding the current folder");
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").arg(absolute(&file)?).args(["--vm", name, "--detached"]);
    command.arg("--console-log").arg(absolute(&logs)?.join(format!("{}.console.log", file_name(name))));
    command.arg("--state-dir").arg(absolute(&arguments.state.state_dir)?);
    command.arg("--run-dir").arg(absolute(&running)?);
    if let Some(device) = &arguments.boot_once {
        command.args(["--boot-once", device]);
    }
    // What the guest's process has been asked to do is in its log.
    command.args((0..=verbose.min(2)).map(|_| "-v"));
    let mut child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(said))
        .spawn()
        .context("Starting the guest's process")?;
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

fn usual_logs() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/log/throughway".into();
    }
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = of("XDG_STATE_HOME").or_else(|| Some(of("HOME")?.join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("throughway")
}

/// The log of the guest's process, and its path. A large one is put aside first.
fn open_log(folder: &Path, vm: &str) -> anyhow::Result<(File, PathBuf)> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(folder)
        .with_context(|| format!("Making {}", folder.display()))?;
    let path = folder.join(format!("{}.log", file_name(vm)));
    if fs::metadata(&path).is_ok_and(|about| about.len() > LARGE) {
        let aside = folder.join(format!("{}.log.1", file_name(vm)));
        fs::rename(&path, &aside).with_context(|| format!("Putting {} aside", path.display()))?;
    }
    let file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path);
    Ok((file.with_context(|| format!("Opening the log {}", path.display()))?, path))
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
    let error: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("error: ")).collect();
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
