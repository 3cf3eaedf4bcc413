//! The firmware variables of a guest: a file of its own in the state folder, that begins as a copy of a template.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use crate::apply::file_name;

/// Where the variables of one guest are kept.
#[derive(Clone, Debug)]
pub struct Variables {
    folder: PathBuf,
    file: String,
}

impl Variables {
    /// Those of a guest, below a state folder.
    pub fn of(state: &Path, vm: &str) -> Self {
        Self { folder: state.join("firmware"), file: format!("{}.vars.fd", file_name(vm)) }
    }

    /// The path of the file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.file)
    }

    /// Opens them for reading and writing. At the first time they are a copy of `template`: all of it or nothing, however
    /// that ends, and one copy only, however many start at once.
    pub fn open(&self, template: &File) -> anyhow::Result<File> {
        let path = self.path();
        match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.copy(template).with_context(|| format!("Making {}", path.display()))?;
                tracing::info!("The guest's firmware variables are kept in {}", path.display());
                open(&path).with_context(|| format!("Opening {}", path.display()))
            }
            opened => opened.with_context(|| format!("Opening {}", path.display())),
        }
    }

    fn copy(&self, template: &File) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let copy = COPIES.fetch_add(1, Ordering::Relaxed);
        let fresh = self.folder.join(format!("{}.{}.{copy}.new", self.file, std::process::id()));
        let mut template = template;
        template.rewind()?;
        let written = File::create(&fresh).and_then(|mut file| {
            io::copy(&mut template, &mut file)?;
            file.sync_all()
        });
        // Not renamed: that would take the file from under a guest that has just made it.
        let linked = written.and_then(|()| match fs::hard_link(&fresh, self.path()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        let removed = fs::remove_file(&fresh);
        linked.and(removed).and_then(|()| File::open(&self.folder)?.sync_all())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // What is a link there was not made by us.
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn they_begin_as_the_template_and_stay_the_guests_own() {
        let state = tempfile::tempdir().unwrap();
        let mut template = tempfile::tempfile().unwrap();
        template.write_all(b"as delivered").unwrap();
        let variables = Variables::of(state.path(), "a/../b");
        let mut file = variables.open(&template).unwrap();
        file.write_all(b"AS").unwrap();
        template.write_all(b", later").unwrap();
        assert_eq!(content(variables.open(&template).unwrap()), b"AS delivered");
        assert_eq!(
            content(Variables::of(state.path(), "c").open(&template).unwrap()),
            b"as delivered, later"
        );
        assert_eq!(fs::read_dir(state.path().join("firmware")).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn many_that_start_at_once_have_one_file() {
        use std::os::unix::fs::MetadataExt;
        let state = tempfile::tempdir().unwrap();
        let inode = |_| {
            let state = state.path().to_owned();
            std::thread::spawn(move || {
                let template = tempfile::tempfile().unwrap();
                Variables::of(&state, "a").open(&template).unwrap().metadata().unwrap().ino()
            })
        };
        let threads: Vec<_> = (0..8).map(inode).collect();
        let inodes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(inodes.iter().all(|inode| *inode == inodes[0]));
    }
}
