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

impl Owner {
    /// How this owner is told to leave the link `name` alone, as a command that leaves its addresses where they are; none where
    /// he does not touch it while the box runs.
    pub fn release(&self, name: &str) -> Option<String> {
        // Not `networkctl reload`, nor NetworkManager's reload alone: both take a link's addresses away as they let go of it.
        match self {
            Self::Networkd { .. } => Some(format!(
                "have systemd-networkd leave it alone: printf '[Match]\\nName={name}\\n\\n[Link]\\nUnmanaged=yes\\n' \
                 >/etc/systemd/network/00-throughway-{name}.network && systemctl restart systemd-networkd"
            )),
            Self::NetworkManager { .. } => Some(format!(
                "have NetworkManager leave it alone: nmcli device set {name} managed no && printf \
                 '[keyfile]\\nunmanaged-devices+=interface-name:{name}\\n' \
                 >/etc/NetworkManager/conf.d/throughway-{name}.conf && nmcli general reload"
            )),
            Self::Ifupdown => None,
        }
    }
}

/// Who manages the link `name`, whose number is `index`; `root` is `/`, or a folder with a recorded `run`.
///
/// A program that is not running manages nothing, whatever it left behind: who starts later finds its own files.
pub fn owner(root: &Path, name: &str, index: u32) -> Option<Owner> {
    let networkd = || networkd(root, index).filter(|_| runs(root, "systemd-network"));
    let network_manager = || network_manager(root, index).filter(|_| runs(root, "NetworkManager"));
    networkd().or_else(network_manager).or_else(|| ifupdown(root, name))
}

/// Whether a program runs, by the name of its process (15 letters at most); where nothing is known of processes, it may.
fn runs(root: &Path, name: &str) -> bool {
    let Ok(processes) = fs::read_dir(root.join("proc")) else { return true };
    let is_it = |entry: fs::DirEntry| fs::read(entry.path().join("comm")).ok();
    processes.flatten().filter_map(is_it).any(|comm| comm.trim_ascii_end() == name.as_bytes())
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
    let external = connection.as_ref().is_some_and(|connection| is_external(root, connection));
    (managed && !external).then_some(Owner::NetworkManager { connection })
}

/// `NetworkManager/system-connections/*.nmconnection`: a link that somebody else has set gets a connection that only says so
/// ("connected (externally)"), and is left as it is.
fn is_external(root: &Path, connection: &str) -> bool {
    let files =
        fs::read_dir(root.join("run/NetworkManager/system-connections")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read(file.path()).ok()).any(|text| {
        let text = String::from_utf8_lossy(&text);
        let (mut section, mut is_it, mut external) = ("", false, false);
        for line in text.lines().map(str::trim) {
            match (section, line) {
                (_, line) if line.starts_with('[') => section = line,
                ("[connection]", line) => is_it |= line.strip_prefix("uuid=") == Some(connection),
                ("[.nmmeta]", "external=true") => external = true,
                _ => {}
            }
        }
        is_it && external
    })
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
            (
                "run/NetworkManager/devices/10",
                "[device]\nmanaged=true\nperm-hw-addr-fake=BA:A4:88:FC:53:CC\n\
                 connection-uuid=82d2307b-8ea0-4c6a-92ce-4a4c030eff34\nnm-owned=false\n",
            ),
            (
                "run/NetworkManager/system-connections/br0.nmconnection",
                "[connection]\nid=br0\nuuid=82d2307b-8ea0-4c6a-92ce-4a4c030eff34\ntype=bridge\nautoconnect=false\n\
                 interface-name=br0\n\n[bridge]\nstp=false\n\n[.nmmeta]\nnm-generated=true\nvolatile=true\nexternal=true\n",
            ),
            (
                "run/NetworkManager/system-connections/Wired connection 2.nmconnection",
                "[connection]\nid=Wired connection 2\nuuid=5be0d7de-5b37-3a33-94f7-45619d3bc4c6\ntype=ethernet\n\n\
                 [.nmmeta]\nnm-generated=true\n",
            ),
            (
                "run/NetworkManager/devices/11",
                "[device]\nmanaged=true\nconnection-uuid=5be0d7de-5b37-3a33-94f7-45619d3bc4c6\n",
            ),
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
        let by_itself = "NetworkManager (connection 5be0d7de-5b37-3a33-94f7-45619d3bc4c6)";
        assert_eq!(of("free0", 11).unwrap(), by_itself);
        assert_eq!(of("br0", 10), None, "it says that somebody else has set it");
        assert_eq!(of("eno1", 9).unwrap(), "ifupdown (/etc/network/interfaces)");
        assert_eq!(of("eno2", 9).unwrap(), "ifupdown (/etc/network/interfaces)");
        for (name, index) in [("other", 4), ("lo", 1), ("tap0", 6), ("tap1", 7), ("eno", 9), ("office", 9)] {
            assert_eq!(of(name, index), None, "{name}");
        }
        assert_eq!(owner(&root.path().join("nowhere"), "eno1", 2), None);
    }

    #[test]
    fn who_does_not_run_keeps_nothing() {
        let root = recorded();
        let of = |index| owner(root.path(), "x", index).is_some();
        assert!(of(2) && of(3));
        let process = root.path().join("proc/7");
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), "systemd-network\n").unwrap();
        assert!(of(2) && !of(3));
        fs::write(process.join("comm"), "NetworkManager\n").unwrap();
        assert!(!of(2) && of(3));
    }

    #[test]
    fn bytes_that_are_no_text_are_nobodys() {
        let root = recorded();
        fs::write(root.path().join("run/NetworkManager/devices/8"), [0xff, 0xfe, b'\n', b'[', 0]).unwrap();
        assert_eq!(owner(root.path(), "x", 8), None);
    }
}
