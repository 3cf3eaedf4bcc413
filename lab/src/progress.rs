//! Progress on the terminal: a spinner where there is a person, plain lines in a log.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a long step says in a log that it is still going.
const HEARTBEAT: Duration = Duration::from_secs(60);

thread_local! {
    /// Whose lines these are, where several things are done beside each other.
    static WHOSE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Does `work`, which other work is done beside: each line that it says has its name in front, and there is no spinner.
pub fn beside<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let before = WHOSE.replace(Some(name));
    let result = work();
    WHOSE.set(before);
    result
}

/// Prints lines for the person.
pub fn say(text: &str) {
    say_of(WHOSE.get(), text);
}

fn say_of(whose: Option<&str>, text: &str) {
    match whose {
        Some(name) => text.lines().for_each(|line| anstream::eprintln!("{name:<11} | {line}")),
        None => anstream::eprintln!("{text}"),
    }
}

/// One line for the person, above any spinner.
pub fn note(text: &str) {
    say(&format!("  {text}"));
}

/// One step under way: says what it is at the start and how long it took at the end.
#[derive(Debug)]
pub struct Step {
    text: String,
    started: Instant,
    bar: Option<ProgressBar>,
    heartbeat: Option<mpsc::Sender<()>>,
}

impl Step {
    /// Starts a step.
    #[must_use]
    pub fn start(text: &str) -> Self {
        let mut step = Self { text: text.to_owned(), started: Instant::now(), bar: None, heartbeat: None };
        let whose = WHOSE.get();
        if std::io::stderr().is_terminal() && whose.is_none() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(step.text.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            step.bar = Some(bar);
        } else {
            say(&format!("- {text}"));
            let (sender, receiver) = mpsc::channel::<()>();
            let (started, text) = (step.started, step.text.clone());
            std::thread::spawn(move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = receiver.recv_timeout(HEARTBEAT) {
                    say_of(whose, &format!("  {text}: {} s so far", started.elapsed().as_secs()));
                }
            });
            step.heartbeat = Some(sender);
        }
        step
    }

    /// Shows what the step is at just now, on a terminal only.
    pub fn at(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            let detail: String = detail.chars().take(90).collect();
            bar.set_message(format!("{}: {detail}", self.text));
        }
    }

    /// Prints a line that stays, without tearing the spinner.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| anstream::eprintln!("{text}")),
            None => say(text),
        }
    }

    fn end(&mut self, verdict: &str) {
        self.heartbeat = None;
        let seconds = self.started.elapsed().as_secs_f64();
        match self.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                anstream::eprintln!("- {}: {verdict} ({seconds:.1} s)", self.text);
            }
            None if seconds >= 2.0 => say(&format!("  {}: {verdict} ({seconds:.1} s)", self.text)),
            None => {}
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.bar.is_some() || self.heartbeat.is_some() {
            self.end("stopped");
        }
    }
}

/// Runs `work` as one step, and says how it ended.
pub fn step<T>(text: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let mut step = Step::start(text);
    let result = work(&step);
    step.end(if result.is_ok() { "done" } else { "failed" });
    result
}
