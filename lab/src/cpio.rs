//! Writes cpio archives in the "newc" form the kernel unpacks into its initial
//! root file system (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};

const MAGIC: &str = "070701";
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. All entries belong to root and carry no time, so
/// the same content gives the same bytes.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0, folders: BTreeSet::new() }
    }

    /// Adds a folder, and those it lies in, unless they are there already.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let folder = path.get(..at).unwrap_or_default();
            if !folder.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER | 0o755, (0, 0), b"")?;
            }
        }
        Ok(())
    }

    /// Adds a regular file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, FILE | (mode & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, CHARACTER | 0o600, (major, minor), b"")
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        match path.trim_start_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let name = path.trim_matches('/');
        let too_long =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long for a cpio archive"));
        let size = u32::try_from(content.len()).map_err(|_| too_long())?;
        let name_size = u32::try_from(name.len()).map_err(|_| too_long())?.saturating_add(1);
        self.inode = self.inode.saturating_add(1);
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = MAGIC.to_owned();
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(b"\0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_come_once_before_their_files() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", 0o755, b"12345").unwrap();
        archive.file("/a/b/two", 0o644, b"").unwrap();
        archive.link("/a/link", "b/one").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);

        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches(MAGIC).count(), 6, "a, a/b, two files, a link, the end");
        assert!(text.find("a/b\0").unwrap() < text.find("a/b/one\0").unwrap());
        for (at, _) in text.match_indices(MAGIC) {
            assert_eq!(at % 4, 0);
        }
    }

    #[test]
    fn the_cpio_program_reads_it_back() {
        let mut archive = Archive::new(Vec::new());
        archive.file("etc/x", 0o640, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.cpio");
        std::fs::write(&path, bytes).unwrap();
        // bsdcpio, GNU cpio and busybox all do; without any of them the layout test above stands alone.
        let Ok(listed) = std::process::Command::new("cpio").args(["-itv", "-F"]).arg(&path).output() else {
            return;
        };
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(text.contains("-rw-r-----") && text.contains("etc/x"), "{text}");
    }
}
