//! How the person at the keyboard came in, when it was over the network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use netconfig::blocking::with_network;

/// sshd(8): client address and port, then server address and port.
pub(crate) const VARIABLE: &str = "SSH_CONNECTION";
/// How many processes up it is looked for: sudo, shells, multiplexers.
const GENERATIONS: usize = 32;

/// A session over SSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// The other end's address.
    client: IpAddr,
    /// This box's address.
    pub(super) own: IpAddr,
    /// The link of a link-local address.
    scope: Option<String>,
}

impl Session {
    /// That of this process; none at a console.
    pub(super) fn current() -> Option<Self> {
        Self::of(&connection()?)
    }

    fn of(connection: &str) -> Option<Self> {
        let mut words = connection.split_whitespace();
        let (client, _port, own) = (words.next()?, words.next()?, words.next()?);
        let address = |text: &str| Some(text.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical());
        let scope = own.split_once('%').map(|(_, scope)| scope.to_owned());
        Some(Self { client: address(client)?, own: address(own)?, scope })
    }

    /// The link of its scope, else the one by which answers leave.
    pub(super) fn links(&self) -> BTreeSet<String> {
        if let Some(scope) = &self.scope {
            return [scope.clone()].into();
        }
        let way = with_network(async |network| network.way_to(self.client).await);
        way.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        })
        .into_iter()
        .collect()
    }
}

/// What sshd told this process or one above it: sudo and su keep it from those below them. One that is there and empty says
/// that it is no such session.
pub(crate) fn connection() -> Option<String> {
    if let Ok(text) = std::env::var(VARIABLE) {
        return Some(text).filter(|text| !text.is_empty());
    }
    let proc = Path::new("/proc");
    let mut process = std::process::id();
    for _ in 0..GENERATIONS {
        process = parent_of(proc, process).filter(|parent| *parent > 1)?;
        let environment = std::fs::read(proc.join(process.to_string()).join("environ")).unwrap_or_default();
        let text = environment
            .split(|byte| *byte == 0)
            .find_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix(VARIABLE)?.strip_prefix('='));
        if let Some(text) = text {
            return Some(text.to_owned()).filter(|text| !text.is_empty());
        }
    }
    None
}

/// Field 4 of /proc/PID/stat; the name before it, in brackets, may hold anything.
fn parent_of(proc: &Path, process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(proc.join(process.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sshd_tells_is_read_with_its_scope() {
        let session = Session::of("10.0.0.9 51000 10.0.0.5 22").unwrap();
        assert_eq!((session.client, session.own), ("10.0.0.9".parse().unwrap(), "10.0.0.5".parse().unwrap()));
        let local = Session::of("fe80::2%br0 51000 fe80::1%br0 22").unwrap();
        assert_eq!(local.links(), ["br0".to_owned()].into());
        assert_eq!(Session::of("::ffff:10.0.0.9 1 ::ffff:10.0.0.5 22").unwrap(), Session { ..session });
        for text in ["", "10.0.0.9", "10.0.0.9 1 here 22", "a b c d"] {
            assert_eq!(Session::of(text), None, "{text}");
        }
    }

    #[test]
    fn a_parent_is_found_by_its_number() {
        let parent = parent_of(Path::new("/proc"), std::process::id());
        assert_eq!(parent, std::os::unix::process::parent_id().into());
        assert_eq!(parent_of(Path::new("/nowhere"), 1), None);
    }
}
