//! What the daemon waits for: the ends of processes, folders that change, time. Each is a task that says once what happened.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::control::{End, Notes, Place, name_of};

/// How often is looked whether a guest that is starting can be asked something: first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// A folder of a guest without a socket is one that a process left which was killed.
const SOON: Duration = Duration::from_secs(1);
/// How long the machine of a keeper that was killed may take to end: its devices are reset, and its memory is let go.
const LAST_MOMENT: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug)]
pub(super) enum Happened {
    /// Something of a guest: its name, and the turn in which it was waited for.
    Guest(String, u64, OfGuest),
    /// A guest's folder has come.
    Folder(String),
    /// Somebody does not want a guest to run.
    StoppedByHand(String),
    /// A change of the host was noted.
    History,
    /// A process that changes the host has ended: its exit code.
    Changed(Option<i32>),
}

/// Of a guest.
#[derive(Debug)]
pub(super) enum OfGuest {
    /// It can be asked: its process.
    Up(u32, Arc<OwnedFd>),
    /// Its process is gone: how, and why.
    Ended(End, Option<String>),
    /// What was found of it is no process any more.
    Gone,
    /// Its time has come.
    Due,
    /// It cannot be told to end.
    Deaf(String),
}

/// Where all is said.
#[derive(Clone)]
pub(super) struct Teller {
    to: UnboundedSender<Happened>,
    vm: String,
    turn: u64,
}

impl Teller {
    pub(super) fn new(to: &UnboundedSender<Happened>, vm: &str, turn: u64) -> Self {
        Self { to: to.clone(), vm: vm.to_owned(), turn }
    }

    pub(super) fn tell(&self, what: OfGuest) {
        // Nobody listens only when all is over.
        let _ = self.to.send(Happened::Guest(self.vm.clone(), self.turn, what));
    }
}

/// A descriptor that is waited for until it can be read: of a process, until that has ended.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: An `OwnedFd` is open and is the same descriptor for as long as it lives, and what is returned owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// The end of a process, which is waited for whether somebody wants to know or not.
pub(crate) fn ended(mut child: Child) -> oneshot::Receiver<io::Result<ExitStatus>> {
    let (to, from) = oneshot::channel();
    spawn_local(async move {
        let gone = async {
            let gone = readable(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?)?;
            gone.readable().await.map(drop)
        };
        let gone: io::Result<()> = gone.await;
        let _ = to.send(gone.and_then(|()| child.wait()));
    });
    from
}

/// Says when a time is over.
pub(super) fn after(time: Duration, teller: Teller) {
    spawn_local(async move {
        sleep(time).await;
        teller.tell(OfGuest::Due);
    });
}

/// Says when a process that was just started is up, and when it has ended.
pub(super) fn child(child: Child, place: Place, notes: Notes, teller: Teller) {
    spawn_local(async move {
        let (end, why) = follow_child(child, &place, &notes, &teller)
            .await
            .unwrap_or_else(|error| (End::Fault, Some(format!("its process cannot be watched: {error}"))));
        teller.tell(OfGuest::Ended(end, why));
    });
}

async fn follow_child(
    mut child: Child,
    place: &Place,
    notes: &Notes,
    teller: &Teller,
) -> io::Result<(End, Option<String>)> {
    let pid = child.id();
    let process = Arc::new(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?);
    let gone = readable(process.try_clone()?)?;
    let mut pause = LOOK.0;
    let up = loop {
        if place.holder() == Some(pid) {
            break true;
        }
        if let Ok(ready) = timeout(pause, gone.readable()).await {
            drop(ready?);
            break false;
        }
        pause = pause.saturating_mul(2).min(LOOK.1);
    };
    if up {
        teller.tell(OfGuest::Up(pid, process));
        drop(gone.readable().await?);
    }
    let end = End::of(child.wait()?);
    until_free(notes).await;
    Ok((end, notes.end_of(pid).and_then(|ending| ending.why)))
}

/// Waits for the end of the guest's machine, which its keeper's end brings a moment later: it is nobody's who starts the guest
/// again before.
async fn until_free(notes: &Notes) {
    let begun = Instant::now();
    while notes.is_held() && begun.elapsed() < LAST_MOMENT {
        sleep(LOOK.1 / 5).await;
    }
}

/// Says when a guest that is there, and that another process has started, can be asked; and when it has ended, or that there
/// is none.
pub(super) fn found(place: Place, notes: Notes, teller: Teller) {
    spawn_local(async move {
        let (mut pause, begun, mut warned) = (LOOK.0, Instant::now(), false);
        let (pid, process) = loop {
            match place.process() {
                Ok(found) => break found,
                // One on a terminal holds nothing; it has its socket soon, or is none.
                Err(_) if !notes.is_held() && begun.elapsed() > SOON => return teller.tell(OfGuest::Gone),
                Err(_) => sleep(pause).await,
            }
            if !warned && begun.elapsed() > LAST_MOMENT {
                warned = true;
                let lock = notes.lock_file();
                tracing::warn!(
                    "Guest `{}` is still being started, or its process hangs: it cannot be asked anything, and is left alone \
                     until that process ends (`fuser -v {}` shows which it is)",
                    notes.vm(),
                    lock.display()
                );
            }
            pause = pause.saturating_mul(2).min(LOOK.1);
        };
        let process = Arc::new(process);
        teller.tell(OfGuest::Up(pid, Arc::clone(&process)));
        let ended = async {
            let gone = readable(process.try_clone()?)?;
            gone.readable().await.map(drop)
        };
        let ended: io::Result<()> = ended.await;
        until_free(&notes).await;
        let (end, why) = match (ended, notes.end_of(pid)) {
            (Err(error), _) => (End::Fault, Some(format!("its process cannot be watched: {error}"))),
            (Ok(()), Some(ending)) => (ending.end, ending.why),
            (Ok(()), None) => (End::Killed, None),
        };
        teller.tell(OfGuest::Ended(end, why));
    });
}

/// Says what changes in the folder of running guests, in the one of notes, and in that of changes of the host.
pub(super) fn folders(
    running: &Path,
    notes: &Path,
    history: &Path,
    to: UnboundedSender<Happened>,
) -> anyhow::Result<()> {
    let watching =
        inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("Making an inotify")?;
    let watch = |folder: &Path, what| {
        inotify::add_watch(&watching, folder, what).with_context(|| format!("Watching {}", folder.display()))
    };
    let of_guests = watch(running, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
    let of_notes = watch(notes, WatchFlags::CREATE | WatchFlags::ONLYDIR)?;
    let of_changes = watch(history, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
    let watching = readable(watching).context("Waiting for an inotify")?;
    let said = move |folder: i32, name: &str| {
        if folder == of_guests {
            name_of(name).map(Happened::Folder)
        } else if folder == of_notes {
            name.strip_suffix(".stopped").and_then(name_of).map(Happened::StoppedByHand)
        } else if folder == of_changes && !name.ends_with(".new") {
            Some(Happened::History)
        } else {
            None
        }
    };
    spawn_local(async move {
        let mut bytes = [MaybeUninit::uninit(); 4096];
        loop {
            let Ok(mut ready) = watching.readable().await else { return };
            let mut reader = Reader::new(watching.get_ref().as_fd(), &mut bytes);
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => break,
                };
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                if let Some(happened) = name.and_then(OsStr::to_str).and_then(|name| said(event.wd(), name))
                    && to.send(happened).is_err()
                {
                    return;
                }
            }
            ready.clear_ready();
        }
    });
    Ok(())
}
