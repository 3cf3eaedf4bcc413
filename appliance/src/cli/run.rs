//! `throughway run` and `throughway recover`: a guest from the file to its end, and the host as it was after it.

mod beside;
mod hotplug;
mod inside;
mod keeper;
mod told;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::change::nobody_waits;
use super::check;
use super::exit::{Exit, complain, sentence};
use super::failure::{Failure, ended};
use super::{RunDirOption, StateDir};
use crate::apply::{self, Applied, History, Host, Ledger, Taps};
use crate::config::{Config, Document, Vm};
use crate::control::{End, Served};
use crate::faults;
use crate::guest::BootFiles;
use crate::host::{self, HostState};
use crate::jail::{Machine, User};
use crate::plan::{Plan, plan};
use beside::{on_networks_alone, settle_later, spec};
use hotplug::Devices;
pub(super) use inside::main as inside;
use keeper::{Keeper, Seen};
use told::{Ended, unchain};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The appliance file.
    file: String,
    /// The guest's name in it.
    #[arg(long)]
    vm: String,
    /// Have firmware start from this device of the guest, such as an installer's disk, until the guest first resets.
    #[arg(long, value_name = "DEVICE")]
    boot_once: Option<String>,
    /// Write what the guest says on its console to this file as well: 4 files of 4 MiB, this one and before it FILE.1 to
    /// FILE.3.
    #[arg(long, value_name = "FILE")]
    console_log: Option<PathBuf>,
    /// Without a terminal, in a session of its own.
    #[arg(long, hide = true)]
    detached: bool,
    /// Where relative paths of the file start, where that is not its folder.
    #[arg(long, hide = true, value_name = "FOLDER")]
    relative_to: Option<PathBuf>,
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    running: RunDirOption,
}

impl Arguments {
    /// Where relative paths of the file start.
    fn folder(&self) -> &Path {
        let own = || Path::new(&self.file).parent().unwrap_or(Path::new("."));
        self.relative_to.as_deref().unwrap_or_else(own)
    }
}

/// Runs a guest of the file in the process that was begun for its machine.
pub(super) fn main(arguments: &Arguments, machine: io::Result<Machine>, verbose: u8) -> Exit {
    let result = run(arguments, machine, verbose);
    if arguments.detached {
        note_the_end(arguments, &result);
    }
    ended(result.map(|seen| after(&arguments.vm, seen)))
}

/// For whoever keeps it running and is not the one who started it.
fn note_the_end(arguments: &Arguments, result: &Result<Seen, Failure>) {
    let (end, why) = match result {
        Ok(Seen::Ended(Ended::PowerOff)) => (End::PowerOff, None),
        Ok(Seen::Ended(Ended::Reset)) => (End::Reset, None),
        Ok(Seen::Ended(Ended::Stopped)) => (End::Stopped, None),
        Ok(Seen::Ended(Ended::Crash(what) | Ended::Trouble(what))) => (End::Crash, Some(what.clone())),
        Ok(Seen::Ended(Ended::DeviceError { device, what })) => {
            (End::DeviceError, Some(format!("{device}: {what}")))
        }
        Ok(Seen::Ended(Ended::Kernel(chain) | Ended::Firmware(chain) | Ended::Fault(chain))) => {
            (End::Fault, Some(chain.join(": ")))
        }
        Ok(Seen::Killed(what)) => (End::Killed, Some(what.clone())),
        Err(Failure::Input(problems)) => {
            (End::Refused, problems.first().map(|problem| problem.message.clone()))
        }
        Err(Failure::Refused(error)) => (End::Refused, Some(format!("{error:#}"))),
        Err(Failure::Fault(error)) => (End::Fault, Some(format!("{error:#}"))),
    };
    // A crash has registers after its first line.
    let why = why.map(|why| why.lines().next().unwrap_or_default().to_owned());
    if let Err(error) = arguments.running.folder().notes(&arguments.vm).ends(end, why) {
        tracing::debug!("{error:#}");
    }
}

