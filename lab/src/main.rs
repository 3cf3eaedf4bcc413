//! The command `lab`, started as `cargo lab`, `cargo demo` or `cargo verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use throughway_lab::kernel::Flavour;
use throughway_lab::session::{Lab, Options};
use throughway_lab::{bench, cache, demo, fresh, fuzz, kernel_build, machine, scenario, verify};

/// The emulated box: an IOMMU and SR-IOV cards without the hardware, and what is
/// tested in it. Needs Debian 12 or 13; what it fetches or builds stays in the
/// cache folder ($THROUGHWAY_CACHE, else ~/.cache/throughway).
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios in the box: all, or those named (by name or by path).
    Run {
        /// The kernel of the box and its guests.
        #[arg(long, value_enum, default_value = "debian")]
        kernel: Flavour,
        /// Take this throughway binary instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
        /// Show what the scenarios print, not their checks alone.
        #[arg(long, short)]
        verbose: bool,
        /// Scenarios: names out of tests/lab (`00-box` or `box`), or paths of files elsewhere.
        names: Vec<String>,
    },
    /// List the scenarios.
    List,
    /// Boot the box with its console on this terminal (Ctrl-A x leaves).
    Shell {
        /// The kernel of the box and its guests.
        #[arg(long, value_enum, default_value = "debian")]
        kernel: Flavour,
        /// Put this throughway binary in, instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
        /// Do not build or bring in throughway.
        #[arg(long, conflicts_with = "bin")]
        bare: bool,
        /// Reach a TCP port of the box at a port of this machine's loopback, as HERE:THERE.
        #[arg(long, value_name = "HERE:THERE", value_parser = forward)]
        forward: Option<(u16, u16)>,
    },
    /// Build the second kernel (iommufd) into the cache, unless it is there.
    Kernel,
    /// Show the main job end to end: a virtual function handed to a guest, and packets through it.
    Demo {
        /// End after the picture, with status 0 only if every step was seen to work.
        #[arg(long)]
        exit: bool,
        /// The port of this machine's loopback at which the admin interface is; a free one where it is not given.
        #[arg(long)]
        port: Option<u16>,
        /// The kernel of the box and its guest.
        #[arg(long, value_enum, default_value = "debian")]
        kernel: Flavour,
        /// Take this throughway binary instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
    },
    /// Measure Throughway beside other VMMs; docs/benchmarks.md has what came of it.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Feed devices and parsers what hostile guests and files would (docs/fuzzing.md).
    Fuzz {
        /// How long each target runs.
        #[arg(long, default_value = "10")]
        minutes: u64,
        /// The first seed; the clock says where it is not given.
        #[arg(long)]
        seed: Option<u64>,
        /// This many seeds: 1 shows again what was found.
        #[arg(long)]
        count: Option<u64>,
        /// Targets; all where none is named.
        targets: Vec<String>,
    },
    /// Build the Debian package, with manual pages and completions, and say where it is.
    Package,
    /// Run every check there is, and close with "N passed, N failed".
    ///
    /// A suite that cannot run here says why and is skipped; REQUIRE=kvm,lab (or
    /// REQUIRE=all) in the environment turns that into a failure.
    Verify {
        /// List the suites.
        #[arg(long)]
        list: bool,
        /// Run these suites only.
        #[arg(long, value_name = "A,B", value_delimiter = ',')]
        only: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// From exec to a small guest's first byte, and memory beside the guest's: Alioth and QEMU, on this machine's KVM.
    Start {
        /// How often each VMM starts the guest.
        #[arg(long, default_value = "20")]
        rounds: usize,
        /// With a network card on a bridge, a disk and a source of entropy; needs root, and a network namespace of its own.
        #[arg(long)]
        devices: bool,
        /// Take this throughway binary instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
    },
    /// Start, throughput, latency and memory with a virtual function: QEMU as the VMM, in the box.
    Vf {
        /// How often each VMM runs the guest.
        #[arg(long, default_value = "5")]
        rounds: u32,
        /// The kernel of the box and its guest.
        #[arg(long, value_enum, default_value = "debian")]
        kernel: Flavour,
        /// Take this throughway binary instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
    },
    /// Throughput of a VF, a bridge and a macvtap with a Debian that UEFI started: QEMU as the VMM, in the box.
    Uefi {
        /// How often each is measured.
        #[arg(long, default_value = "3")]
        rounds: u32,
        /// Take this throughway binary instead of building one.
        #[arg(long, value_name = "PATH")]
        bin: Option<PathBuf>,
    },
}

