//! Telling the service manager how it goes: sd_notify(3), a datagram of `KEY=VALUE` lines.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

/// The service manager; nobody where this process is no service.
#[derive(Debug, Default)]
pub struct Manager {
    to: Option<(OwnedFd, SocketAddrUnix)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// That of this process, by its environment, which processes of its own do not inherit.
    pub fn of_this_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let to = variable("NOTIFY_SOCKET").and_then(|path| match connect(&path) {
            Ok(to) => Some(to),
            Err(error) => {
                tracing::warn!("The service manager's socket {} cannot be had: {error}", path.display());
                None
            }
        });
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // Where it is for another process, as of a shell that started this one, it is not for us.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|microseconds| ours && *microseconds > 0);
        Self { to, watchdog: watchdog.map(|microseconds| Duration::from_micros(microseconds) / 2) }
    }

    /// How often it wants to hear that this process is alive; none where it does not.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// It is up.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// It reads its file anew.
    pub fn reloading(&self) {
        self.tell("RELOADING=1");
    }

    /// It ends. That may take as long as guests may take.
    pub fn stopping(&self, within: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    /// It is alive.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How it is, in one line for a person.
    pub fn status(&self, text: &str) {
        self.tell(&format!("STATUS={}", text.replace('\n', " ")));
    }

    fn tell(&self, text: &str) {
        let Some((socket, to)) = &self.to else { return };
        // A manager that does not listen is no reason to stand still.
        if let Err(error) = sendto(socket, text.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL, to) {
            tracing::debug!("Telling the service manager `{text}`: {error}");
        }
    }
}

/// A path, or with `@` a name of the abstract namespace.
fn connect(path: &OsStr) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let to = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(path)?,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok((socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?, to))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let told = Manager { to: Some(connect(path.as_os_str()).unwrap()), watchdog: None };
        told.ready();
        told.status("two\nlines");
        told.stopping(Duration::from_secs(2));
        let heard = || {
            let mut bytes = [0; 256];
            let count = manager.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        assert_eq!(heard(), "READY=1");
        assert_eq!(heard(), "STATUS=two lines");
        assert_eq!(heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000");
        drop((manager, folder));
        told.alive();
    }
}