/// The end of `run` after a guest, with what a person should know of it.
fn after(vm: &str, seen: Seen) -> Exit {
    let stopped = |what: &str, exit| {
        eprintln!("error: Guest `{vm}` {what}");
        exit
    };
    match seen {
        Seen::Ended(Ended::PowerOff) => Exit::Success,
        Seen::Ended(Ended::Reset) => Exit::GuestReset,
        Seen::Ended(Ended::Stopped) => Exit::Stopped,
        Seen::Ended(Ended::Crash(crash)) => stopped(&format!("crashed: {crash}"), Exit::GuestCrash),
        Seen::Ended(Ended::Trouble(what)) => stopped(&format!("was stopped: {what}"), Exit::GuestCrash),
        Seen::Ended(Ended::DeviceError { device, what }) => {
            stopped(&format!("was stopped: {device}: {what}"), Exit::DeviceError)
        }
        Seen::Ended(Ended::Kernel(chain) | Ended::Firmware(chain) | Ended::Fault(chain)) => {
            complain(&unchain(chain));
            Exit::Fault
        }
        Seen::Killed(what) => stopped(&format!("is gone: {what}"), Exit::Fault),
    }
}

fn run(arguments: &Arguments, machine: io::Result<Machine>, verbose: u8) -> Result<Seen, Failure> {
    let (document, config) = check::load(&arguments.file).map_err(Failure::Input)?;
    if arguments.detached {
        // A process that leads its group cannot; then it has a session already.
        let _ = rustix::process::setsid();
        super::early::say_who();
    }
    let name = arguments.vm.as_str();
    let vm = config
        .vms
        .get(name)
        .ok_or_else(|| Failure::Refused(no_such_guest(&config, &arguments.file, name)))?;
    let place = arguments.running.folder().guest(name);
    if let Some(pid) = place.holder() {
        let error = anyhow::anyhow!("Guest `{name}` runs already, as process {pid}");
        return Err(Failure::Refused(error));
    }
    // Held until all is given back.
    let served = Served::default();
    let folder = arguments.folder();
    let mut files = BootFiles::open(name, vm, folder, &arguments.state.state_dir).map_err(|refusals| {
        let at_its_line = |(path, error): &(Vec<String>, _)| document.at_path(path, sentence(error), None);
        Failure::Input(refusals.iter().map(at_its_line).collect())
    })?;
    if let Some(device) = &arguments.boot_once {
        let chosen = files.boot_once(vm, device);
        chosen.with_context(|| format!("--boot-once {device}")).map_err(Failure::Refused)?;
    }
    enough_huge_pages(vm).map_err(Failure::Refused)?;
    processors_are_there(name, vm).map_err(Failure::Refused)?;
    host::node_has_room(Path::new("/sys"), name, &vm.memory.detail()).map_err(Failure::Refused)?;
    let at_its_key = |disk: usize, error: anyhow::Error| {
        let key = vm.disks.keys().nth(disk).cloned().unwrap_or_default();
        let path = ["vms", name, "disks", &key, "path"].map(str::to_owned);
        document.at_path(&path, sentence(&error), None)
    };
    let machine = machine.context("Beginning the guest's process").map_err(Failure::Fault)?;
    apply::keeps(machine.pid());
    let user = rustix::process::geteuid().is_root().then(|| User::of(name)).transpose();
    let user = user.context("Finding a user for the guest's process").map_err(Failure::Fault)?;
    let (alone, no_devices) = (on_networks_alone(vm), vm.nics.is_empty() && vm.pci.is_empty());
    if no_devices {
        enough_memory(vm).map_err(Failure::Refused)?;
    }
    let mut keeper = Keeper::new(arguments, machine, vm, (place, &served));
    let early = alone.then(|| spec(name, vm, &Applied::default()));
    let problems = keeper.prepare(files, early, user, verbose).map_err(Failure::Fault)?;
    if !problems.is_empty() {
        let told = problems.into_iter().map(|(disk, why)| at_its_key(disk, unchain(why)));
        return Err(Failure::Input(told.collect()));
    }
    let (host, ledger) = (Host::at(&arguments.state.state_dir), Ledger::at(&arguments.state.state_dir));
    if no_devices {
        let outcome = start(keeper, arguments, vm, &Applied::default(), &host.taps, || {});
        // What it was given while it ran. A guest without devices is a user's as well, who may not lock the ledger.
        let claimed = ledger.claim(name).is_ok_and(|claim| claim.is_some());
        return both(outcome, if claimed { give_back(name, &host, &ledger) } else { Ok(()) });
    }
    let applied = prepare(&document, &config, arguments, vm, &host, &ledger)?;
    let functions: Vec<_> =
        applied.slots.iter().flat_map(|(_, functions)| functions.iter().copied()).collect();
    if !applied.slots.is_empty()
        && let Err(error) = faults::watch(name, functions)
    {
        tracing::warn!("DMA that the IOMMU stops will be in the kernel's log only: {error}");
    }
    let settle = || {
        if alone {
            settle_later(&ledger, name);
        }
    };
    let outcome = start(keeper, arguments, vm, &applied, &host.taps, settle);
    both(outcome, give_back(name, &host, &ledger))
}

