//! Runs scenarios in the box and tells how each ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::kernel::{self, Flavour, Kernel};
use crate::machine::{Event, Machine, RunFolder};
use crate::qemu::{Share, Spec};
use crate::scenario::{self, Scenario};
use crate::sysroot::Sysroot;
use crate::tap::{self, Check};
use crate::{fresh, image, kernel_build, progress};

/// L1 must be up within this time.
const UP: Duration = Duration::from_secs(150);

/// A scenario is ended in the box when its time is over; a box that has not said so after this much more hangs.
const GRACE: Duration = Duration::from_secs(60);

/// The box says every five seconds that it lives. One that has not for so long, a reboot included, hangs.
const DEAD: Duration = Duration::from_secs(150);

/// Seconds of scenarios in one boot: fewer boots are quicker, more of them leave less behind for the next scenario.
const BUDGET: u64 = 540;

/// Everything a boot is made from, out of the cache.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
    sysroot: Sysroot,
    kernel: Kernel,
    images: image::Images,
}

/// How a scenario ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// The checks it made, with one more that failed when it ended badly.
    pub checks: Vec<Check>,
    /// Folder with its log, the box's kernel log, and what it left.
    pub folder: PathBuf,
    /// Why it was run again, each time.
    pub again: Vec<String>,
}

impl Outcome {
    /// Number of checks that held, and that did not.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let passed = self.checks.iter().filter(|check| check.passed).count();
        (passed, self.checks.len().saturating_sub(passed))
    }
}

/// What one run wants.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The `throughway` binary; built when scenarios need one and this is none.
    pub binary: Option<PathBuf>,
    /// Show the scenarios' own output, not their checks alone.
    pub verbose: bool,
}

impl Lab {
    /// Gets everything for boots with `flavour`; builds the second kernel when it is missing.
    pub fn prepare(flavour: Flavour) -> Result<Self> {
        let cache = Cache::open()?;
        let sysroot = Sysroot::open(&cache)?;
        let kernel = match flavour {
            Flavour::Debian => kernel::debian(&cache, &sysroot)?,
            Flavour::Iommufd => kernel_build::build(&cache)?,
        };
        let images = image::images(&cache, &sysroot, &kernel)?;
        Ok(Self { cache, sysroot, kernel, images })
    }

    /// The cache the box is made from.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The programs the box is made from.
    #[must_use]
    pub fn sysroot(&self) -> &Sysroot {
        &self.sysroot
    }

    /// A run folder with the helper scripts, the guest's files and `binary` in its share.
    pub fn folder(&self, binary: Option<&Path>) -> Result<RunFolder> {
        let run = RunFolder::create(&self.cache.path("runs"))?;
        let share = run.path().join("share");
        for name in ["box", "bin", "guest", "scenarios", "out", "configs"] {
            let path = share.join(name);
            fs::create_dir_all(&path).with_context(|| format!("Creating {}", path.display()))?;
        }
        copy_files(&fresh::workspace().join("lab/box"), &share.join("box"))?;
        copy_files(&fresh::workspace().join("configs"), &share.join("configs"))?;
        for (from, name) in [
            (&self.kernel.vmlinux, "vmlinux"),
            (&self.kernel.bzimage, "bzImage"),
            (&self.images.guest, "initrd"),
        ] {
            link_or_copy(from, &share.join("guest").join(name))?;
        }
        if let Some(binary) = binary {
            copy(binary, &share.join("bin/throughway"))?;
        }
        write(&share.join("kernel"), self.kernel.flavour.name())?;
        // A sparse file behind the NVMe namespace.
        let disk = fs::File::create(run.path().join("nvme.img")).context("Creating the NVMe image")?;
        disk.set_len(64 << 20).context("Sizing the NVMe image")?;
        Ok(run)
    }

    /// What the box is booted with when `run` is its folder.
    #[must_use]
    pub fn spec(&self, run: &RunFolder) -> Spec {
        let share = |tag, path, writable| Share { tag, path, writable };
        let mut shares = vec![
            share("share", run.path().join("share"), true),
            share("sysroot", self.sysroot.root().to_owned(), false),
        ];
        if let Some(modules) = self.kernel.modules.as_ref().and_then(|path| path.ancestors().nth(3)) {
            shares.push(share("kernel", modules.to_owned(), false));
        }
        Spec {
            flavour: self.kernel.flavour,
            kernel: self.kernel.vmlinux.clone(),
            initrd: self.images.host.clone(),
            append: String::new(),
            shares,
            disk: run.path().join("nvme.img"),
            results: None,
            interactive: false,
            forward: None,
            reboots: false,
            two_nodes: false,
        }
    }

