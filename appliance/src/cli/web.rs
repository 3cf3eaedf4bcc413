//! `throughway web`: the process that the daemon starts, and what its root may ask for.

use clap::{Args, Subcommand};
use rustix::fs::FileType;

use super::StateDir;
use super::exit::Exit;
use super::failure::{Failure, ended};
use crate::admin;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Asked>,
}

#[derive(Subcommand)]
enum Asked {
    /// Print a code that sets a password for the admin interface: of its first administrator, or of one who has lost his.
    /// It is good once and for an hour; any earlier one is good no more.
    Code(StateDir),
}

impl Arguments {
    /// It is the process that the daemon starts.
    pub(super) fn serves(&self) -> bool {
        self.command.is_none()
    }
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    match &arguments.command {
        None if !by_the_daemon() => ended(Err(Failure::Refused(anyhow::anyhow!(
            "The admin interface is started by `throughway daemon`; `throughway web code` prints a code to get in"
        )))),
        None => {
            super::early::one_heap();
            super::early::large_is_given_back();
            ended(admin::web().map(|()| Exit::Success).map_err(Into::into))
        }
        Some(Asked::Code(state)) => ended(code(state)),
    }
}

/// Its standard input is the daemon's socket.
fn by_the_daemon() -> bool {
    let input = rustix::fs::fstat(std::io::stdin());
    input.is_ok_and(|input| FileType::from_raw_mode(input.st_mode) == FileType::Socket)
}

fn code(state: &StateDir) -> Result<Exit, Failure> {
    let code = admin::new_code(&state.state_dir)?;
    anstream::println!("{code}");
    anstream::eprintln!(
        "Good once and for an hour, on the page /claim of the admin interface: it makes the user that is named there an \
         administrator, and sets his password."
    );
    Ok(Exit::Success)
}