/// How a guest ended, or why not all is as it was before it.
fn both(outcome: Result<Seen, Failure>, restored: anyhow::Result<()>) -> Result<Seen, Failure> {
    let Err(error) = restored else { return outcome };
    if let Err(Failure::Fault(first) | Failure::Refused(first)) = outcome {
        complain(&first);
    }
    Err(Failure::Fault(error))
}

/// Recovers what the dead left, plans, and applies, while nobody else does.
fn prepare(
    document: &Document,
    config: &Config,
    arguments: &Arguments,
    vm: &Vm,
    place: &Host,
    ledger: &Ledger,
) -> Result<Applied, Failure> {
    let _lock = ledger.lock().map_err(Failure::Fault)?;
    ready_to_plan(&arguments.state.state_dir, place, ledger)?;
    let name = arguments.vm.as_str();
    if let Some(claim) = ledger.claim(name).map_err(Failure::Fault)? {
        let error = anyhow::anyhow!("Guest `{name}` runs already, as process {}", claim.holder.pid);
        return Err(Failure::Refused(error));
    }
    let plan = plan_for(document, config, name, vm, place, ledger)?;
    apply::apply(&plan, name, place, ledger).map_err(Failure::Fault)
}

/// Recovers what the dead left; what waits to be confirmed is in the way.
fn ready_to_plan(state: &Path, place: &Host, ledger: &Ledger) -> Result<(), Failure> {
    put_back_the_dead(place, ledger).map_err(Failure::Fault)?;
    // What a guest is given now would be taken from under it again.
    let history = History::at(state);
    apply::revert_the_dead(&history, place).map_err(Failure::Fault)?;
    nobody_waits(&history)
}

/// What is to be done to the host for what `vm` has.
fn plan_for(
    document: &Document,
    config: &Config,
    name: &str,
    vm: &Vm,
    place: &Host,
    ledger: &Ledger,
) -> Result<Plan, Failure> {
    if let Some(plan) = plan_of_cards(config, name, vm) {
        return Ok(plan);
    }
    let macs =
        !vm.nics.is_empty() || config.devices.values().any(|device| device.matches.permanent_mac.is_some());
    let mut host = HostState::read(&place.sysfs, ledger, macs).map_err(Failure::Fault)?;
    host.read_links().map_err(Failure::Fault)?;
    host.recognize(place, config).map_err(Failure::Fault)?;
    if !vm.pci.is_empty() {
        place.sightings.note(config, &host).map_err(Failure::Fault)?;
    }
    plan(config, &host, name, vm)
        .map_err(|refusals| Failure::Input(check::at_their_lines(document, &refusals)))
}

/// The same, where a look at the host's links is enough for it. What is refused is looked at with all of the host, so that all
/// is said.
fn plan_of_cards(config: &Config, name: &str, vm: &Vm) -> Option<Plan> {
    if !on_networks_alone(vm) {
        return None;
    }
    let host = HostState::read_for_cards(vm.memory.detail().size.0);
    let host = host.inspect_err(|error| tracing::debug!("{error:#}")).ok()??;
    plan(config, &host, name, vm).ok()
}

/// Hands over what was applied, and keeps the guest until its end. What can wait is done when the machine has all.
fn start(
    keeper: Keeper<'_>,
    arguments: &Arguments,
    vm: &Vm,
    applied: &Applied,
    taps: &Taps,
    then: impl FnOnce(),
) -> Result<Seen, Failure> {
    let name = arguments.vm.as_str();
    let (file, folder) = (&arguments.file, arguments.folder().to_owned());
    let devices = Devices::new(file, folder, name, arguments.state.state_dir.clone(), applied);
    let late = (!on_networks_alone(vm)).then(|| spec(name, vm, applied));
    let seen = keeper.run(late, applied, taps, devices, then).map_err(Failure::Fault)?;
    let refused = |chain: Vec<String>, with: String| {
        Failure::Refused(unchain(chain).context(format!("Guest `{name}` with the {with}")))
    };
    match (seen, &vm.boot.kernel, &vm.boot.firmware) {
        (Seen::Ended(Ended::Kernel(chain)), Some(kernel), _) => {
            Err(refused(chain, format!("kernel {}", kernel.display())))
        }
        (Seen::Ended(Ended::Firmware(chain)), _, Some(firmware)) => {
            Err(refused(chain, format!("firmware {}", firmware.files().code.display())))
        }
        (Seen::Ended(Ended::Kernel(chain) | Ended::Firmware(chain) | Ended::Fault(chain)), ..) => {
            Err(Failure::Fault(unchain(chain)))
        }
        (seen, ..) => Ok(seen),
    }
}