fn forward(text: &str) -> Result<(u16, u16), String> {
    let ports =
        text.split_once(':').and_then(|(here, there)| Some((here.parse().ok()?, there.parse().ok()?)));
    ports.ok_or_else(|| "two port numbers with a colon between are wanted, such as 8443:8443".to_owned())
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Run { kernel, bin, verbose, names } => {
            scenarios(kernel, Options { binary: bin, verbose }, &names)
        }
        Command::List => list(),
        Command::Shell { kernel, bin, bare, forward } => shell(kernel, bin, bare, forward),
        Command::Kernel => {
            let built = kernel_build::build(&cache::Cache::open()?)?;
            anstream::println!("{}", built.vmlinux.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { exit, port, kernel, bin } => {
            let worked = demo::run(&demo::Options { kernel, binary: bin, exit, port })?;
            Ok(if worked { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Package => {
            anstream::println!("{}", throughway_lab::package::build()?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench { what: Bench::Start { rounds, devices, bin } } => {
            bench::start::run(&bench::start::Options { rounds, binary: bin, devices })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench { what: Bench::Vf { rounds, kernel, bin } } => {
            let went_well = bench::vf::run(&bench::vf::Options { kernel, rounds, binary: bin })?;
            Ok(if went_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Bench { what: Bench::Uefi { rounds, bin } } => {
            let options = bench::uefi::Options { kernel: Flavour::Debian, rounds, binary: bin };
            Ok(if bench::uefi::run(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Fuzz { minutes, seed, count, targets } => {
            let held = fuzz::run(&fuzz::Options { targets, minutes, seed, count })?;
            Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Verify { list: true, .. } => {
            for (name, what) in verify::list() {
                anstream::println!("{name:<14} {what}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { list: false, only } => {
            Ok(if verify::run(&only)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn scenarios(kernel: Flavour, options: Options, names: &[String]) -> Result<ExitCode> {
    let chosen = scenario::choose(&fresh::workspace().join("tests/lab"), names, kernel)?;
    let lab = Lab::prepare(kernel)?;
    let output = fresh::target_folder()?.join("lab").join(kernel.name());
    let outcomes = lab.run(chosen, &options, &output)?;
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for outcome in &outcomes {
        let (held, not) = outcome.counts();
        passed = passed.saturating_add(held);
        failed = failed.saturating_add(not);
    }
    anstream::println!("logs in {}", output.display());
    anstream::println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list() -> Result<ExitCode> {
    for scenario in scenario::all(&fresh::workspace().join("tests/lab"))? {
        let kernels: Vec<&str> = scenario.kernels.iter().map(|kernel| kernel.name()).collect();
        anstream::println!("{:<24} {}  [{}]", scenario.name, scenario.proves, kernels.join(" "));
    }
    Ok(ExitCode::SUCCESS)
}

fn shell(kernel: Flavour, bin: Option<PathBuf>, bare: bool, forward: Option<(u16, u16)>) -> Result<ExitCode> {
    let binary = match bin {
        Some(path) => Some(path),
        None if bare => None,
        None => Some(fresh::throughway()?),
    };
    let lab = Lab::prepare(kernel)?;
    let run = lab.folder(binary.as_deref())?;
    std::fs::write(run.path().join("share/shell"), "").context("Asking for a shell")?;
    let mut spec = lab.spec(&run);
    spec.interactive = true;
    spec.forward = forward;
    let status = machine::interactive(lab.sysroot(), &spec)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