    /// Runs `scenarios`, in as few boots as their time allows. Their logs go
    /// below `output`, a folder per scenario.
    pub fn run(&self, scenarios: Vec<Scenario>, options: &Options, output: &Path) -> Result<Vec<Outcome>> {
        let binary = match &options.binary {
            Some(path) => Some(path.clone()),
            None if scenarios.iter().any(|scenario| scenario.needs_throughway) => Some(fresh::throughway()?),
            None => None,
        };
        let names: BTreeSet<_> = scenarios.iter().flat_map(|scenario| scenario.examples.clone()).collect();
        let examples: Vec<_> =
            names.into_iter().map(|name| Ok((fresh::example(&name)?, name))).collect::<Result<_>>()?;
        fs::create_dir_all(output).with_context(|| format!("Creating {}", output.display()))?;
        let images: BTreeSet<_> = scenarios.iter().filter_map(|scenario| scenario.image).collect();
        let images: Vec<_> =
            images.into_iter().map(|image| Ok((image, image.folder(&self.cache)?))).collect::<Result<_>>()?;
        let mut waiting = scenario::boots(scenarios, BUDGET);
        waiting.reverse();
        let mut outcomes = Vec::new();
        let mut crashed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut number: usize = 0;
        while let Some(group) = waiting.pop() {
            number = number.saturating_add(1);
            let run = self.folder(binary.as_deref())?;
            for (path, name) in &examples {
                let name = name.rsplit('/').next().unwrap_or(name);
                copy(path, &run.path().join("share/bin").join(name))?;
            }
            let log = output.join(format!("console-{number}.log"));
            let reboots = group.iter().any(|scenario| scenario.reboots);
            let two_nodes = group.iter().any(|scenario| scenario.two_nodes);
            let mut spec = Spec { reboots, two_nodes, ..self.spec(&run) };
            for (image, path) in &images {
                if group.iter().any(|scenario| scenario.image == Some(*image)) {
                    spec.shares.push(Share { tag: image.tag(), path: path.clone(), writable: false });
                }
            }
            let boot = Boot {
                spec,
                share: run.path().join("share"),
                output,
                log: log.clone(),
                verbose: options.verbose,
                crashed: &crashed,
            };
            let (done, mut rest, crash) = boot.run(&self.sysroot, group)?;
            outcomes.extend(done);
            if let Some((scenario, line)) = crash {
                progress::note(&format!(
                    "The emulator failed in {}, which is run again in a new box: {line}\n{}",
                    scenario.name,
                    last_lines(&log)
                ));
                crashed.entry(scenario.name.clone()).or_default().push(line);
                rest.insert(0, scenario);
            } else if !rest.is_empty() {
                progress::note("The box ended early; the scenarios it had not come to get another");
            }
            if !rest.is_empty() {
                waiting.push(rest);
            }
        }
        for outcome in &mut outcomes {
            outcome.again = crashed.remove(&outcome.name).unwrap_or_default();
        }
        Ok(outcomes)
    }
}

struct Boot<'a> {
    spec: Spec,
    share: PathBuf,
    output: &'a Path,
    log: PathBuf,
    verbose: bool,
    /// In which scenarios the emulator has failed, and how.
    crashed: &'a BTreeMap<String, Vec<String>>,
}

/// How often a scenario is run again where the emulator fails; the next time that is the scenario's own failure. See
/// docs/decisions/0503.
const AGAIN: usize = 2;

/// A scenario, and what said that the emulator failed in it.
type Crash = (Scenario, String);

