//! Forwarding by the kernel: turned on for the first NAT network, put back after the last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{NatError, file};
use crate::tool;

const SYSCTLS: &str = "/proc/sys/net";
const V4: &str = "ipv4/ip_forward";
const V6: &str = "ipv6/conf/all/forwarding";
/// Below it each link has a folder.
const V6_LINKS: &str = "ipv6/conf";

/// What was found before, by path below [`SYSCTLS`], is in a note.
pub(super) struct Forwarding<'a> {
    /// For whom, in errors.
    pub(super) network: &'a str,
    /// The note.
    pub(super) note: PathBuf,
}

impl Forwarding<'_> {
    pub(super) fn turn_on(&self, v6: bool) -> Result<(), NatError> {
        if read(V4).as_deref() == Some("0") {
            self.set(V4, "1")?;
        }
        if !v6 || read(V6).as_deref() != Some("0") {
            return Ok(());
        }
        // A box that forwards takes no announcements of routers any more, and with them its own default route, but where this
        // says so (Documentation/networking/ip-sysctl.rst, accept_ra).
        let path = Path::new(SYSCTLS).join(V6_LINKS);
        let links = fs::read_dir(&path).map_err(|error| file(self.network, "reading", &path, error))?;
        for link in links.filter_map(|link| link.ok()?.file_name().into_string().ok()) {
            let accept = format!("{V6_LINKS}/{link}/accept_ra");
            if read(&accept).as_deref() == Some("1") {
                self.set(&accept, "2")?;
            }
        }
        self.set(V6, "1")
    }

    pub(super) fn is_on(&self, v6: bool) -> bool {
        let on = |path| read(path).is_some_and(|value| value != "0");
        on(V4) && (!v6 || on(V6))
    }

    pub(super) fn put_back(&self) -> Result<(), NatError> {
        let noted = self.noted()?;
        // Announcements of routers are taken again once nothing is forwarded any more.
        let order = noted.iter().filter(|(path, _)| *path == V6 || *path == V4);
        let rest = noted.iter().filter(|(path, _)| *path != V6 && *path != V4);
        for (path, value) in order.chain(rest) {
            match write(path, value) {
                // The link is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(|error| self.failed(path, error))?,
            }
        }
        match fs::remove_file(&self.note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file(self.network, "removing", &self.note, error))
            }
            _ => Ok(()),
        }
    }

    /// Notes what is there, unless that was noted before, and sets another.
    fn set(&self, path: &str, value: &str) -> Result<(), NatError> {
        let mut noted = self.noted()?;
        if !noted.contains_key(path) {
            let before = read(path).unwrap_or_default();
            noted.insert(path.to_owned(), before);
            let text = serde_json::to_string_pretty(&noted).unwrap_or_default();
            tool::write(&self.note, &text)
                .map_err(|error| file(self.network, "writing", &self.note, error))?;
        }
        write(path, value).map_err(|error| self.failed(path, error))
    }

    fn noted(&self) -> Result<BTreeMap<String, String>, NatError> {
        match fs::read(&self.note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(file(self.network, "reading", &self.note, error)),
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| file(self.network, "reading", &self.note, io::Error::other(error))),
        }
    }

    fn failed(&self, path: &str, error: io::Error) -> NatError {
        file(self.network, "writing", &Path::new(SYSCTLS).join(path), error)
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new(SYSCTLS).join(path)).ok()?.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    // Never makes a file: these are there, or their link is not.
    let mut file = fs::OpenOptions::new().write(true).open(Path::new(SYSCTLS).join(path))?;
    io::Write::write_all(&mut file, value.as_bytes())
}
