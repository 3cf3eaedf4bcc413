//! An address by DHCP for the box itself: by the box's own client, where there is one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::tool::{self, Running};

/// How long a client may take to go into the background, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// A DHCP client of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DhcpTool {
    /// ISC's, of the Debian package isc-dhcp-client.
    Dhclient,
    /// busybox's.
    Udhcpc,
    /// systemd-networkd is running: its own files say where it asks.
    Networkd,
    /// NetworkManager is running: its connections say where it asks.
    NetworkManager,
}

impl fmt::Display for DhcpTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dhclient => "dhclient",
            Self::Udhcpc => "udhcpc",
            Self::Networkd => "systemd-networkd",
            Self::NetworkManager => "NetworkManager",
        })
    }
}

/// A DHCP client could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// None that can be started for one link.
    #[error("{0}: dhcp4 needs a DHCP client: install the Debian package isc-dhcp-client or udhcpc")]
    NoTool(String),
    /// It failed.
    #[error("{link}: {doing}: {said}")]
    Failed {
        /// The link's name.
        link: String,
        /// What was being done.
        doing: String,
        /// What it said.
        said: String,
    },
}

/// What asks for addresses on this box; who is running before who could be started. `root` is `/`, or a recorded folder.
pub fn dhcp_tools(root: &Path) -> Vec<DhcpTool> {
    let runs = |folder: &str| root.join(folder).exists();
    let has = |program: &str| {
        ["usr/sbin", "sbin", "usr/bin", "bin"].iter().any(|folder| root.join(folder).join(program).exists())
    };
    let tools = [
        (DhcpTool::Networkd, runs("run/systemd/netif/state")),
        (DhcpTool::NetworkManager, runs("run/NetworkManager/devices")),
        (DhcpTool::Dhclient, has("dhclient")),
        (DhcpTool::Udhcpc, has("udhcpc")),
    ];
    tools.into_iter().filter(|(_, there)| *there).map(|(tool, _)| tool).collect()
}

/// The client that can be started for one link of this box.
pub fn dhcp_tool() -> Option<DhcpTool> {
    let startable = |tool: &DhcpTool| matches!(tool, DhcpTool::Dhclient | DhcpTool::Udhcpc);
    dhcp_tools(Path::new("/")).into_iter().find(startable)
}

/// The clients that we started, with their files in a folder.
pub struct DhcpClients {
    folder: PathBuf,
    client: Option<(DhcpTool, PathBuf)>,
}

impl DhcpClients {
    /// Clients whose pid files are in `folder`, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let client = dhcp_tool().and_then(|tool| {
            let name = if tool == DhcpTool::Dhclient { "dhclient" } else { "udhcpc" };
            Some((tool, tool::find(name)?))
        });
        Self { folder: folder.into(), client }
    }

    /// With this program as their client, which is one of ISC's or busybox's.
    #[must_use]
    pub fn with_client(self, tool: DhcpTool, program: impl Into<PathBuf>) -> Self {
        Self { client: Some((tool, program.into())), ..self }
    }

    /// What is started; none where the box has no client.
    pub fn client(&self) -> Option<DhcpTool> {
        self.client.as_ref().map(|(tool, _)| *tool)
    }

    /// Links on which one that we started asks.
    pub fn links(&self) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let links = names.filter_map(|name| name.strip_suffix(".pid").map(str::to_owned));
        Ok(links.filter(|link| self.is_running(link)).collect())
    }

    /// Asks for an address on `link`, now and on; one that asks already goes on. It has asked once when this returns, not
    /// necessarily been answered.
    pub fn start(&self, link: &str) -> Result<(), DhcpError> {
        if self.is_running(link) {
            return Ok(());
        }
        let failed = |said: String| DhcpError::Failed {
            link: link.to_owned(),
            doing: "starting its DHCP client".to_owned(),
            said,
        };
        fs::create_dir_all(&self.folder).map_err(|error| failed(error.to_string()))?;
        let (tool, program) = self.client.as_ref().ok_or_else(|| DhcpError::NoTool(link.to_owned()))?;
        let pid_file = self.pid_file(link).display().to_string();
        let leases = self.folder.join(format!("{link}.leases")).display().to_string();
        let arguments = match tool {
            // In the background at once, so that a network without a server holds nobody up.
            DhcpTool::Dhclient => vec!["-4", "-nw", "-pf", &pid_file, "-lf", &leases, link],
            // A server may look for 3 seconds whether an address is another's before it offers it.
            _ => vec!["-b", "-S", "-t", "6", "-T", "1", "-A", "5", "-p", &pid_file, "-i", link],
        };
        let output = tool::start(program, &arguments).map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(tool::said(&output)));
        }
        // What goes on in the background writes its number only once it is there.
        let end = Instant::now() + PATIENCE;
        while !self.is_running(link) {
            if Instant::now() >= end {
                return Err(failed(format!("it ended: {}", tool::said(&output))));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Asks no more; what was given stays on the link.
    pub fn stop(&self, link: &str) -> Result<(), DhcpError> {
        let failed = |error: io::Error| DhcpError::Failed {
            link: link.to_owned(),
            doing: "stopping its DHCP client".to_owned(),
            said: error.to_string(),
        };
        if let Some(running) = self.running(link) {
            running.stop().map_err(failed)?;
        }
        for path in [self.pid_file(link), self.folder.join(format!("{link}.leases"))] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// One that we started asks there.
    pub fn is_running(&self, link: &str) -> bool {
        self.running(link).is_some()
    }

    fn running(&self, link: &str) -> Option<Running> {
        let pid_file = self.pid_file(link);
        // Its pid file is one of its arguments.
        Running::find(&pid_file, &pid_file.display().to_string())
    }

    fn pid_file(&self, link: &str) -> PathBuf {
        self.folder.join(format!("{link}.pid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_comes_before_who_could_be_started() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(dhcp_tools(root.path()), []);
        for path in
            ["sbin/dhclient", "usr/bin/udhcpc", "run/systemd/netif/state", "run/NetworkManager/devices"]
        {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let all = [DhcpTool::Networkd, DhcpTool::NetworkManager, DhcpTool::Dhclient, DhcpTool::Udhcpc];
        assert_eq!(dhcp_tools(root.path()), all);
    }
}