impl Boot<'_> {
    /// Runs a group in one boot; returns what ended, the scenarios not come to, and in which the box crashed.
    fn run(
        &self,
        sysroot: &Sysroot,
        group: Vec<Scenario>,
    ) -> Result<(Vec<Outcome>, Vec<Scenario>, Option<Crash>)> {
        let mut plan = String::new();
        for scenario in &group {
            copy(&scenario.path, &self.share.join(format!("scenarios/{}.sh", scenario.name)))?;
            plan.push_str(&format!("{} {}\n", scenario.name, scenario.timeout));
        }
        write(&self.share.join("plan"), &plan)?;
        let kernel = self.spec.flavour.name();
        progress::say(&format!("- Booting the box ({kernel} kernel), console in {}", self.log.display()));
        let machine = Machine::boot(sysroot, self.spec.clone(), &self.log)?;
        let mut outcomes = Vec::new();
        let mut group = std::collections::VecDeque::from(group);
        if !self.wait_until_up(&machine)? {
            let why = format!("The box did not come up; its console is in {}", self.log.display());
            let first = group.pop_front().filter(|scenario| self.may_run_again(scenario));
            let scenario = first.with_context(|| format!("{why}\n{}", last_lines(&self.log)))?;
            return Ok((outcomes, Vec::from(group), Some((scenario, why))));
        }
        progress::say(&format!("  up after {:.1} s", machine.elapsed().as_secs_f64()));
        while let Some(scenario) = group.pop_front() {
            let (outcome, alive) = match self.follow(&machine, &scenario)? {
                Followed::Crash(line) => return Ok((outcomes, Vec::from(group), Some((scenario, line)))),
                Followed::End(outcome, alive) => (outcome, alive),
            };
            outcomes.push(outcome);
            if !alive {
                break;
            }
        }
        Ok((outcomes, Vec::from(group), None))
    }

    fn may_run_again(&self, scenario: &Scenario) -> bool {
        self.crashed.get(&scenario.name).is_none_or(|times| times.len() < AGAIN)
    }

    fn wait_until_up(&self, machine: &Machine) -> Result<bool> {
        let deadline = Instant::now().checked_add(UP).context("Computing a deadline")?;
        loop {
            match machine.next(deadline) {
                Event::Result(line) if line == "##up" => return Ok(true),
                Event::Console(line) if self.verbose => progress::say(&format!("  | {line}")),
                Event::Console(_) | Event::Result(_) => {}
                Event::Ended | Event::Silence => return Ok(false),
            }
        }
    }

    /// Follows one scenario to its end, or to that of its box: the script's exit status, or what became of the box.
    fn watch(
        &self,
        machine: &Machine,
        scenario: &Scenario,
        again: bool,
    ) -> (std::result::Result<String, String>, Vec<Check>) {
        let log = self.share.join("out").join(&scenario.name).join("log");
        let mut shown: usize = 0;
        let left = Duration::from_secs(scenario.timeout).saturating_add(GRACE);
        let (started, mut alive) = (Instant::now(), Instant::now());
        let mut checks = Vec::new();
        let end = loop {
            let poll = Instant::now().checked_add(Duration::from_millis(300)).unwrap_or(started);
            match machine.next(poll) {
                Event::Result(line) if line == "##alive" => alive = Instant::now(),
                Event::Result(line) => {
                    if let Some(rest) = line.strip_prefix("##end ") {
                        break Ok(rest.rsplit(' ').next().unwrap_or_default().to_owned());
                    }
                    if let Some(why) = line.strip_prefix("##stuck ").filter(|_| again) {
                        break Err(why.to_owned());
                    }
                    if let Some(check) = tap::parse(&line) {
                        progress::say(&format!("  [{:6.1}] {line}", machine.elapsed().as_secs_f64()));
                        checks.push(check);
                    }
                }
                Event::Console(line) if again && kernel_crashed(&line) => break Err(line),
                Event::Ended => break Err("the box ended".to_owned()),
                Event::Console(_) | Event::Silence => {}
            }
            if alive.elapsed() > DEAD || started.elapsed() > left {
                let old = alive.elapsed().as_secs();
                break Err(format!("the box hangs, its last sign of life is {old} s old"));
            }
            if self.verbose {
                shown = show_from(&log, shown);
            }
        };
        if self.verbose {
            show_from(&log, shown);
        }
        (end, checks)
    }

    /// Watches one scenario, tells how it ended, and keeps what it left.
    fn follow(&self, machine: &Machine, scenario: &Scenario) -> Result<Followed> {
        progress::say(&format!("  {}: {}", scenario.name, scenario.proves));
        let inside = self.share.join("out").join(&scenario.name);
        let again = self.may_run_again(scenario);
        let (end, mut checks) = self.watch(machine, scenario, again);
        if let (true, Err(line)) = (again, &end) {
            progress::say(&last_lines(&inside.join("log")));
            return Ok(Followed::Crash(line.clone()));
        }
        let alive = end.is_ok();
        if let Some(why) = bad_end(&end, &checks, scenario.timeout) {
            let (at, name) = (machine.elapsed().as_secs_f64(), &scenario.name);
            progress::say(&format!("  [{at:6.1}] not ok - {name} runs to its end # {why}"));
            checks.push(Check {
                passed: false,
                text: format!("{} runs to its end", scenario.name),
                why: Some(why),
            });
        }
        let folder = self.output.join(&scenario.name);
        fs::create_dir_all(&folder).with_context(|| format!("Creating {}", folder.display()))?;
        if inside.is_dir() {
            copy_files(&inside, &folder)?;
        }
        if checks.iter().any(|check| !check.passed) && !self.verbose {
            for log in [&folder.join("log"), &self.log] {
                progress::say(&format!("  last lines of {}:\n{}", log.display(), last_lines(log)));
            }
        }
        Ok(Followed::End(Outcome { name: scenario.name.clone(), checks, folder, again: Vec::new() }, alive))
    }
}

