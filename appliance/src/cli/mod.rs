//! The command line: arguments, and what becomes of them.

mod change;
mod check;
mod daemon;
mod devices;
mod doctor;
mod early;
mod exit;
mod explain;
mod failure;
mod image;
mod journal;
mod run;
mod terminal;
mod vm;
mod web;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use exit::Exit;

use crate::admin::Recent;
use crate::control::RunDir;

const EXAMPLES: &str = "\
Examples:
  throughway devices                      what PCI functions this host has, and who holds them
  throughway check box.yaml               everything that is wrong with a file, each with its place
  throughway run box.yaml --vm firewall   start a guest here; Ctrl-A x leaves
  throughway vm start firewall            start it in the background; `vm console firewall` shows its console
  throughway daemon                       keep the guests of the file that is applied running

Exit codes:
  0  it worked; for `run`: the guest powered off
  1  the file, or what it asks of this host, has a problem; nothing was touched
  2  the command line is wrong
  3  a fault of the host or of Throughway itself
  4  the guest reset, and its file says `on-reset: exit`
  5  the guest crashed its processor
  6  a device failed, and the file says `on-device-error: stop`
  7  the guest was stopped from outside (Ctrl-A x, SIGTERM)

Signals, for `run`:
  SIGTERM, SIGINT, SIGHUP  stop the guest
  SIGUSR1                  write what KVM has counted of each vCPU to the log (seen with -v)";

/// Hands PCIe functions and SR-IOV virtual functions to virtual machines, from one YAML file.
#[derive(Parser)]
#[command(name = "throughway", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more on standard error; twice for debugging. RUST_LOG does it by module.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// `throughway run` and nothing else: a start is not kept up by the other commands. What this does not take, [`Cli`] takes or
/// explains.
#[derive(Parser)]
#[command(name = "throughway", disable_help_flag = true, disable_help_subcommand = true)]
struct RunAlone {
    #[command(subcommand)]
    command: RunCommand,
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum RunCommand {
    Run(run::Arguments),
}

impl From<RunAlone> for Cli {
    fn from(RunAlone { command: RunCommand::Run(arguments), verbose }: RunAlone) -> Self {
        Self { command: Command::Run(arguments), verbose }
    }
}

// Deferred: the arguments of a command are made up only when it is the one that is called.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Say everything that is wrong with an appliance file, each problem with its line.
    Check(check::Arguments),
    /// List the host's PCI functions: what they are, who holds them, their IOMMU groups and virtual functions.
    Devices(devices::Arguments),
    /// Say all about one PCI function: what it is, who shares its IOMMU group and why, whether a guest can have it.
    Explain(explain::Arguments),
    /// Look at the box itself: processor, IOMMU, kernel command line, huge pages, modules. Ends with 1 when something will not work.
    Doctor(doctor::Arguments),
    /// Make, look at and change disk images.
    Image(image::Arguments),
    /// Run one guest of a file here, its console on this terminal.
    Run(run::Arguments),
    /// Start guests in the background, and control those that run: pause, reset, stop, console, statistics.
    Vm(vm::Arguments),
    /// Keep the box as it was applied, and its guests running: starts them, starts them again, stops them with the box.
    Daemon(daemon::Arguments),
    /// Say what has to be done so that the host is as a file says. Ends with 2 when there is something.
    Plan(change::PlanArguments),
    /// Make the host as a file says: all of it, or nothing.
    Apply(change::ApplyArguments),
    /// Say that you still come in, after a change of the way that you come by.
    Confirm(change::ConfirmArguments),
    /// Put the last change back.
    Rollback(change::RollbackArguments),
    /// List changes, or show one.
    History(change::HistoryArguments),
    /// Compare the host with the file that was applied last. Ends with 2 when they differ.
    Status(change::StatusArguments),
    /// Put back what guests that ended badly had taken: drivers, MAC addresses, VLANs.
    Recover(StateDir),
    /// Bring the host to what was applied last and holds, as after a restart of the box.
    Restore(change::RestoreArguments),
    /// Print the JSON schema of the appliance file.
    Schema,
    /// The admin interface: print a code to get in.
    Web(web::Arguments),
}

// Where claims are kept. No doc comment: it would be that of each command that has it.
#[derive(Args, Clone, Debug)]
struct StateDir {
    /// Folder for what must survive a crash: how devices were before guests took them.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/throughway")]
    state_dir: PathBuf,
}

// Where running guests are found; no doc comment, as above.
#[derive(Args, Clone, Debug)]
struct RunDirOption {
    /// Folder with the control sockets of running guests; usually /run/throughway, and $XDG_RUNTIME_DIR/throughway for users
    /// but root.
    #[arg(long, value_name = "FOLDER")]
    run_dir: Option<PathBuf>,
}

