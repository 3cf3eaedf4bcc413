//! Every check there is, as named suites that end in one line of counts.

mod cargo;
mod deny;
mod lab;
mod package;
mod suite;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{fresh, progress};
use suite::{Counts, Outcome, SUITES, Suite};

/// Where suites write their logs, and how they ask for what they need.
#[derive(Debug)]
struct Context {
    /// `target/verify`.
    logs: PathBuf,
    /// The folder cargo builds into.
    target: PathBuf,
    /// What failed, each with its cause: said again at the end, where it is not overlooked.
    failures: Mutex<Vec<String>>,
    /// Scenarios that were run again, as the emulator failed.
    notes: Mutex<Vec<String>>,
}

impl Context {
    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn noted(&self, what: String) {
        held(&self.notes).push(what);
    }

    fn failed(&self, what: String) {
        held(&self.failures).push(what);
    }
}

/// The suites that exist in this checkout: name and what each is.
#[must_use]
pub fn list() -> Vec<(&'static str, &'static str)> {
    present().map(|suite| (suite.name, suite.what)).collect()
}

fn present() -> impl Iterator<Item = &'static Suite> {
    SUITES.iter().filter(|suite| suite.test_target.is_none_or(has_test_target))
}

/// Whether the root package has the integration test `name`.
fn has_test_target(name: &str) -> bool {
    let tests = fresh::workspace().join("tests");
    tests.join(name).join("main.rs").exists() || tests.join(format!("{name}.rs")).exists()
}

/// Suites that must not be skipped, out of `REQUIRE`: names with commas, or `all`.
fn required(variable: &str) -> Result<BTreeSet<&'static str>> {
    let mut names = BTreeSet::new();
    for name in variable.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "all" {
            names.extend(SUITES.iter().filter(|suite| suite.gates).map(|suite| suite.name));
        } else if let Some(suite) = SUITES.iter().find(|suite| suite.name == name) {
            names.insert(suite.name);
        } else {
            bail!(
                "REQUIRE names the suite {name:?}, which does not exist; there are: {}",
                names_of(SUITES.iter())
            );
        }
    }
    Ok(names)
}

fn names_of<'a>(suites: impl Iterator<Item = &'a Suite>) -> String {
    suites.map(|suite| suite.name).collect::<Vec<_>>().join(", ")
}

fn chosen(only: &[String]) -> Result<Vec<&'static Suite>> {
    if let Some(unknown) = only.iter().find(|name| !present().any(|suite| suite.name == *name)) {
        bail!("There is no suite {unknown:?}; there are: {}", names_of(present()));
    }
    let wanted =
        |suite: &&Suite| only.iter().any(|name| name == suite.name) || (only.is_empty() && suite.gates);
    Ok(present().filter(wanted).collect())
}

/// Runs the suites named in `only`, or all, prints the closing line and returns
/// whether everything passed.
pub fn run(only: &[String]) -> Result<bool> {
    let required = required(&std::env::var("REQUIRE").unwrap_or_default())?;
    let suites = chosen(only)?;
    let target = fresh::target_folder()?;
    let context =
        Context { logs: target.join("verify"), target, failures: Mutex::default(), notes: Mutex::default() };
    fs::create_dir_all(&context.logs).with_context(|| format!("Creating {}", context.logs.display()))?;
    let (boxed, alone): (Vec<_>, Vec<_>) = suites.iter().partition(|suite| suite.boxed);
    let mut results: Vec<Done> = alone.into_iter().map(|suite| one(suite, &required, &context)).collect();
    results.extend(beside(&boxed, &required, &context));
    // A suite that is required and not even there is a failure too, unless others were asked for.
    if only.is_empty() {
        for name in required.iter().filter(|name| !suites.iter().any(|suite| suite.name == **name)) {
            context.failed(format!("{name}: required, but this checkout has no such tests"));
            results.push((name, Counts { passed: 0, failed: 1, skipped: 0 }, 0.0));
        }
    }
    let notes = std::mem::take(&mut *held(&context.notes));
    if !notes.is_empty() {
        anstream::eprintln!("\n== what was run again, as the emulator failed");
    }
    for note in notes {
        anstream::eprintln!("{note}");
    }
    let failures = std::mem::take(&mut *held(&context.failures));
    if !failures.is_empty() {
        anstream::eprintln!("\n== what failed");
    }
    for failure in failures {
        anstream::eprintln!("{}", failure.trim_end());
    }
    Ok(close(&results))
}