/// How far a scenario came.
enum Followed {
    /// To its end; whether the box is still there.
    End(Outcome, bool),
    /// Until the emulator failed, as this line says.
    Crash(String),
}

/// Whether a line of the box's console says that its own kernel crashed.
fn kernel_crashed(line: &str) -> bool {
    ["PANIC: ", "BUG: ", "Oops: ", "Kernel panic - "].iter().any(|sign| line.contains(sign))
}

/// Why a scenario's end is a failure of its own, if it is.
fn bad_end(end: &std::result::Result<String, String>, checks: &[Check], timeout: u64) -> Option<String> {
    match end {
        Err(why) => Some(why.clone()),
        Ok(status) if status == "143" || status == "137" || status == "124" => {
            Some(format!("it took more than {timeout} s"))
        }
        Ok(_) if checks.is_empty() => Some("it made no check".to_owned()),
        // A script that fails says so by a check; the status of its last command says nothing.
        Ok(status) if status == "2" || status == "127" => {
            Some(format!("the script itself is wrong (status {status}, see its log)"))
        }
        Ok(_) => None,
    }
}

/// Prints what `path` has from byte `from` on; returns how far it was read.
fn show_from(path: &Path, from: usize) -> usize {
    let Ok(bytes) = fs::read(path) else { return from };
    let fresh = bytes.get(from..).unwrap_or_default();
    let Some(end) = fresh.iter().rposition(|byte| *byte == b'\n') else { return from };
    for line in String::from_utf8_lossy(fresh.get(..end).unwrap_or_default()).lines() {
        progress::say(&format!("    | {line}"));
    }
    from.saturating_add(end).saturating_add(1)
}

fn last_lines(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(25);
    lines.get(from..).unwrap_or_default().iter().map(|line| format!("    | {line}\n")).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("Writing {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("Copying {} to {}", from.display(), to.display()))
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(from, to)
}

/// Copies the regular files of one folder, not its subfolders.
pub(crate) fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.filter_map(std::result::Result::ok) {
        let path = entry.path();
        if path.is_file() {
            copy(&path, &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_that_checks_nothing_or_is_cut_short_fails() {
        let check = [Check { passed: true, text: String::new(), why: None }];
        let ended = |status: &str| Ok(status.to_owned());
        assert_eq!(bad_end(&ended("0"), &check, 9), None);
        assert_eq!(bad_end(&ended("1"), &check, 9), None);
        assert!(bad_end(&ended("0"), &[], 9).is_some());
        assert!(bad_end(&ended("143"), &check, 9).is_some());
        assert!(bad_end(&ended("127"), &check, 9).is_some());
        assert!(bad_end(&Err("gone".to_owned()), &check, 9).is_some());
    }

    #[test]
    fn the_crash_of_a_box_is_told_from_what_it_says_else() {
        for line in [
            "[   49.054241] traps: PANIC: double fault, error_code: 0x0",
            "[   81.703880] BUG: scheduling while atomic: vcpu0/474/0x00110001",
            "[  208.607659] Oops: stack guard page: 0000 [#1] PREEMPT SMP NOPTI",
            "[  208.618966] Kernel panic - not syncing: Fatal exception in interrupt",
        ] {
            assert!(kernel_crashed(line), "{line}");
        }
        for line in [
            "[   78.9] kvm: kvm [444]: vcpu0, guest rIP: 0xffffffff8109d458 Unhandled WRMSR",
            "DMAR: DRHD: handling fault status reg 2",
        ] {
            assert!(!kernel_crashed(line), "{line}");
        }
    }
}
