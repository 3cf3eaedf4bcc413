//! Keeping the process up that serves the admin interface: its listeners, its user, its folder; started again when it ends.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use web::Problem;

use super::link::{Claim, Hello, Kind};
use super::serve::serve;
use super::{Admin, Parts, issue};
use crate::config::{Document, Listen, Web, load_all};
use crate::daemon::{Applied, ended};

/// The user that it runs as, where the package has made it.
const USER: &str = "throughway";
/// Otherwise: a number that no distribution gives away, and no range of containers has (systemd.io/UIDS-GIDS).
const NOBODY: u32 = 79_001;
/// Where it is served where the file does not say.
const USUAL: &str = "https://[::]:8443";
/// After which pauses it is started again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// One that has lived so long has not failed at its start.
const LIVED: Duration = Duration::from_secs(60);

/// How long it may take to end when it is to.
const GOODBYE: Duration = Duration::from_secs(5);

/// What of the file it is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    listen: Vec<Listen>,
    web: Web,
    folder: Option<PathBuf>,
}

impl Wanted {
    /// As the file that holds says; where none does yet, the one that is going to be applied.
    fn of(parts: &Parts) -> Self {
        let usual = || USUAL.to_owned().try_into().ok().into_iter().collect();
        let applied = parts.applied.borrow().clone();
        if applied.text.is_some() {
            let listen = applied.listen.clone().unwrap_or_else(usual);
            return Self { listen, web: applied.web.clone(), folder: applied.folder.clone() };
        }
        let path = parts.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let config = load_all(&Document { name: String::new(), text }).0.unwrap_or_default();
        let listen = config.management.listen.unwrap_or_else(usual);
        Self { listen, web: config.web, folder: path.parent().map(Path::to_owned) }
    }
}

/// Keeps it up until `over` is said, or nobody can say it any more. It has ended then.
pub(crate) async fn keep_up(admin: Admin, mut over: oneshot::Receiver<()>) {
    let mut applied = admin.0.parts.applied.clone();
    let mut pause = PAUSE.0;
    loop {
        applied.borrow_and_update();
        let wanted = Wanted::of(&admin.0.parts);
        let begun = Instant::now();
        let mut is_over = false;
        let enough = async {
            tokio::select! {
                () = another(&admin, &mut applied, &wanted) => {}
                _ = &mut over => is_over = true,
            }
        };
        match run(&admin, &wanted, enough).await {
            _ if is_over => return,
            Ok(None) => {
                tracing::info!("The admin interface is started anew, as the file says");
                pause = PAUSE.0;
                continue;
            }
            Ok(Some(how)) => {
                tracing::error!("The admin interface has ended ({how}); it is started again soon")
            }
            Err(error) => tracing::error!("The admin interface: {error:#}; it is tried again soon"),
        }
        if begun.elapsed() > LIVED {
            pause = PAUSE.0;
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut over => return,
        }
        pause = pause.saturating_mul(2).min(PAUSE.1);
    }
}

impl Admin {
    /// The box's own screen shows how to claim it, or nothing of that any more.
    pub(super) async fn claimable(&self, claim: Option<Claim>) -> Result<(), Problem> {
        self.beside(|parts| {
            match claim {
                Some(claim) => issue::show(parts.running.path(), &Wanted::of(parts).listen, &claim),
                None => issue::clear(parts.running.path()),
            }
            Ok(())
        })
        .await
    }
}

/// Until the file says something else about it.
async fn another(admin: &Admin, applied: &mut tokio::sync::watch::Receiver<Arc<Applied>>, wanted: &Wanted) {
    loop {
        if applied.changed().await.is_err() {
            return std::future::pending().await;
        }
        applied.borrow_and_update();
        if Wanted::of(&admin.0.parts) != *wanted {
            return;
        }
    }
}

