//! `throughway vm stop`.

use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use vmm::control::{Ended, Request};

use super::{Guest, print};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::control::ClientError;
use crate::daemon::daemon_of;

const GONE: &str = "Waiting for the guest's process to end";

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    guest: Guest,
    /// Pull the plug when the guest has not shut down after so long; 0 does it at once.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(..=86400))]
    timeout: u64,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let mut client = match arguments.guest.connect() {
        Err(error @ (ClientError::NotRunning(_) | ClientError::Dead(..))) => {
            return not_again(arguments, error);
        }
        connected => connected?,
    };
    // Before it ends: a daemon that keeps it running would start it again.
    let notes = arguments.guest.running.folder().notes(&arguments.guest.vm);
    let was_stopped = notes.is_stopped();
    let noted = notes.start().map_or(Ok(()), |_| notes.set_stopped(true));
    noted.map_err(Failure::Refused)?;
    match client.ask(&Request::Stop { timeout_ms: arguments.timeout.saturating_mul(1000) }) {
        Ok(_) => {}
        Err(ClientError::Ended(vm)) => {
            client.wait_for_process().context(GONE)?;
            print(&format!("Guest `{vm}` has ended by itself meanwhile."));
            return Ok(Exit::Success);
        }
        Err(error) => {
            if let Err(error) = notes.set_stopped(was_stopped) {
                tracing::warn!("{error:#}");
            }
            return Err(error.into());
        }
    }
    let how = client.wait_for_end()?;
    client.wait_for_process().context(GONE)?;
    let (vm, took) = (client.vm(), begun.elapsed());
    print(&match how {
        Some(Ended::PowerOff) => format!("Guest `{vm}` has shut down ({:.1} s).", took.as_secs_f64()),
        Some(Ended::Stopped) if arguments.timeout == 0 => format!("Guest `{vm}` was stopped."),
        Some(Ended::Stopped) if took.as_secs() >= arguments.timeout => {
            format!("Guest `{vm}` did not shut down within {} s and was stopped.", arguments.timeout)
        }
        Some(Ended::Stopped) => format!("Guest `{vm}` was stopped ({:.1} s).", took.as_secs_f64()),
        Some(Ended::Reset) => format!("Guest `{vm}` has reset, and ended with that."),
        Some(Ended::Crash) => format!("Guest `{vm}` crashed while it was to stop; its log says how."),
        Some(Ended::DeviceError) => format!("Guest `{vm}` ended by a device's error; its log says which."),
        Some(Ended::Trouble) => {
            format!("Guest `{vm}` panicked or hung while it was to stop; its log says which.")
        }
        Some(Ended::Fault) | None => {
            let error = anyhow::anyhow!("Guest `{vm}` ended without saying how; its log may");
            return Err(Failure::Fault(error));
        }
    });
    Ok(Exit::Success)
}

/// A guest that does not run now, but that a daemon may be about to start again.
fn not_again(arguments: &Arguments, error: ClientError) -> Result<Exit, Failure> {
    let (running, vm) = (arguments.guest.running.folder(), &arguments.guest.vm);
    let notes = running.notes(vm);
    let kept = daemon_of(&running.notes_folder()).map_err(Failure::Fault)?.is_some();
    if !kept || notes.start().is_none() {
        return Err(error.into());
    }
    notes.set_stopped(true).map_err(Failure::Refused)?;
    print(&format!("Guest `{vm}` does not run, and the daemon does not start it again."));
    Ok(Exit::Success)
}
