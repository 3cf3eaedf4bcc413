//! What happens, told to whoever listens: guests that change, changes of the host, another file on disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use web::wire::Event;

use super::Admin;
use crate::daemon::{View, readable};

impl Admin {
    /// Tells of guests and changes for as long as the daemon lives.
    pub(crate) async fn tell_news(self) {
        let (mut views, mut noted) = (self.0.parts.views.clone(), self.0.parts.noted.clone());
        let mut shown = BTreeMap::<String, View>::new();
        let mut known = BTreeMap::new();
        loop {
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = views.borrow_and_update().clone();
                    self.tell_guests(&mut shown, now).await;
                }
                changed = noted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    noted.borrow_and_update();
                    let Ok(changes) = self.changes().await else { continue };
                    for change in changes.into_iter().rev() {
                        if known.get(&change.id) != Some(&change) {
                            known.insert(change.id, change.clone());
                            let _ = self.0.events.send(Event::Change(change));
                        }
                    }
                }
            }
        }
    }

    async fn tell_guests(&self, shown: &mut BTreeMap<String, View>, now: Vec<View>) {
        shown.retain(|name, _| {
            let there = now.iter().any(|view| view.name == *name);
            if !there {
                let _ = self.0.events.send(Event::GuestGone(name.clone()));
            }
            there
        });
        for view in now {
            if shown.get(&view.name) != Some(&view) {
                let guest = self.guest(&view).await;
                shown.insert(view.name.clone(), view);
                let _ = self.0.events.send(Event::Guest(guest));
            }
        }
    }

    /// Tells of another file on disk, by its folder: editors put a new one in the place of the old.
    pub(crate) async fn tell_of_the_file(self) {
        loop {
            let path = self.0.parts.path();
            let mut applied = self.0.parts.applied.clone();
            applied.borrow_and_update();
            tokio::select! {
                () = self.watch_file(&path) => {}
                // It may be another path by now.
                changed = applied.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn watch_file(&self, path: &Path) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return std::future::pending().await;
        };
        let Some(watching) = watch(folder) else { return std::future::pending().await };
        let mut tag = self.config().await.ok().map(|config| config.tag);
        loop {
            let Ok(mut ready) = watching.readable().await else { return };
            let ours = names(&watching).into_iter().any(|changed| changed == name);
            ready.clear_ready();
            if !ours {
                continue;
            }
            if let Ok(config) = self.config().await
                && tag.as_ref() != Some(&config.tag)
            {
                tag = Some(config.tag.clone());
                let _ = self.0.events.send(Event::Config(config.tag));
            }
        }
    }
}

fn watch(folder: &Path) -> Option<AsyncFd<std::os::fd::OwnedFd>> {
    let watching = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR;
    if let Err(error) = inotify::add_watch(&watching, folder, what) {
        tracing::debug!("Watching {}: {error}", folder.display());
        return None;
    }
    readable(watching).ok()
}

/// Names of what has changed.
fn names(watching: &AsyncFd<std::os::fd::OwnedFd>) -> Vec<PathBuf> {
    use std::os::fd::AsFd as _;
    let mut bytes = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watching.get_ref().as_fd(), &mut bytes);
    let mut found = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| OsString::from(std::ffi::OsStr::from_bytes(name.to_bytes())));
        found.extend(name.map(PathBuf::from));
    }
    found
}
