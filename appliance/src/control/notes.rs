//! What is noted of guests beside their sockets, for who keeps them running and for those who come after him.
//!
//! ```text
//!   /run/throughway/.daemon/    names of guests never begin with a dot here
//!     NAME.held                 locked by the guest's process, from before it is there until it is gone
//!     NAME.start                it was started in this boot, and as which process
//!     NAME.end                  how that process ended
//!     NAME.stopped              somebody stopped it, who does not want it to run
//! ```
//!
//! The lock is that of an open file which the guest's process has inherited as its standard input: it needs no word from that
//! process, and nothing of its time (docs/decisions/0500).

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{End, RunDir};
use crate::apply::{Holder, file_name, is_this_boot, this_boot};

/// How often, and after which pauses, a lock is tried that somebody may only look at.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(2);

/// That a guest was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Start {
    /// In which boot.
    boot: String,
    /// As which process; none while that is not there yet.
    pub process: Option<Holder>,
}

/// How a guest's process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ending {
    /// Which process.
    pub process: Holder,
    /// How.
    pub end: End,
    /// More about it, for a person.
    pub why: Option<String>,
}

/// The notes of one guest.
#[derive(Clone, Debug)]
pub struct Notes {
    folder: PathBuf,
    vm: String,
}

impl RunDir {
    /// The folder of notes.
    pub fn notes_folder(&self) -> PathBuf {
        self.path().join(".daemon")
    }

    /// What is noted of the guest of this name.
    pub fn notes(&self, vm: &str) -> Notes {
        Notes { folder: self.notes_folder(), vm: vm.to_owned() }
    }

    /// Makes the folder of notes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_notes(&self) -> anyhow::Result<()> {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(self.path())
            .with_context(|| format!("Making {}", self.path().display()))?;
        let folder = self.notes_folder();
        builder.mode(0o700).create(&folder).with_context(|| format!("Making {}", folder.display()))
    }

    /// All guests that something is noted of.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn noted(&self) -> anyhow::Result<Vec<String>> {
        let folder = self.notes_folder();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("Reading {}", folder.display()))?,
        };
        let name = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            name_of(name.strip_suffix(".start")?)
        };
        Ok(entries.flatten().filter_map(name).collect())
    }
}

/// The guest of a file's name, where it is one ([`file_name`]).
pub fn name_of(file: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let name = String::from_utf8(bytes).ok()?;
    (file_name(&name) == file).then_some(name)
}

