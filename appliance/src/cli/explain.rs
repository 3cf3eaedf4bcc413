//! `throughway explain`.

use std::path::Path;

use clap::Args;
use vfio::PciAddress;
use vfio::inventory::Modules;

use super::check::{complain, load, print};
use super::{Exit, StateDir};
use crate::apply::{Host, Ledger};
use crate::config::{Config, GroupScope};
use crate::explain::{Facts, explain, isolation};
use crate::host::HostState;
use crate::plan;

#[derive(Args)]
pub(super) struct Arguments {
    /// A PCI address (`0000:01:00.0`, `01:00.0`), or with --file a name from its `devices`.
    device: String,
    /// The appliance file that has the name.
    #[arg(short, long)]
    file: Option<String>,
    /// All of it as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    let config = match arguments.file.as_deref().map(load) {
        None => Config::default(),
        Some(Ok((_, config))) => config,
        Some(Err(problems)) => {
            complain(&problems);
            return Exit::BadInput;
        }
    };
    let place = Host::at(&arguments.state.state_dir);
    let sysfs = &place.sysfs;
    let ledger = Ledger::at(&arguments.state.state_dir);
    let read = HostState::read(sysfs, &ledger, !config.devices.is_empty());
    let read = read.and_then(|mut host| {
        host.read_links()?;
        host.recognize(&place, &config)?;
        Ok(host)
    });
    let mut host = match read {
        Ok(host) => host,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Exit::Fault;
        }
    };
    let (address, scope) = match find(arguments, &config, &host) {
        Ok(found) => found,
        Err(message) => {
            eprintln!("error: {message}");
            return Exit::BadInput;
        }
    };
    host.inventory.look_closely(sysfs, &Modules::load(), Some(address));
    let facts = Facts::read(sysfs, Path::new("/proc"), address);
    let isolation = isolation(sysfs, &host.inventory, address);
    let Some(explanation) = explain(&config, &host, &isolation, &facts, address, scope) else {
        eprintln!(
            "error: {address}: there is no such PCI function\n  help: `throughway devices --all` lists those that there are"
        );
        return Exit::BadInput;
    };
    if arguments.json {
        print(&serde_json::to_string_pretty(&explanation).unwrap_or_default());
    } else {
        print(&explanation.to_string());
    }
    Exit::Success
}

fn find(
    arguments: &Arguments,
    config: &Config,
    host: &HostState,
) -> Result<(PciAddress, GroupScope), String> {
    let name = &arguments.device;
    if let Ok(address) = name.parse() {
        return Ok((address, GroupScope::Single));
    }
    let Some(device) = config.devices.get(name) else {
        return Err(match &arguments.file {
            Some(file) => format!("{file} has no device `{name}`, and it is no PCI address"),
            None => format!(
                "`{name}` is no PCI address (DDDD:BB:DD.F)\n  help: for a name, say which file has it with --file"
            ),
        });
    };
    let found = plan::find(config, host, name).map_err(|refusals| {
        let told = |refusal: &plan::Refusal| {
            let help = refusal.help.as_ref().map_or(String::new(), |help| format!("\n  help: {help}"));
            format!("devices.{name}: {}{help}", refusal.message)
        };
        refusals.iter().map(told).collect::<Vec<_>>().join("\n")
    })?;
    Ok((found, device.group))
}
