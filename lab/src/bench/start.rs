//! `cargo lab bench start`: from exec to the guest's first byte, and memory beside the guest's, on this machine's KVM.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::devices::{self, Devices};
use super::figures::{Series, shown, table};
use super::memory::overhead;
use super::peers::{self, Contestant};
use super::{guest, machine};
use crate::cache::Cache;
use crate::sysroot::Sysroot;
use crate::{fresh, progress};

/// The guest's memory.
const MIB: u64 = 256;
/// A guest that has said nothing for so long will not any more.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How long a guest sleeps before its VMM's memory is looked at.
const SETTLE: Duration = Duration::from_millis(150);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each VMM starts the guest.
    pub rounds: usize,
    /// The `throughway` binary, built when none.
    pub binary: Option<PathBuf>,
    /// Whether the guest has a network card on a bridge, a disk and a source of entropy.
    pub devices: bool,
}

/// What was measured of one VMM.
struct Measured {
    contestant: Contestant,
    milliseconds: Series,
    memory: Series,
    written: Series,
}

/// Measures, prints a table, and returns.
pub fn run(options: &Options) -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        bail!("Opening /dev/kvm: {error}; starts are measured on KVM");
    }
    if options.devices {
        devices::alone()?;
    }
    let binary = fresh::given(options.binary.as_deref())?;
    let cache = Cache::open()?;
    let sysroot = Sysroot::open(&cache)?;
    let folder = tempfile::tempdir().context("Making a scratch folder")?;
    let kernel = guest::build(folder.path())?;
    let file = folder.path().join("bench.yaml");
    let made = options.devices.then(|| Devices::make(folder.path())).transpose()?;
    let mut appliance = format!(
        "version: 1\nvms:\n  bench:\n    cpus: 1\n    memory: {MIB}MiB\n    boot: {{kernel: {}}}\n",
        kernel.display()
    );
    let (mut ours, mut alioth) =
        (Contestant::ours(binary, &file, "bench"), Contestant::alioth(&cache, &kernel, MIB)?);
    if let Some(devices) = &made {
        appliance.push_str(&devices.ours());
        ours = ours.with(devices.state());
        alioth = alioth.with(devices.alioth());
    }
    std::fs::write(&file, appliance).with_context(|| format!("Writing {}", file.display()))?;
    let copied = [ours, alioth].into_iter().map(|one| one.copied(folder.path()));
    let mut all: Vec<_> = copied.collect::<Result<_>>()?;
    let version = format!("QEMU {}", peers::qemu_version(&sysroot)?);
    for machine in ["microvm", "q35"] {
        let mut qemu = qemu(&sysroot, &kernel, machine)?;
        if let Some(devices) = &made {
            qemu = qemu.with(devices.qemu(machine));
        }
        qemu.name = qemu.name.replace("QEMU", &version);
        all.push(qemu);
    }
    let measured =
        progress::step(&format!("Starting each of {} VMMs {} times", all.len(), options.rounds), |step| {
            measure(all, options.rounds, step)
        })?;
    anstream::println!("{}\n\n{}", machine::line(), report(&measured));
    Ok(())
}

/// QEMU by KVM where that gets as far as the guest, else in software.
fn qemu(sysroot: &Sysroot, kernel: &std::path::Path, machine: &str) -> Result<Contestant> {
    let by_kvm = Contestant::qemu(sysroot, kernel, MIB, machine, "kvm");
    match once(&by_kvm) {
        Ok(_) => Ok(by_kvm),
        Err(error) => {
            progress::note(&format!(
                "QEMU does not get there by this KVM, so it runs in software: {error:#}"
            ));
            Ok(Contestant::qemu(sysroot, kernel, MIB, machine, "tcg"))
        }
    }
}

fn measure(all: Vec<Contestant>, rounds: usize, step: &progress::Step) -> Result<Vec<Measured>> {
    let new = |contestant| Measured {
        contestant,
        milliseconds: Series::default(),
        memory: Series::default(),
        written: Series::default(),
    };
    let mut measured: Vec<_> = all.into_iter().map(new).collect();
    for one in &measured {
        // Files into the page cache.
        once(&one.contestant)?;
    }
    for round in 0..rounds {
        step.at(&format!("round {} of {rounds}", round + 1));
        for index in turns(round, measured.len()) {
            let Some(one) = measured.get_mut(index) else { continue };
            let (took, memory) = once(&one.contestant)?;
            one.milliseconds.push(took.as_secs_f64() * 1e3);
            one.memory.push(kib(memory.all));
            one.written.push(kib(memory.written));
        }
    }
    Ok(measured)
}

