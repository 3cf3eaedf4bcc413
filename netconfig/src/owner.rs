//! Who manages a link beside us, by what they write below `/run`. To be told to the administrator, and not to be fought.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A program that keeps a link as its own files say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// systemd-networkd, and the file by which it does.
    Networkd {
        /// Such as `/etc/systemd/network/10-lan.network`.
        file: String,
    },
    /// NetworkManager, and its name of the connection, where it tells one.
    NetworkManager {
        /// A UUID.
        connection: Option<String>,
    },
    /// ifupdown, by `/etc/network/interfaces`.
    Ifupdown,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Networkd { file } => write!(f, "systemd-networkd ({file})"),
            Self::NetworkManager { connection: Some(connection) } => {
                write!(f, "NetworkManager (connection {connection})")
            }
            Self::NetworkManager { connection: None } => f.write_str("NetworkManager"),
            Self::Ifupdown => f.write_str("ifupdown (/etc/network/interfaces)"),
        }
    }
}

/// Who manages the link `name`, whose number is `index`; `root` is `/`, or a folder with a recorded `run`.
///
/// A program that is not running manages nothing, whatever it left behind: who starts later finds its own files.
pub fn owner(root: &Path, name: &str, index: u32) -> Option<Owner> {
    networkd(root, index).or_else(|| network_manager(root, index)).or_else(|| ifupdown(root, name))
}

/// `systemd/netif/links/INDEX` (sd-network): shell assignments, `NETWORK_FILE` among them for what it manages.
fn networkd(root: &Path, index: u32) -> Option<Owner> {
    let text = read(root, &format!("run/systemd/netif/links/{index}"))?;
    // Still on its way to a file it has none, and "unmanaged" is a state like others.
    let unmanaged = value(&text, "ADMIN_STATE").is_some_and(|state| state == "unmanaged");
    let file = value(&text, "NETWORK_FILE").filter(|file| !file.is_empty() && !unmanaged)?;
    Some(Owner::Networkd { file: file.to_owned() })
}

/// `NetworkManager/devices/INDEX`: a key file with a section `device`.
fn network_manager(root: &Path, index: u32) -> Option<Owner> {
    let text = read(root, &format!("run/NetworkManager/devices/{index}"))?;
    let mut section = "";
    let mut managed = false;
    let mut connection = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if section == "device" {
            match line.split_once('=') {
                Some(("managed", value)) => managed = value == "true",
                Some(("connection-uuid", value)) if !value.is_empty() => connection = Some(value.to_owned()),
                _ => {}
            }
        }
    }
    managed.then_some(Owner::NetworkManager { connection })
}

/// `network/ifstate`: a line `LINK=NAME` for each that is up.
fn ifupdown(root: &Path, name: &str) -> Option<Owner> {
    let text = read(root, "run/network/ifstate")?;
    let up = text.lines().filter_map(|line| line.split('=').next()).any(|link| link.trim() == name);
    // Each box has this one, and who changes it is on his own anyway.
    (up && name != "lo").then_some(Owner::Ifupdown)
}

fn read(root: &Path, path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(root.join(path)).ok()?).into_owned())
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded on Debian 12 with each of them.
    fn recorded() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            (
                "run/systemd/netif/links/2",
                "# This is private data. Do not parse.\nADMIN_STATE=configured\nOPER_STATE=routable\n\
                 CARRIER_STATE=carrier\nADDRESS_STATE=routable\nIPV4_ADDRESS_STATE=routable\n\
                 NETWORK_FILE=/etc/systemd/network/10-lan.network\nDNS=10.0.0.1\n",
            ),
            (
                "run/systemd/netif/links/3",
                "# This is private data. Do not parse.\nADMIN_STATE=unmanaged\nOPER_STATE=off\nCARRIER_STATE=off\n",
            ),
            ("run/systemd/netif/links/6", "ADMIN_STATE=pending\nOPER_STATE=off\nNETWORK_FILE=\n"),
            (
                "run/NetworkManager/devices/3",
                "\n[device]\nmanaged=true\nconnection-uuid=8c1f2a3e-52b7-4ad0-9f6d-2a0d3f3f7f31\nnm-owned=0\n\
                 route-metric-default-aspired=100\n",
            ),
            ("run/NetworkManager/devices/4", "[device]\nmanaged=false\n"),
            ("run/NetworkManager/devices/7", "[other]\nmanaged=true\n"),
            ("run/network/ifstate", "lo=lo\neno1=eno1\neno2=office\n"),
        ];
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn each_of_them_is_known_by_what_it_writes() {
        let root = recorded();
        let of = |name: &str, index| owner(root.path(), name, index).map(|owner| owner.to_string());
        assert_eq!(of("lan", 2).unwrap(), "systemd-networkd (/etc/systemd/network/10-lan.network)");
        assert_eq!(of("wan", 3).unwrap(), "NetworkManager (connection 8c1f2a3e-52b7-4ad0-9f6d-2a0d3f3f7f31)");
        assert_eq!(of("eno1", 9).unwrap(), "ifupdown (/etc/network/interfaces)");
        assert_eq!(of("eno2", 9).unwrap(), "ifupdown (/etc/network/interfaces)");
        for (name, index) in [("other", 4), ("lo", 1), ("tap0", 6), ("tap1", 7), ("eno", 9), ("office", 9)] {
            assert_eq!(of(name, index), None, "{name}");
        }
        assert_eq!(owner(&root.path().join("nowhere"), "eno1", 2), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_nobodys() {
        let root = recorded();
        fs::write(root.path().join("run/NetworkManager/devices/8"), [0xff, 0xfe, b'\n', b'[', 0]).unwrap();
        assert_eq!(owner(root.path(), "x", 8), None);
    }
}
