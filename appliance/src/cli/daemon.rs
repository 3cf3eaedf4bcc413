//! `throughway daemon`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::check::print;
use super::exit::Exit;
use super::failure::{Failure, ended};
use super::{RunDirOption, StateDir};
use crate::control::{RunDir, usual_logs};
use crate::daemon::{self, Only, Options, Pace, daemon_of};

#[derive(Args)]
pub(super) struct Arguments {
    /// The appliance file that SIGHUP reads anew, and that is applied where nothing was applied yet; where it is not given,
    /// the one that was applied last.
    file: Option<PathBuf>,
    /// Tell the daemon that runs to stop all guests and to end, and wait until it has.
    #[arg(long, conflicts_with = "file")]
    stop: bool,
    /// How long to wait at the start for what is not there yet: a card whose driver is slow, a link.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(..=86400))]
    wait: u64,
    /// Folder for guests' logs NAME.log and NAME.console.log; usually /var/log/throughway, and $XDG_STATE_HOME/throughway for
    /// users but root.
    #[arg(long, value_name = "FOLDER")]
    log_dir: Option<PathBuf>,
    /// How long to wait before a guest that failed is started again, the first time; twice as long each further time, up to
    /// five minutes.
    #[arg(long, value_name = "MILLISECONDS", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..=300_000))]
    restart_after: u64,
    /// After how many failures in a row, none of which came later than ten minutes after a start, a guest stays off.
    #[arg(long, value_name = "NUMBER", default_value = "12")]
    restart_limit: u32,
    /// Do not serve the admin interface.
    #[arg(long)]
    no_web: bool,
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    running: RunDirOption,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    ended(if arguments.stop { stop(&arguments.state.state_dir) } else { run(arguments) })
}

fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    super::early::one_heap();
    let absolute = |path: &Path| std::path::absolute(path).context("Finding the current folder");
    let running = RunDir::at(&absolute(arguments.running.folder().path())?);
    let state = absolute(&arguments.state.state_dir)?;
    running.make_notes().map_err(Failure::Refused)?;
    let only = Only::take(&state, &running.notes_folder()).map_err(|error| Failure::Refused(error.into()))?;
    let pace = Pace {
        first: Duration::from_millis(arguments.restart_after),
        limit: arguments.restart_limit,
        ..Pace::default()
    };
    let options = Options {
        file: arguments.file.as_deref().map(absolute).transpose()?,
        state,
        running,
        logs: absolute(&arguments.log_dir.clone().unwrap_or_else(usual_logs))?,
        wait: arguments.wait,
        pace,
        web: !arguments.no_web,
    };
    daemon::run(options, &only)?;
    Ok(Exit::Success)
}

fn stop(state: &Path) -> Result<Exit, Failure> {
    let none =
        || Failure::Refused(anyhow::anyhow!("No daemon runs with the state folder {}", state.display()));
    let pid = daemon_of(state)?.ok_or_else(none)?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
    let process =
        pidfd_open(raw, PidfdFlags::empty()).with_context(|| format!("Looking for process {pid}"))?;
    // Still the one that holds the lock: its number was not given to another in between.
    if daemon_of(state)? != Some(pid) {
        return Err(none());
    }
    pidfd_send_signal(&process, Signal::TERM).with_context(|| format!("Telling process {pid} to end"))?;
    while let Err(error) = poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
        if error != rustix::io::Errno::INTR {
            return Err(Failure::Fault(anyhow::Error::new(error).context("Waiting for the daemon's end")));
        }
    }
    print("All guests are stopped, and the daemon has ended.");
    Ok(Exit::Success)
}