/// A suite's name, what it came to, and how many seconds it took.
type Done = (&'static str, Counts, f64);

/// Runs one suite.
fn one(suite: &Suite, required: &BTreeSet<&str>, context: &Context) -> Done {
    progress::say(&format!("== {}: {}", suite.name, suite.what));
    let started = Instant::now();
    let counts = judge(suite, (suite.run)(context), required.contains(suite.name), context);
    (suite.name, counts, started.elapsed().as_secs_f64())
}

/// Runs suites that boot boxes of their own, two beside each other: a box has one processor.
fn beside(suites: &[&'static Suite], required: &BTreeSet<&str>, context: &Context) -> Vec<Done> {
    if let [suite] = suites {
        return vec![one(suite, required, context)];
    }
    let waiting: Mutex<VecDeque<&'static Suite>> = Mutex::new(suites.iter().copied().collect());
    let done: Mutex<BTreeMap<&str, Done>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(suite) = held(&waiting).pop_front() else { break };
                    let one = progress::beside(suite.name, || one(suite, required, context));
                    held(&done).insert(suite.name, one);
                }
            });
        }
    });
    let done = held(&done);
    suites.iter().filter_map(|suite| done.get(suite.name).copied()).collect()
}

/// Turns what a suite returned into counts, and notes what went wrong with the suite itself.
fn judge(suite: &Suite, outcome: Result<Outcome>, required: bool, context: &Context) -> Counts {
    let failed = |why: String| {
        progress::say(&format!("   {} {why}", suite.name));
        context.failed(format!("{} {why}", suite.name));
        Counts { passed: 0, failed: 1, skipped: 0 }
    };
    match outcome {
        Ok(Outcome::Ran(counts)) if counts.failed == 0 && counts.passed == 0 => {
            let one = failed("counted no check: that is a failure".to_owned());
            Counts { failed: one.failed, ..counts }
        }
        Ok(Outcome::Ran(counts)) => counts,
        Ok(Outcome::Skipped(why)) if required => failed(format!("is required, but cannot run: {why}")),
        Ok(Outcome::Skipped(why)) => {
            progress::say(&format!("   {} is skipped: {why}", suite.name));
            Counts { passed: 0, failed: 0, skipped: 1 }
        }
        Err(error) => {
            let log = Some(context.log(suite.name)).filter(|log| log.exists());
            let log = log.map(|log| format!("\n   log: {}", log.display())).unwrap_or_default();
            failed(format!("failed: {error:#}{log}"))
        }
    }
}

fn held<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close(results: &[Done]) -> bool {
    let mut total = Counts::default();
    anstream::println!();
    for (name, counts, seconds) in results {
        total.add(*counts);
        anstream::println!("{name:<14} {counts:<36} {seconds:>7.1} s");
    }
    anstream::println!("{total}");
    total.failed == 0 && total.passed > 0
}

/// Reads a log for an error's tail.
fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_knows_the_suites() {
        assert_eq!(required("").unwrap().len(), 0);
        assert_eq!(required("lab, kvm").unwrap().len(), 2);
        assert_eq!(required("all").unwrap().len(), SUITES.iter().filter(|suite| suite.gates).count());
        assert!(required("lib").is_err());
    }

    #[test]
    fn a_skip_of_a_required_suite_and_a_suite_without_checks_fail() {
        let suite = SUITES.first().unwrap();
        let nowhere = PathBuf::from("/nonexistent");
        let context = Context {
            logs: nowhere.clone(),
            target: nowhere,
            failures: Mutex::default(),
            notes: Mutex::default(),
        };
        let skip = || Ok(Outcome::Skipped("no".to_owned()));
        assert_eq!(judge(suite, skip(), true, &context).failed, 1);
        assert_eq!(judge(suite, skip(), false, &context).failed, 0);
        assert_eq!(judge(suite, Ok(Outcome::Ran(Counts::default())), false, &context).failed, 1);
        assert_eq!(judge(suite, Err(anyhow::anyhow!("x")), false, &context).failed, 1);
        let said = [
            "fmt is required, but cannot run: no",
            "fmt counted no check: that is a failure",
            "fmt failed: x",
        ];
        assert_eq!(std::mem::take(&mut *held(&context.failures)), said);
    }

    #[test]
    fn nothing_failed_needs_something_passed() {
        assert!(!close(&[("a", Counts { passed: 0, failed: 0, skipped: 1 }, 0.0)]));
        assert!(close(&[("a", Counts { passed: 1, failed: 0, skipped: 1 }, 0.0)]));
        assert!(!close(&[("a", Counts { passed: 1, failed: 1, skipped: 0 }, 0.0)]));
    }
}