fn give_back(name: &str, host: &Host, ledger: &Ledger) -> anyhow::Result<()> {
    let _lock = ledger.lock()?;
    match ledger.claim(name)? {
        Some(claim) => apply::restore(&claim, host, ledger),
        None => Ok(()),
    }
}

pub(super) fn put_back_the_dead(host: &Host, ledger: &Ledger) -> anyhow::Result<usize> {
    let dead: Vec<_> = ledger.claims()?.into_iter().filter(|claim| !claim.holder.is_alive()).collect();
    for claim in &dead {
        let vm = &claim.holder.vm;
        if !claim.holder.is_of_this_boot() {
            tracing::info!(
                "Guest `{vm}` ended with the boot before, and its devices are as this one made them"
            );
            ledger.forget(vm)?;
            continue;
        }
        tracing::warn!(
            "Guest `{vm}` (process {}) ended without giving its devices back; doing it now",
            claim.holder.pid
        );
        claim.holder.wait_for_machine();
        apply::restore(claim, host, ledger)?;
    }
    Ok(dead.len())
}

pub(super) fn recover(state: &Path) -> Exit {
    let (host, ledger, history) = (Host::at(state), Ledger::at(state), History::at(state));
    let recovered = ledger
        .lock()
        .and_then(|_lock| Ok((put_back_the_dead(&host, &ledger)?, apply::revert_the_dead(&history, &host)?)));
    match recovered {
        Ok((0, 0)) => check::print("Nothing to put back."),
        Ok((guests, changes)) => {
            if guests > 0 {
                let plural = if guests == 1 { "" } else { "s" };
                check::print(&format!("The devices of {guests} guest{plural} were put back."));
            }
            if changes > 0 {
                let were = if changes == 1 { " was" } else { "s were" };
                check::print(&format!("{changes} unfinished change{were} put back."));
            }
        }
        Err(error) => {
            complain(&error);
            return Exit::Fault;
        }
    }
    Exit::Success
}

fn enough_memory(vm: &Vm) -> anyhow::Result<()> {
    let memory = vm.memory.detail();
    if memory.hugepages.is_some() || host::memory_is_free(memory.size.0) {
        return Ok(());
    }
    let available = host::memory_available(Path::new("/proc"));
    if memory.size.0 > available {
        anyhow::bail!(
            "The guest wants {} of memory, and the host has {} MiB to give; give the guest less, or stop something on the host",
            memory.size,
            available >> 20
        );
    }
    Ok(())
}

fn processors_are_there(name: &str, vm: &Vm) -> anyhow::Result<()> {
    let Some(wanted) = vm.cpus.cpuset() else { return Ok(()) };
    let online = host::processors_online(Path::new("/sys"));
    if let Some(absent) = wanted.0.difference(&online.0).next() {
        anyhow::bail!(
            "`vms.{name}.cpus.cpuset` has processor {absent}, and this host has {online}; name processors that are there"
        );
    }
    Ok(())
}

fn enough_huge_pages(vm: &Vm) -> anyhow::Result<()> {
    let memory = vm.memory.detail();
    let Some(page) = memory.hugepages else { return Ok(()) };
    let (wanted, free) =
        (memory.size.0.div_ceil(page.0.max(1)), host::huge_pages_free(Path::new("/sys"), page.0));
    if wanted > free {
        let pages = if wanted == 1 { "page" } else { "pages" };
        anyhow::bail!(
            "The guest wants {wanted} huge {pages} of {page}, and the host has {free} to give; set aside more by /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages or by hugepages= on the host's kernel command line",
            page.0 >> 10
        );
    }
    Ok(())
}

pub(super) fn no_such_guest(config: &Config, file: &str, vm: &str) -> anyhow::Error {
    let names: Vec<&str> = config.vms.keys().map(String::as_str).collect();
    let known =
        if names.is_empty() { "it defines none".to_owned() } else { format!("it has {}", names.join(", ")) };
    anyhow::anyhow!("{file} has no guest `{vm}`; {known}")
}