impl Notes {
    /// The guest.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The file that a guest's process holds locked, to be its standard input; none where one holds it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn hold(&self) -> anyhow::Result<Option<File>> {
        let path = self.lock_file();
        let opened =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = opened.with_context(|| format!("Opening {}", path.display()))?;
        // Who only looks whether it is held has it for a moment.
        for _ in 0..LOOKS {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("Locking {}", path.display()));
                }
            }
        }
        Ok(None)
    }

    /// Whether a process of the guest's is there.
    pub fn is_held(&self) -> bool {
        match File::open(self.lock_file()) {
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }

    /// That it is being started; none of its processes is there yet.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn begin(&self) -> anyhow::Result<()> {
        self.remove("end")?;
        self.keep("start", &Start { boot: this_boot().to_owned(), process: None })
    }

    /// That it was started.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn began(&self, process: Holder) -> anyhow::Result<()> {
        self.keep("start", &Start { boot: this_boot().to_owned(), process: Some(process) })
    }

    /// Whether it was started in this boot.
    pub fn start(&self) -> Option<Start> {
        self.read::<Start>("start").filter(|start| is_this_boot(&start.boot))
    }

    /// How this process ends.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn ends(&self, end: End, why: Option<String>) -> anyhow::Result<()> {
        self.keep("end", &Ending { process: Holder::this(&self.vm), end, why })
    }

    /// How a process of the guest's ended, where it has said so.
    pub fn end_of(&self, process: u32) -> Option<Ending> {
        let ending = self.read::<Ending>("end")?;
        (ending.process.pid == process && ending.process.is_of_this_boot()).then_some(ending)
    }

    /// Somebody stopped it, who does not want it to run.
    pub fn is_stopped(&self) -> bool {
        self.path("stopped").exists()
    }

    /// Notes whether somebody wants it not to run.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn set_stopped(&self, stopped: bool) -> anyhow::Result<()> {
        if !stopped {
            return self.remove("stopped");
        }
        let path = self.path("stopped");
        fs::write(&path, "").with_context(|| format!("Writing {}", path.display()))
    }

    /// Forgets that it ever ran: the next daemon does with it as at the start of the box.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.remove("start")?;
        self.remove("end")
    }

    /// What a guest's process holds locked.
    pub fn lock_file(&self) -> PathBuf {
        self.path("held")
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", file_name(&self.vm)))
    }

    fn remove(&self, kind: &str) -> anyhow::Result<()> {
        let path = self.path(kind);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whole, or as it was before. It need not outlive the boot, so nothing waits for a disk.
    fn keep(&self, kind: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let path = self.path(kind);
        let write = |path: &Path| -> io::Result<()> {
            let fresh = self.path(&format!("{kind}.{}.new", std::process::id()));
            let text = serde_json::to_vec(value)?;
            OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&fresh)?
                .write_all(&text)?;
            fs::rename(&fresh, path)
        };
        write(&path).with_context(|| format!("Writing {}", path.display()))
    }

    fn read<T: DeserializeOwned>(&self, kind: &str) -> Option<T> {
        let path = self.path(kind);
        let text = fs::read(&path).ok()?;
        let read = serde_json::from_slice(&text);
        if let Err(error) = &read {
            tracing::warn!("{} is damaged, and passed over: {error}", path.display());
        }
        read.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(folder: &Path, vm: &str) -> Notes {
        let all = RunDir::at(folder);
        all.make_notes().unwrap();
        all.notes(vm)
    }

    #[test]
    fn names_come_back_from_files() {
        for name in ["a", "a/b", "ü .%", ""] {
            assert_eq!(name_of(&file_name(name)).as_deref(), Some(name));
        }
        for wrong in ["a.b", "%2", "%zz", "%61"] {
            assert_eq!(name_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_start_is_of_this_boot_and_an_end_of_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let notes = notes(folder.path(), "a b");
        assert_eq!(notes.start(), None);
        notes.begin().unwrap();
        assert_eq!(notes.start().unwrap().process, None);
        notes.began(Holder::this("a b")).unwrap();
        assert_eq!(notes.start().unwrap().process, Some(Holder::this("a b")));
        notes.ends(End::Crash, Some("why".into())).unwrap();
        assert_eq!(notes.end_of(std::process::id()).unwrap().end, End::Crash);
        assert_eq!(notes.end_of(1), None);
        assert_eq!(RunDir::at(folder.path()).noted().unwrap(), ["a b"]);
        let of_another = Start { boot: "another".into(), process: None };
        notes.keep("start", &of_another).unwrap();
        assert_eq!(notes.start(), None);
        notes.begin().unwrap();
        assert_eq!(notes.end_of(std::process::id()), None, "that was the one before");
        notes.forget().unwrap();
        assert!(RunDir::at(folder.path()).noted().unwrap().is_empty());
    }

    #[test]
    fn who_inherits_the_lock_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let notes = notes(folder.path(), "a");
        assert!(!notes.is_held());
        let file = notes.hold().unwrap().unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").stdin(file).spawn().unwrap();
        assert!(notes.is_held() && notes.hold().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!notes.is_held() && notes.hold().unwrap().is_some());
    }

    #[test]
    fn a_wish_that_it_does_not_run_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let notes = notes(folder.path(), "a");
        for wish in [true, true, false, false] {
            notes.set_stopped(wish).unwrap();
            assert_eq!(notes.is_stopped(), wish);
        }
    }
}
