//! `throughway daemon`: the box as it was applied, and its guests kept running.
//!
//! Guests are processes of their own, which outlive this one: whoever comes next finds them by their sockets and by what is
//! noted of them in the folder of running guests. So nothing here is needed for a guest to go on, and a daemon may be killed,
//! exchanged, or not there at all.
//!
//! One task, the supervisor, decides; others wait for what it cannot wait for itself and tell it what happened. Nothing is
//! looked at again and again but the socket of a guest that is just starting.

mod applied;
mod change;
mod guest;
mod lock;
mod notify;
mod order;
mod policy;
mod supervisor;
mod watch;

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Context as _;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::oneshot;
use tokio::sync::watch as channel;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Interval, MissedTickBehavior, interval};

pub(crate) use applied::Applied;
pub use guest::{Off, State, View};
pub use lock::{NotAlone, Only, daemon_of};
pub use notify::Manager;
pub use policy::{Backoff, Pace, Verdict};
pub use supervisor::Finish;
pub(crate) use supervisor::stop_timeout;
pub(crate) use watch::{ended, readable};

use crate::admin::{Admin, keep_up};
use crate::control::RunDir;
use supervisor::Supervisor;

/// What a daemon is given.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file that is applied where none is yet, and read anew when it is asked for; else the one that was applied last.
    pub file: Option<PathBuf>,
    /// The state folder.
    pub state: PathBuf,
    /// Where running guests are found.
    pub running: RunDir,
    /// Folder of the logs of guests.
    pub logs: PathBuf,
    /// Seconds that what is late may take at the start.
    pub wait: u64,
    /// How fast guests that fail are started again.
    pub pace: Pace,
    /// The admin interface is served.
    pub web: bool,
}

/// Keeps guests running until this process is told to end: SIGTERM stops them, SIGINT leaves them running. SIGHUP reads the file
/// anew. The locks of both folders are held.
///
/// # Errors
/// What it needs of the host cannot be had.
pub fn run(options: Options, _only: &Only) -> anyhow::Result<Finish> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("Making a runtime")?;
    let finish = LocalSet::new().block_on(&runtime, supervise(options));
    // What changes the host is a process of its own; who waits for it need not.
    runtime.shutdown_background();
    finish
}

async fn supervise(options: Options) -> anyhow::Result<Finish> {
    let catch = |kind| signal(kind).context("Catching signals");
    let mut stop = catch(SignalKind::terminate())?;
    let mut leave = catch(SignalKind::interrupt())?;
    let mut reload = catch(SignalKind::hangup())?;
    let manager = Rc::new(Manager::of_this_process());
    let mut watchdog = manager.watchdog().map(|often| {
        let mut ticks = interval(often);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let (wishes, mut wished) = unbounded_channel();
    let web = options.web;
    let mut supervisor = Supervisor::new(options, Rc::clone(&manager));
    spawn_local(tell(supervisor.views(), Rc::clone(&manager)));
    let admin = web.then(|| Admin::new(supervisor.parts(wishes)));
    supervisor.begin()?;
    let (goodbye, over) = oneshot::channel();
    let kept = admin.map(|admin| {
        admin.tidy();
        spawn_local(admin.clone().tell_news());
        spawn_local(admin.clone().tell_of_the_file());
        spawn_local(keep_up(admin, over))
    });
    let finish = loop {
        tokio::select! {
            happened = supervisor.next() => happened.into_iter().for_each(|happened| supervisor.hear(happened)),
            Some((wish, answer)) = wished.recv() => {
                // Who wished it may be gone.
                let _ = answer.send(supervisor.wished(wish));
            }
            _ = stop.recv() => supervisor.stop(),
            _ = reload.recv() => supervisor.reload(),
            () = tick(&mut watchdog) => manager.alive(),
            _ = leave.recv() => {
                tracing::info!("The daemon ends, and guests go on");
                break Finish::Left;
            }
        }
        if supervisor.is_done() {
            supervisor.forget_all();
            tracing::info!("All guests are stopped");
            break Finish::Stopped;
        }
    };
    // The process that serves it ends first: else it would be a left-over to the service manager, and in the next one's way.
    drop(goodbye);
    if let Some(kept) = kept {
        let _ = kept.await;
    }
    Ok(finish)
}

/// Never, where nobody wants to hear it.
async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

/// Tells the service manager how guests are, whenever that changes.
async fn tell(mut views: channel::Receiver<Vec<View>>, manager: Rc<Manager>) {
    while views.changed().await.is_ok() {
        let text = summary(&views.borrow_and_update());
        manager.status(&text);
    }
}

/// `2 guests run; waiting: web; started again soon: db; off: old (it powered off)`.
fn summary(views: &[View]) -> String {
    let of = |is: fn(&State) -> bool| {
        let names: Vec<&str> =
            views.iter().filter(|view| is(&view.state)).map(|view| view.name.as_str()).collect();
        names.join(" ")
    };
    let parts = [
        ("running", of(|state| matches!(state, State::Running(_)))),
        ("starting", of(|state| matches!(state, State::Starting | State::Delayed))),
        ("waiting", of(|state| matches!(state, State::Waiting(_)))),
        ("started again soon", of(|state| matches!(state, State::BackingOff(_)))),
        ("given up", of(|state| matches!(state, State::Off(Off::GivenUp(_))))),
        ("stopping", of(|state| matches!(state, State::Stopping))),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {names}"))
        .collect();
    if parts.is_empty() { "no guest runs".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_summed_up_in_a_line() {
        let view = |name: &str, state| View { name: name.into(), state, failures: 0, changed: false };
        let views = [
            view("a", State::Running(1)),
            view("b", State::Off(Off::ByHand)),
            view("c", State::Waiting(vec!["d".into()])),
            view("d", State::Running(2)),
        ];
        assert_eq!(summary(&views), "running: a d; waiting: c");
        assert_eq!(summary(&[]), "no guest runs");
    }
}
