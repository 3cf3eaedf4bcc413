//! The folder of one running guest, and the folder of all.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::apply::file_name;

/// `sockaddr_un` has room for this many bytes of a path (unix(7)).
const LONGEST_PATH: usize = 107;

/// Where running guests are.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// A folder of one's own choice.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The usual folder of this user.
    pub fn usual() -> PathBuf {
        let user = rustix::process::geteuid();
        if user.is_root() {
            return "/run/throughway".into();
        }
        let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
        let own = own.map_or_else(|| format!("/run/user/{}", user.as_raw()).into(), PathBuf::from);
        own.join("throughway")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The guest of this name, whether it runs or not.
    pub fn guest(&self, vm: &str) -> Place {
        Place { folder: self.0.join(file_name(vm)) }
    }

    /// All that have a folder here, by the folder's name.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn all(&self) -> anyhow::Result<Vec<Place>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("Reading {}", self.0.display())),
        };
        let mut folders: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.join("lock").exists()).collect();
        folders.sort_unstable();
        Ok(folders.into_iter().map(|folder| Place { folder }).collect())
    }
}

/// The folder of one guest.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
}

/// What a running guest has in its folder. Dropped, it is taken away.
#[derive(Clone, Default)]
pub struct Served(Arc<Mutex<Option<Held>>>);

struct Held {
    place: Place,
    _lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the lock is let go: whoever comes next makes both anew.
        self.place.clear();
    }
}

impl Place {
    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A connection to who serves the guest.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.socket())
    }

    /// The process that runs the guest, where there is one whose socket is there already.
    pub fn holder(&self) -> Option<u32> {
        let stream = self.connect().ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// The process that runs the guest, held on to.
    ///
    /// # Errors
    /// None serves the socket, or it is gone again.
    pub fn process(&self) -> io::Result<(u32, OwnedFd)> {
        let stream = self.connect()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        let process = pidfd_open(peer.pid, PidfdFlags::empty())?;
        // Still the one that listens: its number was not given to another in between.
        let again = rustix::net::sockopt::socket_peercred(self.connect()?)?;
        if again.pid != peer.pid {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0), process))
    }

    /// Makes the folder and a socket that listens; both stay as long as `served`.
    ///
    /// # Errors
    /// Another process runs this guest, or the folder cannot be made.
    pub fn listen(self, served: &Served) -> io::Result<OwnedFd> {
        let told = |doing: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{doing} {path}: {error}"))
        };
        let socket = self.socket();
        if socket.as_os_str().len() > LONGEST_PATH {
            let why =
                format!("{} is longer than the {LONGEST_PATH} bytes of a socket's path", socket.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755);
        if let Some(all) = self.folder.parent() {
            builder.create(all).map_err(told("Making", all))?;
        }
        builder.mode(0o700).create(&self.folder).map_err(told("Making", &self.folder))?;
        let Some(lock) = self.try_lock().map_err(told("Locking", &self.folder))? else {
            let why = "another process runs a guest of this name already";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        };
        // Of one that was killed.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(told("Making", &socket))?;
        // Nobody else gets into the folder meanwhile.
        fs::set_permissions(&socket, Permissions::from_mode(0o600)).map_err(told("Closing", &socket))?;
        *served.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held { place: self, _lock: lock });
        Ok(listener.into())
    }

    /// The lock, where nobody has it: then no process runs the guest.
    fn try_lock(&self) -> io::Result<Option<File>> {
        let path = self.folder.join("lock");
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it may have taken the file away before letting it go: then it locks nothing.
            let same = |here: &fs::Metadata, there: &fs::Metadata| {
                (here.dev(), here.ino()) == (there.dev(), there.ino())
            };
            match fs::metadata(&path) {
                Ok(there) if same(&file.metadata()?, &there) => return Ok(Some(file)),
                _ => {}
            }
        }
    }

    /// Takes away what a process left that was killed; false where there is a process.
    pub(crate) fn clean(&self) -> io::Result<bool> {
        if !self.folder.exists() {
            return Ok(true);
        }
        let Some(_lock) = self.try_lock()? else { return Ok(false) };
        self.clear();
        Ok(true)
    }

    fn clear(&self) {
        for name in ["control.sock", "lock"] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        // Where something else is in it, it stays.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_there_as_long_as_it_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let all = RunDir::at(&folder.path().join("run"));
        assert!(all.all().unwrap().is_empty());
        assert_eq!(all.guest("a/b").holder(), None);
        let served = Served::default();
        let listener = all.guest("a/b").listen(&served).unwrap();
        assert_eq!(all.guest("a/b").holder(), Some(std::process::id()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let place = all.guest("a/b");
        assert_eq!((mode(place.folder()), mode(&place.socket())), (0o700, 0o600));
        let second = all.guest("a/b").listen(&Served::default()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(all.all().unwrap().len(), 1);
        drop(listener);
        assert!(!place.clean().unwrap(), "its process lives");
        drop(served);
        assert!(all.all().unwrap().is_empty());
        assert!(!place.folder().exists());
    }

    #[test]
    fn what_the_dead_left_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let place = RunDir::at(folder.path()).guest("a");
        fs::create_dir(place.folder()).unwrap();
        drop(UnixListener::bind(place.socket()).unwrap());
        fs::write(place.folder().join("lock"), "").unwrap();
        assert_eq!(place.holder(), None);
        let served = Served::default();
        let _listener = place.clone().listen(&served).unwrap();
        assert!(place.holder().is_some());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let place = RunDir::at(folder.path()).guest(&"x".repeat(120));
        let error = place.listen(&Served::default()).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
    }
}
