//! Starting a guest's process in the background: `throughway run`, on its own, with its logs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::RunDir;
use super::scope::{Limits, in_scope};
use crate::apply::{Holder, file_name};

/// A log larger than this is put aside before the next start.
const LARGE: u64 = 4 << 20;

/// What to start.
pub struct Launch<'a> {
    /// The guest.
    pub vm: &'a str,
    /// What it may take of the host.
    pub limits: Limits,
    /// The appliance file.
    pub file: &'a Path,
    /// Where relative paths of the file start, where that is not the file's folder.
    pub relative_to: Option<&'a Path>,
    /// Folder of the logs NAME.log and NAME.console.log.
    pub logs: &'a Path,
    /// The state folder.
    pub state: &'a Path,
    /// Where running guests are found.
    pub running: &'a RunDir,
    /// What firmware starts from, until the guest first resets.
    pub boot_once: Option<&'a str>,
    /// How often `-v` is said beyond the once that has the log tell what the process was asked to do.
    pub verbose: u8,
}

/// A guest's process.
pub struct Launched {
    /// It.
    pub child: Child,
    /// Its log, and where in it this process begins.
    pub log: File,
    /// Where in the log this process begins.
    pub begins: u64,
    /// The log's path.
    pub log_path: PathBuf,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Another one is there.
    #[error("Guest `{0}` is starting or ending right now, by another process; try again in a moment")]
    Held(String),
    /// A folder or a log.
    #[error("{0:#}")]
    Refused(anyhow::Error),
    /// The host.
    #[error("{0:#}")]
    Fault(anyhow::Error),
}

impl Launch<'_> {
    /// Starts it. From here on it is noted that it was.
    ///
    /// # Errors
    /// A process of this guest is there, or none can be made.
    pub fn start(&self) -> Result<Launched, LaunchError> {
        let notes = self.running.notes(self.vm);
        self.running.make_notes().map_err(LaunchError::Refused)?;
        let held = notes.hold().map_err(LaunchError::Refused)?;
        let held = held.ok_or_else(|| LaunchError::Held(self.vm.to_owned()))?;
        let (mut log, log_path) = open_log(self.logs, self.vm).map_err(LaunchError::Refused)?;
        notes.begin().map_err(LaunchError::Refused)?;
        let spawn = || -> anyhow::Result<(Child, u64)> {
            let begins = log.seek(SeekFrom::End(0)).context("Finding the end of the log")?;
            let said = log.try_clone().context("Opening the guest's log")?;
            let mut command = self.command()?;
            let child = command.stdin(held).stdout(Stdio::null()).stderr(Stdio::from(said)).spawn();
            Ok((child.context("Starting the guest's process")?, begins))
        };
        let (child, begins) = spawn().map_err(LaunchError::Fault)?;
        if let Err(error) = notes.began(Holder::of(self.vm, child.id())) {
            tracing::warn!("{error:#}");
        }
        Ok(Launched { child, log, begins, log_path })
    }

    fn command(&self) -> anyhow::Result<Command> {
        let absolute = |path: &Path| std::path::absolute(path).context("Finding the current folder");
        let scope = in_scope(self.vm, self.running, self.limits);
        let mut command = scope.unwrap_or_else(|| Command::new("/proc/self/exe"));
        command.arg("run").arg(absolute(self.file)?).args(["--vm", self.vm, "--detached"]);
        let log = format!("{}.console.log", file_name(self.vm));
        command.arg("--console-log").arg(absolute(self.logs)?.join(log));
        command.arg("--state-dir").arg(absolute(self.state)?);
        command.arg("--run-dir").arg(absolute(self.running.path())?);
        if let Some(folder) = self.relative_to {
            command.arg("--relative-to").arg(absolute(folder)?);
        }
        if let Some(device) = self.boot_once {
            command.args(["--boot-once", device]);
        }
        // What the guest's process has been asked to do is in its log.
        command.args((0..=self.verbose.min(2)).map(|_| "-v"));
        command.current_dir("/").env_remove("NOTIFY_SOCKET");
        Ok(command)
    }
}

/// The usual folder of logs of this user.
pub fn usual_logs() -> PathBuf {
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
