//! `throughway vm`: guests in the background, and control over those that run.

mod console;
mod device;
mod list;
mod start;
mod stats;
mod stop;

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use vmm::control::Request;
use vmm::disk::{self, Access, Chain, Format, Rules};

use super::RunDirOption;
use super::check::print;
use super::exit::Exit;
use super::failure::{Failure, ended};
use crate::control::{Client, ClientError};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the guests that run: state, process, how long, processors, memory, functions.
    List(list::Arguments),
    /// Start a guest in the background. Its console goes to a log; `vm console` attaches to it.
    Start(start::Arguments),
    /// Press a guest's power button and wait until it has ended and all is given back; pull its plug where it takes too long.
    Stop(stop::Arguments),
    /// Stop a guest's processors and virtio devices for a while. Functions of its own (VFIO) go on with what they were told to
    /// do: their DMA is not held up.
    Pause(Guest),
    /// Let a paused guest go on.
    Resume(Guest),
    /// Reset a guest, as its reset button would. One that is paused stays paused, at its start.
    Reset(Guest),
    /// Press a guest's power button, and wait for nothing.
    PowerButton(Guest),
    /// Attach to a guest's console.
    Console(console::Arguments),
    /// Show what has been counted: exits by cause, interrupts, packets, requests, pinned memory.
    Stats(stats::Arguments),
    /// Have firmware begin with a device at the guest's next start (a reset or reboot), once.
    BootOnce(BootOnce),
    /// Plug the cable of a guest's virtio network card in, or pull it.
    Link(Link),
    /// Put another image into a guest's CD drive, or take out what is in it. The file's is there again at the next start.
    ChangeMedium(ChangeMedium),
    /// Plug a device of the guest's file in while the guest runs: a function, a network card, a disk.
    Add(device::Add),
    /// Take a device out of a guest that runs, and give it back to the host. The guest is asked first.
    Remove(device::Remove),
}

/// A guest that runs.
#[derive(Args)]
struct Guest {
    /// The guest's name.
    #[arg(value_name = "NAME")]
    vm: String,
    #[command(flatten)]
    running: RunDirOption,
}

#[derive(Args)]
struct BootOnce {
    #[command(flatten)]
    guest: Guest,
    /// The device's name in the guest's file: a disk or a function.
    #[arg(required_unless_present = "clear")]
    device: Option<String>,
    /// Take an earlier wish back.
    #[arg(long, conflicts_with = "device")]
    clear: bool,
}

#[derive(Args)]
struct Link {
    #[command(flatten)]
    guest: Guest,
    /// The card's name in the guest's file.
    nic: String,
    /// Plugged in or pulled.
    state: LinkState,
}

#[derive(Args)]
struct ChangeMedium {
    #[command(flatten)]
    guest: Guest,
    /// The drive's name in the guest's file.
    disk: String,
    /// The image to put in, such as an ISO.
    #[arg(required_unless_present = "eject")]
    image: Option<PathBuf>,
    /// Leave the drive open and empty.
    #[arg(long, conflicts_with = "image")]
    eject: bool,
    /// Also where the guest has locked the drive: what it had mounted is gone under it.
    #[arg(long)]
    force: bool,
}

impl ChangeMedium {
    fn ask(&self) -> Result<Exit, Failure> {
        let path = self.image.as_deref().map(std::path::absolute).transpose().context("Resolving the image");
        let path = path.map_err(Failure::Refused)?;
        let mut client = self.guest.connect()?;
        // The guest's process opens nothing; what it is given has our rights, and our lock.
        let rules = Rules::new(Access::Read);
        let opened = path.as_deref().map(|path| Chain::open(path, Format::Raw, &rules)).transpose();
        let unchanged =
            |error: disk::Error| Failure::Refused(anyhow::anyhow!("{error}; the drive is as it was"));
        let opened = opened.map_err(unchanged)?;
        let file = opened.as_ref().and_then(|chain| chain.layers().first()).map(|layer| layer.file.as_fd());
        let request = Request::Medium { disk: self.disk.clone(), path, force: self.force };
        client.ask_with(&request, file)?;
        Ok(Exit::Success)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LinkState {
    /// The cable is plugged in.
    Up,
    /// The cable is pulled.
    Down,
}

impl Guest {
    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.running.folder().guest(&self.vm), &self.vm)
    }

    fn ask(&self, request: &Request) -> Result<Exit, Failure> {
        self.connect()?.ask(request)?;
        Ok(Exit::Success)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Io { .. } | ClientError::Ended(_) => Self::Fault(error.into()),
            _ => Self::Refused(error.into()),
        }
    }
}

pub(super) fn main(arguments: &Arguments, verbose: u8) -> Exit {
    ended(match &arguments.command {
        Command::List(arguments) => list::main(arguments),
        Command::Start(arguments) => start::main(arguments, verbose),
        Command::Stop(arguments) => stop::main(arguments),
        Command::Pause(guest) => guest.ask(&Request::Pause),
        Command::Resume(guest) => guest.ask(&Request::Resume),
        Command::Reset(guest) => guest.ask(&Request::Reset),
        Command::PowerButton(guest) => guest.ask(&Request::PowerButton),
        Command::Console(arguments) => console::main(arguments),
        Command::Stats(arguments) => stats::main(arguments),
        Command::BootOnce(arguments) => {
            arguments.guest.ask(&Request::BootOnce { device: arguments.device.clone() })
        }
        Command::ChangeMedium(arguments) => arguments.ask(),
        Command::Add(arguments) => device::add(arguments),
        Command::Remove(arguments) => device::remove(arguments),
        Command::Link(Link { guest, nic, state }) => {
            guest.ask(&Request::Link { nic: nic.clone(), up: *state == LinkState::Up })
        }
    })
}

/// `1.5GiB` of bytes, for a person.
fn size(bytes: u64) -> String {
    crate::config::Size(bytes).to_string()
}

/// `3d 4h`, `12m 5s`: the two largest units.
fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let parts =
        [("d", seconds / 86400), ("h", seconds / 3600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let shown = parts.iter().skip_while(|(_, value)| *value == 0).take(2);
    let text: Vec<String> = shown.map(|(unit, value)| format!("{value}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_their_two_largest_units() {
        for (milliseconds, text) in
            [(0, "0s"), (999, "0s"), (61_000, "1m 1s"), (3_600_000, "1h 0m"), (266_400_000, "3d 2h")]
        {
            assert_eq!(duration(milliseconds), text);
        }
    }
}
