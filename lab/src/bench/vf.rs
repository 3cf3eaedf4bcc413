//! `cargo lab bench vf`: Throughway and QEMU as the VMM of the same guest with the same VF, in the box.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::figures::{Series, shown, table};
use super::machine;
use crate::kernel::Flavour;
use crate::machine::{Event, Machine};
use crate::session::Lab;
use crate::{fresh, tap};

/// The longest that booting the box may take, and one round of both VMMs.
const BOOT: Duration = Duration::from_secs(180);
const ROUND: Duration = Duration::from_secs(400);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernel of the box and its guest.
    pub kernel: Flavour,
    /// How often each VMM runs the guest.
    pub rounds: u32,
    /// The `throughway` binary, built when none.
    pub binary: Option<PathBuf>,
}

/// The contestants, by the names that `box/bench-vf.sh` prints.
const VMMS: [&str; 2] = ["throughway", "qemu"];

/// What is measured: its name, what the table calls it, what divides it into the table's unit, digits.
const WHAT: [(&str, &str, f64, usize); 8] = [
    ("start", "start to user space, s", 100.0, 1),
    ("out", "TCP out of the guest to another port, Mbit/s", 1.0, 0),
    ("in", "TCP into the guest from another port, Mbit/s", 1.0, 0),
    ("pf-out", "TCP out of the guest to its PF, Mbit/s", 1.0, 0),
    ("pf-in", "TCP into the guest from its PF, Mbit/s", 1.0, 0),
    ("ping-min", "ping, shortest, ms", 1.0, 2),
    ("ping-avg", "ping, mean, ms", 1.0, 2),
    ("memory", "memory beside the guest's at its peak, KiB", 1.0, 0),
];

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
}

/// Measures, prints a table, and returns whether every round went well.
pub fn run(options: &Options) -> Result<bool> {
    let binary = match &options.binary {
        Some(path) => path.clone(),
        None => fresh::throughway()?,
    };
    let lab = Lab::prepare(options.kernel)?;
    let run = lab.folder(Some(&binary))?;
    let share = run.path().join("share");
    let allowed = BOOT.saturating_add(ROUND.saturating_mul(options.rounds));
    fs::copy(share.join("box/bench-vf.sh"), share.join("scenarios/bench-vf.sh"))
        .context("Placing the script")?;
    fs::write(share.join("plan"), format!("bench-vf {}\n", allowed.as_secs())).context("Writing the plan")?;
    fs::write(share.join("rounds"), options.rounds.to_string()).context("Writing the number of rounds")?;
    let output = fresh::target_folder()?.join("lab/bench-vf");
    fs::create_dir_all(&output).with_context(|| format!("Creating {}", output.display()))?;
    let log = output.join("console.log");
    anstream::eprintln!("- Booting the box ({} kernel), console in {}", options.kernel.name(), log.display());
    let machine = Machine::boot(lab.sysroot(), lab.spec(&run), &log)?;
    let deadline = Instant::now().checked_add(allowed).context("Computing a deadline")?;
    let (mut figures, mut failed) = (Figures::default(), 0_usize);
    let ended = loop {
        match machine.next(deadline) {
            Event::Result(line) if line.starts_with("##end bench-vf ") => break true,
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
    crate::session::copy_files(&share.join("out/bench-vf"), &output)?;
    anstream::println!(
        "{}; the box: QEMU in software, {} kernel\n\n{}",
        machine::line(),
        options.kernel.name(),
        report(&figures)
    );
    if !ended {
        bail!("The box ended, or took too long; logs are in {}", output.display());
    }
    Ok(failed == 0)
}

fn report(figures: &Figures) -> String {
    let heading = ["", "rounds", "Throughway", "QEMU", "Throughway over QEMU: min, median, max"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (what, text, unit, digits) in WHAT {
        let [ours, theirs] = VMMS.map(|vmm| figures.of(vmm, what));
        let ratio = ours.over(&theirs);
        let value = |series: &Series| {
            let shown = |value: Option<f64>| shown(value.map(|value| value / unit), digits);
            format!("{} ({} to {})", shown(series.median()), shown(series.min()), shown(series.max()))
        };
        rows.push(vec![
            text.to_owned(),
            ratio.len().to_string(),
            value(&ours),
            value(&theirs),
            format!("{}, {}, {}", shown(ratio.min(), 2), shown(ratio.median(), 2), shown(ratio.max(), 2)),
        ]);
    }
    table(&rows)
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
        let text = report(&figures);
        assert!(text.contains("5.0 (5.0 to 5.0)"), "{text}");
        assert!(text.contains("0.50, 0.50, 0.50"), "{text}");
        assert!(text.contains("- (- to -)"), "{text}");
    }
}