/// Who comes when in a round. Each comes after each other one: who comes after QEMU finds the caches cold.
fn turns(round: usize, contestants: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contestants).collect();
    order.rotate_left((round / 2).checked_rem(contestants).unwrap_or(0));
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

fn kib(value: u64) -> f64 {
    u32::try_from(value).map_or(f64::MAX, f64::from)
}

/// A VMM under way; ended when dropped.
struct Running(Child);

impl Running {
    /// Asks it to end, so that it gives back what it has of the host; a moment later it is killed.
    fn end(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the guest once: how long until its byte came, and what its VMM then holds.
fn once(contestant: &Contestant) -> Result<(Duration, super::memory::Overhead)> {
    let name = &contestant.name;
    // Alioth wants a terminal to read from; so all have one.
    let (_terminal, input) = terminal().context("Making a terminal")?;
    let (program, arguments) = contestant.command.split_first().context("No command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = Running(command.spawn().with_context(|| format!("Starting {name}"))?);
    let mut output = child.0.stdout.take().context("No output")?;
    let mut byte = [0];
    let mut waited = [PollFd::new(&output, PollFlags::IN)];
    let ready = poll(&mut waited, Some(&PATIENCE)).context("Waiting for the guest")?;
    let read = if ready == 0 { Ok(0) } else { output.read(&mut byte) };
    let took = started.elapsed();
    if read.context("Reading what the guest says")? == 0 || byte != [guest::SAYS] {
        bail!("{name}: no word of its guest{}", last_words(&mut child));
    }
    std::thread::sleep(SETTLE);
    let memory = overhead(child.0.id(), MIB << 20)?;
    child.end();
    Ok((took, memory))
}

/// What a VMM that failed said last.
fn last_words(child: &mut Running) -> String {
    let _ = child.0.kill();
    let mut said = String::new();
    if let Some(mut errors) = child.0.stderr.take() {
        let _ = errors.read_to_string(&mut said);
    }
    said.lines().last().map(|line| format!(" ({line})")).unwrap_or_default()
}

/// Both ends of a new pseudo-terminal.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(ours.as_fd(), Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
    Ok((ours, theirs))
}

fn report(measured: &[Measured]) -> String {
    let Some(ours) = measured.first() else { return String::new() };
    let row = |what: &str, value: &dyn Fn(&Measured) -> String| {
        std::iter::once(what.to_owned()).chain(measured.iter().map(value)).collect::<Vec<_>>()
    };
    let ratio = |one: &Measured| {
        let least = ours.milliseconds.min().zip(one.milliseconds.min()).map(|(ours, theirs)| ours / theirs);
        let median = ours.milliseconds.over(&one.milliseconds).median();
        format!("{} / {}", shown(least, 2), shown(median, 2))
    };
    let size = |one: &Measured| {
        let length = std::fs::metadata(&one.contestant.program).map_or(0, |file| file.len() >> 10);
        shown(Some(kib(length) / 1024.0), 1)
    };
    table(&[
        row("", &|one| one.contestant.name.clone()),
        row("exec to the guest's first byte: min, ms", &|one| shown(one.milliseconds.min(), 2)),
        row("the same: median, ms", &|one| shown(one.milliseconds.median(), 2)),
        row("Throughway's time over theirs: min / median", &ratio),
        row("memory beside the guest's: median (most), KiB", &|one| {
            format!("{} ({})", shown(one.memory.median(), 0), shown(one.memory.max(), 0))
        }),
        row("of it written, KiB", &|one| shown(one.written.median(), 0)),
        row("the program, MiB", &size),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_always_follows_the_same_one() {
        let order: Vec<usize> = (0..8).flat_map(|round| turns(round, 4)).collect();
        for one in 0..4 {
            assert_eq!(order.iter().filter(|index| **index == one).count(), 8);
            let mut before: Vec<_> = order
                .windows(2)
                .filter(|pair| pair[1] == one && pair[0] != one)
                .map(|pair| pair[0])
                .collect();
            before.sort_unstable();
            before.dedup();
            assert!(before.len() >= 2, "{one} follows {before:?}");
        }
    }
}