impl RunDirOption {
    fn folder(&self) -> RunDir {
        RunDir::at(&self.run_dir.clone().unwrap_or_else(RunDir::usual))
    }
}

/// The command line, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let begun = early::begin();
    if begun.is_none() {
        early::say_who();
    }
    let cli = begun.as_ref().and_then(|_| RunAlone::try_parse().ok()).map_or_else(Cli::parse, Cli::from);
    let daemon = matches!(cli.command, Command::Daemon(_));
    let service = daemon || matches!(&cli.command, Command::Web(arguments) if arguments.serves());
    // A daemon has nobody else to tell what it does.
    log_to_stderr(cli.verbose.saturating_add(u8::from(service)), service, daemon);
    let exit = match cli.command {
        Command::Check(arguments) => check::main(&arguments),
        Command::Devices(arguments) => devices::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Explain(arguments) => explain::main(&arguments),
        Command::Image(arguments) => image::main(&arguments),
        Command::Run(arguments) => {
            run::main(&arguments, begun.unwrap_or_else(early::begin_machine), cli.verbose)
        }
        Command::Vm(arguments) => vm::main(&arguments, cli.verbose),
        Command::Daemon(arguments) => daemon::main(&arguments),
        Command::Plan(arguments) => change::plan(&arguments),
        Command::Apply(arguments) => change::apply(&arguments),
        Command::Confirm(arguments) => change::confirm(&arguments),
        Command::Rollback(arguments) => change::rollback(&arguments),
        Command::History(arguments) => change::history(&arguments),
        Command::Status(arguments) => change::status(&arguments),
        Command::Recover(state) => run::recover(&state.state_dir),
        Command::Restore(arguments) => change::restore(&arguments),
        Command::Schema => check::schema(),
        Command::Web(arguments) => web::main(&arguments),
    };
    exit.into()
}

/// Warnings and worse unless more is asked for. What vfio-ioctls says while it asks what a device has is no warning of ours.
fn log_to_stderr(verbose: u8, service: bool, keep: bool) {
    let level = match verbose {
        0 => "warn,vfio_ioctls=error",
        1 => "info,vfio_ioctls=error",
        2 => "debug",
        _ => "trace",
    };
    // Not the `EnvFilter`: it takes spans and patterns too, and a megabyte of regular expressions into every process.
    let targets = |text: &str| text.parse::<Targets>().ok();
    let filter = std::env::var("RUST_LOG").ok().and_then(|text| targets(&text)).or_else(|| targets(level));
    let filter = filter.unwrap_or_default();
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    // The daemon's last lines can be asked for over the admin interface.
    let recent = keep.then(|| {
        tracing_subscriber::fmt::layer().with_writer(Recent).with_target(false).with_ansi(false).compact()
    });
    let registry = tracing_subscriber::registry().with(filter).with(recent);
    // The journal has the time itself, and takes how grave a line is from its first word (sd-daemon(3)).
    let set = if service && std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(log.with_ansi(false).event_format(journal::Line)).try_init()
    } else {
        registry.with(log.with_ansi(std::io::stderr().is_terminal()).compact()).try_init()
    };
    if let Err(error) = set {
        // A process that became two after its arguments were made out: it has the log of the one before.
        tracing::debug!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        RunAlone::command().debug_assert();
    }

    #[test]
    fn run_alone_takes_what_the_whole_takes() {
        let taken = |words: &[&str]| {
            let words = || ["throughway"].iter().chain(words);
            let alone = RunAlone::try_parse_from(words()).ok().map(Cli::from);
            let of = |cli: Cli| match cli.command {
                Command::Run(arguments) => Some((cli.verbose, format!("{arguments:?}"))),
                _ => None,
            };
            (alone.and_then(of), Cli::try_parse_from(words()).ok().and_then(of))
        };
        for words in [
            &["run", "a.yaml", "--vm", "b"][..],
            &["run", "--vm=b", "-vv", "a.yaml", "-v"],
            &["run", "a.yaml", "--vm", "b", "--boot-once", "cd", "--state-dir", "s", "--run-dir", "r"],
            &["run", "a.yaml", "--vm", "b", "--console-log", "l", "--detached"],
        ] {
            let (alone, whole) = taken(words);
            assert!(alone.is_some(), "{words:?}");
            assert_eq!(alone, whole);
        }
        for words in [&["run"][..], &["run", "--help"], &["-V"], &["run", "a", "b", "--vm", "c"], &["doctor"]]
        {
            assert_eq!(taken(words).0, None, "{words:?}");
        }
    }
}
