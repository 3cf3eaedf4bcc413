//! `throughway run` and `throughway recover`: a guest from the file to its end, and the host as it was after it.

use std::path::Path;

use anyhow::Context;
use clap::Args;
use vfio::Sysfs;
use vmm::{Machine, Outcome};

use super::StateDir;
use super::check;
use super::exit::{Exit, complain};
use super::terminal::Terminal;
use crate::apply::{self, Applied, Ledger};
use crate::config::{Config, Diagnostic, Vm};
use crate::faults;
use crate::guest::{self, BootFiles};
use crate::host::{self, HostState};
use crate::plan::{Refusal, plan};

#[derive(Args)]
pub(super) struct Arguments {
    /// The appliance file.
    file: String,
    /// The guest's name in it.
    #[arg(long)]
    vm: String,
    #[command(flatten)]
    state: StateDir,
}

/// Why a guest did not start, or did not end by itself.
enum Failure {
    /// The file, or what it asks of this host.
    Input(Vec<Diagnostic>),
    /// The same, where it is not about a line.
    Refused(anyhow::Error),
    /// The host, or us.
    Fault(anyhow::Error),
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    match run(arguments) {
        Ok(outcome) => Exit::after(&arguments.vm, &outcome),
        Err(Failure::Input(problems)) => {
            check::complain(&problems);
            Exit::BadInput
        }
        Err(Failure::Refused(error)) => {
            complain(&error);
            Exit::BadInput
        }
        Err(Failure::Fault(error)) => {
            complain(&error);
            Exit::Fault
        }
    }
}

fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    let config = check::load(&arguments.file).map_err(Failure::Input)?;
    let name = arguments.vm.as_str();
    let vm = config.vms.get(name).ok_or_else(|| Failure::Refused(no_such_guest(&config, arguments)))?;
    let folder = Path::new(&arguments.file).parent().unwrap_or(Path::new("."));
    let files = BootFiles::open(vm, folder).map_err(Failure::Refused)?;
    enough_huge_pages(vm).map_err(Failure::Refused)?;
    if vm.nics.is_empty() && vm.pci.is_empty() {
        enough_memory(vm).map_err(Failure::Refused)?;
        return start(name, vm, files, &Applied { slots: Vec::new() });
    }
    let (sysfs, ledger) = (Sysfs::default(), Ledger::at(&arguments.state.state_dir));
    let applied = prepare(&config, arguments, vm, &sysfs, &ledger)?;
    let functions = applied.slots.iter().flat_map(|(_, functions)| functions.iter().copied()).collect();
    if let Err(error) = faults::watch(name, functions) {
        tracing::warn!("DMA that the IOMMU stops will be in the kernel's log only: {error}");
    }
    let outcome = start(name, vm, files, &applied);
    let restored = give_back(name, &sysfs, &ledger);
    match (outcome, restored) {
        (Ok(outcome), Ok(())) => Ok(outcome),
        (Err(failure), Ok(())) => Err(failure),
        (outcome, Err(error)) => {
            if let Err(Failure::Fault(first) | Failure::Refused(first)) = outcome {
                complain(&first);
            }
            Err(Failure::Fault(error))
        }
    }
}

/// Recovers what the dead left, plans, and applies, while nobody else does.
fn prepare(
    config: &Config,
    arguments: &Arguments,
    vm: &Vm,
    sysfs: &Sysfs,
    ledger: &Ledger,
) -> Result<Applied, Failure> {
    let _lock = ledger.lock().map_err(Failure::Fault)?;
    put_back_the_dead(sysfs, ledger).map_err(Failure::Fault)?;
    let name = arguments.vm.as_str();
    if let Some(claim) = ledger.claim(name).map_err(Failure::Fault)? {
        let error = anyhow::anyhow!("Guest `{name}` runs already, as process {}", claim.holder.pid);
        return Err(Failure::Refused(error));
    }
    let macs = config.devices.values().any(|device| device.matches.permanent_mac.is_some());
    let host = HostState::read(sysfs, ledger, macs).map_err(Failure::Fault)?;
    let plan = plan(config, &host, name, vm)
        .map_err(|refusals| Failure::Input(at_their_lines(&arguments.file, &refusals)))?;
    apply::apply(&plan, name, sysfs, ledger).map_err(Failure::Fault)
}

