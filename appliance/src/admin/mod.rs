//! The admin interface: what the daemon answers and does for it, and the process that serves it.
//!
//! ```text
//!   browser --- https ---> throughway web ----- one socket ----- throughway daemon
//!   curl ------ unix ----> a user of its own     frames of JSON    root: [`Admin`]
//! ```
//!
//! The process that reads what strangers send has no right to anything. Whom it says a request is from is believed; what he may
//! is checked here again, and written down here (docs/decisions/0520).

mod answer;
mod audit;
mod changes;
mod child;
mod code;
mod devices;
mod edit;
mod file;
mod guard;
mod guests;
mod host;
mod images;
mod link;
mod logs;
mod networks;
mod news;
mod recent;
mod remote;
mod serve;
mod told;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use web::Problem;
use web::wire::{Drift, Event};

pub(crate) use changes::{BEGINS, BEHIND, is_tagged};
pub(crate) use child::keep_up;
pub(crate) use code::renew as new_code;
pub(crate) use recent::Recent;
pub(crate) use remote::web;

use crate::control::RunDir;
use crate::daemon::{Applied, View};
use audit::Audit;
use images::Coming;

/// Host reads at once: each is some megabytes and a processor.
const READS: usize = 2;
/// Events that a slow reader may be behind.
const EVENTS: usize = 256;

/// What is asked of the task that decides.
#[derive(Debug)]
pub(crate) enum Wish {
    /// To start a guest.
    Start(String),
    /// Not to start a guest that has no process.
    Stay(String),
    /// A change of the host has ended which this began: its exit code.
    Changed(Option<i32>),
    /// A change of the host is to begin now; refused while another one is being made.
    Changing,
}

/// A wish, and where its answer goes.
pub(crate) type Asked = (Wish, tokio::sync::oneshot::Sender<Result<(), Problem>>);

/// What of the daemon it is about.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The file that the daemon was given.
    pub(crate) file: Option<PathBuf>,
    /// The state folder.
    pub(crate) state: PathBuf,
    /// Where running guests are found.
    pub(crate) running: RunDir,
    /// Folder of the logs of guests.
    pub(crate) logs: PathBuf,
    /// The task that decides.
    pub(crate) wishes: mpsc::UnboundedSender<Asked>,
    /// Guests, as that task sees them.
    pub(crate) views: watch::Receiver<Vec<View>>,
    /// The file that holds.
    pub(crate) applied: watch::Receiver<Arc<Applied>>,
    /// Raised with each change that was noted.
    pub(crate) noted: watch::Receiver<u64>,
}

/// The appliance as the admin interface sees it.
#[derive(Clone)]
pub(crate) struct Admin(Arc<Inner>);

struct Inner {
    parts: Parts,
    events: broadcast::Sender<Event>,
    audit: Audit,
    /// Who reads the host.
    reads: Semaphore,
    /// Who writes the file, or begins a change.
    writes: tokio::sync::Mutex<()>,
    /// Images that are being brought in.
    coming: Mutex<BTreeMap<u64, Coming>>,
    next_upload: AtomicU64,
    /// What a look at the host has found, and when.
    drift: Mutex<Option<Look>>,
}

/// A look at the host.
#[derive(Clone)]
struct Look {
    when: Instant,
    /// After how many changes.
    noted: u64,
    found: Option<Vec<Drift>>,
}

impl Admin {
    pub(crate) fn new(parts: Parts) -> Self {
        let audit = Audit::at(&parts.state.join("audit"));
        Self(Arc::new(Inner {
            parts,
            events: broadcast::Sender::new(EVENTS),
            audit,
            reads: Semaphore::new(READS),
            writes: tokio::sync::Mutex::default(),
            coming: Mutex::default(),
            next_upload: AtomicU64::new(1),
            drift: Mutex::default(),
        }))
    }

    /// Takes away what an earlier one has left half.
    pub(crate) fn tidy(&self) {
        self.0.parts.tidy_images();
    }

    /// Does what takes a while, or reads files, beside everything else.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Parts) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let parts = self.0.parts.clone();
        let done = tokio::task::spawn_blocking(move || work(&parts)).await;
        done.unwrap_or_else(|error| Err(Problem::fault(format!("It failed inside of Throughway: {error}"))))
    }

    /// The same for what reads the host: few at a time, and the memory is given back.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Parts) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let _turn = self.0.reads.acquire().await;
        self.beside(move |parts| {
            let result = work(parts);
            give_memory_back();
            result
        })
        .await
    }

    /// Has the task that decides do something.
    async fn wish(&self, wish: Wish) -> Result<(), Problem> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let gone = || Problem::unavailable("The daemon is about to end");
        self.0.parts.wishes.send((wish, answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Gives the pages back that a large answer took.
fn give_memory_back() {
    // SAFETY: malloc_trim only returns free memory of the C library's allocator to the system, under its own lock.
    unsafe { libc::malloc_trim(0) };
}

/// A fault of ours or the host's, with all its causes.
fn fault(error: impl Into<anyhow::Error>) -> Problem {
    Problem::fault(format!("{:#}", error.into()))
}

/// What is wrong with writing something.
fn cannot_write(doing: &str, error: &std::io::Error) -> Problem {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | ReadOnlyFilesystem => {
            Problem::no_room(format!("{doing}: {error}. Nothing was changed"))
        }
        _ => Problem::fault(format!("{doing}: {error}")),
    }
}
