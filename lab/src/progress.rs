//! Progress on the terminal: a spinner where there is a person, plain lines in a log.

use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a long step says in a log that it is still going.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// One line for the person, above any spinner.
pub fn note(text: &str) {
    anstream::eprintln!("  {text}");
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
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(step.text.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            step.bar = Some(bar);
        } else {
            anstream::eprintln!("- {text}");
            let (sender, receiver) = mpsc::channel::<()>();
            let (started, text) = (step.started, step.text.clone());
            std::thread::spawn(move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = receiver.recv_timeout(HEARTBEAT) {
                    anstream::eprintln!("  {text}: {} s so far", started.elapsed().as_secs());
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
            None => anstream::eprintln!("{text}"),
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
            None if seconds >= 2.0 => anstream::eprintln!("  {}: {verdict} ({seconds:.1} s)", self.text),
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