fn start(name: &str, vm: &Vm, files: BootFiles, applied: &Applied) -> Result<Outcome, Failure> {
    let mut machine = Machine::new(guest::spec(name, vm)).map_err(|error| Failure::Fault(error.into()))?;
    let terminal = Terminal::open(&mut machine).context("Setting the console up").map_err(Failure::Fault)?;
    let console = terminal.console().context("Setting the console up").map_err(Failure::Fault)?;
    let kvm = || Ok(machine.vfio_device()?);
    let resources = guest::resources(files, console, applied, kvm).map_err(Failure::Fault)?;
    let outcome = machine.run(resources);
    drop(terminal);
    outcome.map_err(|error| match error {
        vmm::machine::Error::Boot(_) => {
            let kernel = vm.boot.kernel.display();
            Failure::Refused(
                anyhow::Error::new(error).context(format!("Guest `{name}` with the kernel {kernel}")),
            )
        }
        error => Failure::Fault(error.into()),
    })
}

fn give_back(name: &str, sysfs: &Sysfs, ledger: &Ledger) -> anyhow::Result<()> {
    let _lock = ledger.lock()?;
    match ledger.claim(name)? {
        Some(claim) => apply::restore(&claim, sysfs, ledger),
        None => Ok(()),
    }
}

fn put_back_the_dead(sysfs: &Sysfs, ledger: &Ledger) -> anyhow::Result<usize> {
    let dead: Vec<_> = ledger.claims()?.into_iter().filter(|claim| !claim.holder.is_alive()).collect();
    for claim in &dead {
        tracing::warn!(
            "Guest `{}` (process {}) ended without giving its devices back; doing it now",
            claim.holder.vm,
            claim.holder.pid
        );
        apply::restore(claim, sysfs, ledger)?;
    }
    Ok(dead.len())
}

pub(super) fn recover(state: &Path) -> Exit {
    let (sysfs, ledger) = (Sysfs::default(), Ledger::at(state));
    let recovered = ledger.lock().and_then(|_lock| put_back_the_dead(&sysfs, &ledger));
    match recovered {
        Ok(0) => check::print("Nothing to put back."),
        Ok(count) => check::print(&format!("Devices of {count} guests were put back.")),
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

fn enough_huge_pages(vm: &Vm) -> anyhow::Result<()> {
    let memory = vm.memory.detail();
    let Some(page) = memory.hugepages else { return Ok(()) };
    let (wanted, free) =
        (memory.size.0.div_ceil(page.0.max(1)), host::huge_pages_free(Path::new("/sys"), page.0));
    if wanted > free {
        anyhow::bail!(
            "The guest wants {wanted} huge pages of {page}, and the host has {free} to give; set aside more by /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages or by hugepages= on the host's kernel command line",
            page.0 >> 10
        );
    }
    Ok(())
}

fn no_such_guest(config: &Config, arguments: &Arguments) -> anyhow::Error {
    let names: Vec<&str> = config.vms.keys().map(String::as_str).collect();
    let known =
        if names.is_empty() { "it defines none".to_owned() } else { format!("it has {}", names.join(", ")) };
    anyhow::anyhow!("{} has no guest `{}`; {known}", arguments.file, arguments.vm)
}

/// Refusals with the line of the file that asks for what is refused.
fn at_their_lines(file: &str, refusals: &[Refusal]) -> Vec<Diagnostic> {
    let document = crate::config::read(file);
    let place = |refusal: &Refusal| match &document {
        Ok(document) => document.at_path(&refusal.path, refusal.message.clone(), refusal.help.clone()),
        Err(_) => Diagnostic::of_file(file, refusal.message.clone(), refusal.help.clone()),
    };
    let mut problems: Vec<Diagnostic> = refusals.iter().map(place).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}