/// Runs it once, to its end: how that was; none where it was told to end.
async fn run(
    admin: &Admin,
    wanted: &Wanted,
    enough: impl Future<Output = ()>,
) -> anyhow::Result<Option<String>> {
    let (hello, beside, user) = {
        let wanted = wanted.clone();
        admin.beside(move |parts| prepare(parts, &wanted).map_err(super::fault)).await
    }?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("Making a socket for it")?;
    ours.set_nonblocking(true).context("Making a socket for it")?;
    let ours = UnixStream::from_std(ours).context("Making a socket for it")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("web").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    command.env_clear().current_dir("/");
    for name in ["RUST_LOG", "JOURNAL_STREAM"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    if let Some((user, group)) = user {
        // No other group either: the standard library gives those up with the user.
        command.gid(group).uid(user);
    }
    let child = command.spawn().context("Starting its process")?;
    // It holds the other end alone.
    drop(command);
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("Watching its process")?;
    let mut ended = ended(child);
    let how = tokio::select! {
        status = &mut ended => {
            let status = status.context("Waiting for its process")?.context("Waiting for its process")?;
            return Ok(Some(status.to_string()));
        }
        served = serve(admin, ours, hello, beside) => {
            served.context("Talking to its process")?;
            Some("it has hung up".to_owned())
        }
        () = enough => None,
    };
    // At the end of its socket it ends; its places to listen at are free then.
    admin.give_all_up();
    if timeout(GOODBYE, ended).await.is_err() {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
    Ok(how)
}

/// What it is told, what it is handed, and the user and group that it runs as.
type Prepared = (Hello, Vec<OwnedFd>, Option<(u32, u32)>);

fn prepare(parts: &Parts, wanted: &Wanted) -> anyhow::Result<Prepared> {
    let user = user();
    let folder = folder(&parts.state.join("web"), user)?;
    let mut listeners = vec![(Kind::Local, local(&parts.running.path().join("api.sock"))?)];
    for listen in &wanted.listen {
        match bound(listen.address) {
            Ok(listener) => {
                tracing::info!("The admin interface is served at {listen}");
                listeners.push((if listen.https { Kind::Https } else { Kind::Http }, listener));
            }
            Err(error) => tracing::error!("The admin interface cannot be served at {listen}: {error}"),
        }
    }
    let (kinds, mut beside): (Vec<Kind>, Vec<OwnedFd>) = listeners.into_iter().unzip();
    beside.push(folder);
    let hello = Hello {
        listeners: kinds,
        certificate: certificate(wanted),
        names: names(&wanted.web),
        hosts: wanted.web.hosts.clone(),
        users_file: wanted.web.users_file.as_ref().map(|path| beside_the_file(wanted, path)),
    };
    Ok((hello, beside, user))
}

/// The user and group that it runs as; none where this is not root, and so has nothing to give up.
fn user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_line = |line: &str| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        let (user, group) = (parts.nth(1)?.parse().ok()?, parts.next()?.parse().ok()?);
        (name == USER && user != 0 && group != 0).then_some((user, group))
    };
    Some(text.lines().find_map(of_line).unwrap_or((NOBODY, NOBODY)))
}

/// The folder that it may write to, as its descriptor: it may be unable to go the way there.
fn folder(path: &Path, user: Option<(u32, u32)>) -> anyhow::Result<OwnedFd> {
    let doing = |what: &str| format!("{what} {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| doing("Making"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty()).with_context(|| doing("Opening"))?;
    if let Some((user, group)) = user {
        give(&folder, user, group).with_context(|| doing("Giving its user"))?;
    }
    Ok(folder)
}

/// Gives it to a user, with what an earlier one left in it and one folder deeper: the package has made the user by now.
///
/// That one may have put anything there. No link is followed, no file is touched that has another name elsewhere, and no way is
/// gone twice.
fn give(folder: &OwnedFd, user: u32, group: u32) -> io::Result<()> {
    use rustix::fs::{AtFlags, Dir, FileType, Gid, Uid, chownat, fchown, fstat, openat, statat};
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    if fstat(folder)?.st_uid == user.map_or(0, Uid::as_raw) {
        return Ok(());
    }
    let mut within = vec![folder.try_clone()?];
    for deep in 0..2 {
        for folder in std::mem::take(&mut within) {
            for entry in Dir::read_from(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let found = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(found.st_mode) {
                    FileType::RegularFile if found.st_nlink == 1 => {
                        chownat(&folder, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                    FileType::Directory if deep == 0 => {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let below = openat(&folder, name, flags, Mode::empty())?;
                        fchown(&below, user, group)?;
                        within.push(below);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(fchown(folder, user, group)?)
}

fn bound(address: SocketAddr) -> io::Result<OwnedFd> {
    // With SO_REUSEADDR, and for IPv4 too where it is all of IPv6.
    Ok(std::net::TcpListener::bind(address)?.into())
}

/// The socket of the host: all may connect, and who they are is seen.
fn local(path: &Path) -> anyhow::Result<OwnedFd> {
    let doing = |what: &str| format!("{what} {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| doing("Removing"));
        }
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).with_context(|| doing("Making"))?;
    fs::set_permissions(path, Permissions::from_mode(0o666)).with_context(|| doing("Opening"))?;
    Ok(listener.into())
}

/// What a path of the file leads to: one that is relative begins at the file's folder.
fn beside_the_file(wanted: &Wanted, path: &Path) -> PathBuf {
    wanted.folder.as_ref().map_or_else(|| path.to_owned(), |folder| folder.join(path))
}

/// The owner's own certificate, read by root.
fn certificate(wanted: &Wanted) -> Option<(String, String)> {
    let (Some(chain), Some(key)) = (&wanted.web.certificate, &wanted.web.key) else { return None };
    let read = |path: &PathBuf| {
        let path = beside_the_file(wanted, path);
        let text = File::open(&path).and_then(|file| {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(file, 1 << 20), &mut text)?;
            Ok(text)
        });
        let complain = |error| tracing::error!("Reading {}: {error}; a certificate is made", path.display());
        text.map_err(complain).ok()
    };
    Some((read(chain)?, read(key)?))
}

/// What a browser may call this box by.
fn names(web: &Web) -> Vec<String> {
    let mut names = vec![rustix::system::uname().nodename().to_string_lossy().into_owned()];
    names.push("localhost".to_owned());
    names.extend(web.hosts.iter().cloned());
    let links = netconfig::blocking::with_network(async |network| network.settings().await);
    let addresses = links.unwrap_or_default().into_values().flat_map(|link| link.addresses);
    names.extend(addresses.map(|address| address.address.to_string()));
    names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    names.dedup();
    names
}
