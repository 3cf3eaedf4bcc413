//! `throughway vm add` and `throughway vm remove`: devices that come and go while a guest runs.

use std::time::Duration;

use clap::Args;
use vmm::control::{Message, Request};

use super::{Guest, print};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;

#[derive(Args)]
pub(super) struct Add {
    #[command(flatten)]
    device: Device,
}

#[derive(Args)]
pub(super) struct Remove {
    #[command(flatten)]
    device: Device,
    /// Take it at once, without asking the guest: as if the card was torn out. What it was doing is lost.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Device {
    #[command(flatten)]
    guest: Guest,
    /// Its name in the guest's file; `nic lan`, `disk root` or `pci gpu` where several have one.
    device: String,
    /// How long the guest may take.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(..=86400))]
    timeout: u64,
}

impl Device {
    fn ask(&self, request: impl FnOnce(String, u64) -> Request) -> Result<Message, Failure> {
        let mut client = self.guest.connect()?;
        let request = request(self.device.clone(), self.timeout.saturating_mul(1000));
        Ok(client.ask_within(&request, Duration::from_secs(self.timeout))?)
    }
}

pub(super) fn add(Add { device }: &Add) -> Result<Exit, Failure> {
    let answer = device.ask(|device, timeout_ms| Request::Add { device, timeout_ms })?;
    let (name, vm) = (&device.device, &device.guest.vm);
    print(&match answer {
        Message::Plugged => format!(
            "`{name}` is in a slot of guest `{vm}`, which has not turned it on within {} s: it will find it there.",
            device.timeout
        ),
        _ => format!("Guest `{vm}` has `{name}`."),
    });
    Ok(Exit::Success)
}

pub(super) fn remove(Remove { device, force }: &Remove) -> Result<Exit, Failure> {
    device.ask(|device, timeout_ms| Request::Remove { device, force: *force, timeout_ms })?;
    print(&format!("`{}` is out of guest `{}`, and the host has it back.", device.device, device.guest.vm));
    Ok(Exit::Success)
}
