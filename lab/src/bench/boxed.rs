//! Throughway and QEMU as the VMM of the same guest in the box: a script there prints figures, and they become a table here.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::figures::{Series, shown, table};
use super::machine;
use crate::installed::Installed;
use crate::kernel::Flavour;
use crate::machine::{Event, Machine};
use crate::qemu::Share;
use crate::session::Lab;
use crate::{fresh, tap};

/// The longest that booting the box may take.
const BOOT: Duration = Duration::from_secs(180);

/// The contestants, by the names that the scripts print.
const VMMS: [&str; 2] = ["throughway", "qemu"];

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernel of the box and its guest.
    pub kernel: Flavour,
    /// How often each VMM is measured.
    pub rounds: u32,
    /// The `throughway` binary, built when none.
    pub binary: Option<PathBuf>,
}

/// What is measured: its name, what the table calls it, what divides it into the table's unit, digits.
pub(super) type What = (&'static str, &'static str, f64, usize);

/// One benchmark.
#[derive(Debug)]
pub(super) struct Bench {
    /// Its script, `NAME.sh` in `lab/box`.
    pub name: &'static str,
    /// The longest that it takes before the first round.
    pub setup: Duration,
    /// The longest that one round of both VMMs takes.
    pub round: Duration,
    /// Whether the guest is the installed Debian.
    pub debian: bool,
    /// The table's rows.
    pub what: &'static [What],
}

/// All figures: of a VMM and what was measured, in the order of the rounds.
#[derive(Debug, Default)]
struct Figures(BTreeMap<(String, String), Series>);

impl Figures {
    /// Takes in `figure VMM WHAT VALUE`. False where the line is another one; a value that is missing is passed over.
    fn take(&mut self, line: &str) -> bool {
        let Some(rest) = line.strip_prefix("figure ") else { return false };
        let mut words = rest.split(' ');
        if let (Some(vmm), Some(what), Some(Ok(value))) =
            (words.next(), words.next(), words.next().map(str::parse))
        {
            self.0.entry((vmm.to_owned(), what.to_owned())).or_default().push(value);
        }
        true
    }

    fn of(&self, vmm: &str, what: &str) -> Series {
        self.0.get(&(vmm.to_owned(), what.to_owned())).cloned().unwrap_or_default()
    }

    fn report(&self, what: &[What]) -> String {
        let heading = ["", "rounds", "Throughway", "QEMU", "Throughway over QEMU: min, median, max"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for (what, text, unit, digits) in what {
            let [ours, theirs] = VMMS.map(|vmm| self.of(vmm, what));
            let ratio = ours.over(&theirs);
            let value = |series: &Series| {
                let shown = |value: Option<f64>| shown(value.map(|value| value / unit), *digits);
                format!("{} ({} to {})", shown(series.median()), shown(series.min()), shown(series.max()))
            };
            rows.push(vec![
                (*text).to_owned(),
                ratio.len().to_string(),
                value(&ours),
                value(&theirs),
                format!("{}, {}, {}", shown(ratio.min(), 2), shown(ratio.median(), 2), shown(ratio.max(), 2)),
            ]);
        }
        table(&rows)
    }
}

/// Measures, prints a table, and returns whether every round went well.
pub(super) fn run(bench: &Bench, options: &Options) -> Result<bool> {
    let Bench { name, setup, round, debian, what } = bench;
    let binary = fresh::given(options.binary.as_deref())?;
    let lab = Lab::prepare(options.kernel)?;
    let run = lab.folder(Some(&binary))?;
    let share = run.path().join("share");
    let allowed = BOOT.saturating_add(*setup).saturating_add(round.saturating_mul(options.rounds));
    fs::copy(share.join(format!("box/{name}.sh")), share.join(format!("scenarios/{name}.sh")))
        .context("Placing the script")?;
    fs::write(share.join("plan"), format!("{name} {}\n", allowed.as_secs())).context("Writing the plan")?;
    fs::write(share.join("rounds"), options.rounds.to_string()).context("Writing the number of rounds")?;
    let output = fresh::target_folder()?.join("lab").join(name);
    fs::create_dir_all(&output).with_context(|| format!("Creating {}", output.display()))?;
    let mut spec = lab.spec(&run);
    if *debian {
        let path = Installed::Disk.folder(lab.cache())?;
        spec.shares.push(Share { tag: Installed::Disk.tag(), path, writable: false });
    }
    let log = output.join("console.log");
    anstream::eprintln!("- Booting the box ({} kernel), console in {}", options.kernel.name(), log.display());
    let machine = Machine::boot(lab.sysroot(), spec, &log)?;
    let deadline = Instant::now().checked_add(allowed).context("Computing a deadline")?;
    let end = format!("##end {name} ");
    let (mut figures, mut failed) = (Figures::default(), 0_usize);
    let ended = loop {
        match machine.next(deadline) {
            Event::Result(line) if line.starts_with(&end) => break true,
            Event::Result(line) => {
                if !figures.take(&line)
                    && let Some(check) = tap::parse(&line)
                {
                    anstream::eprintln!("  [{:6.1}] {line}", machine.elapsed().as_secs_f64());
                    failed = failed.saturating_add(usize::from(!check.passed));
                }
            }
            Event::Console(_) => {}
            Event::Ended | Event::Silence => break false,
        }
    };
    drop(machine);
    crate::session::copy_files(&share.join("out").join(name), &output)?;
    anstream::println!(
        "{}; the box: QEMU in software, {} kernel\n\n{}",
        machine::line(),
        options.kernel.name(),
        figures.report(what)
    );
    if !ended {
        bail!("The box ended, or took too long; logs are in {}", output.display());
    }
    Ok(failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_taken_in_and_reported() {
        let mut figures = Figures::default();
        for line in [
            "figure throughway start 500",
            "figure qemu start 1000",
            "figure throughway out",
            "figure throughway out many",
        ] {
            assert!(figures.take(line));
        }
        assert!(!figures.take("ok 1 - round 1"));
        let what = [("start", "start to user space, s", 100.0, 1), ("out", "TCP out", 1.0, 0)];
        let text = figures.report(&what);
        assert!(text.contains("5.0 (5.0 to 5.0)"), "{text}");
        assert!(text.contains("0.50, 0.50, 0.50"), "{text}");
        assert!(text.contains("- (- to -)"), "{text}");
    }
}
