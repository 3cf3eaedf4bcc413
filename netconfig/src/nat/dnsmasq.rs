//! DHCP and DNS on a NAT network, by a dnsmasq of its own.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{DhcpRange, Nat, NatError, file};
use crate::tool::{self, Running};

/// How long a guest may keep its address unasked.
const LEASE: &str = "12h";

/// The dnsmasq of one network, with its files in a folder.
pub(super) struct Dnsmasq<'a> {
    pub(super) network: &'a str,
    pub(super) folder: PathBuf,
}

impl Dnsmasq<'_> {
    /// Has it run as `wanted`, and stops it where no DHCP is.
    pub(super) fn realize(&self, wanted: &Nat) -> Result<(), NatError> {
        let Some(config) = self.config(wanted) else { return self.stop() };
        let path = self.path("dnsmasq.conf");
        if self.running().is_some() && fs::read_to_string(&path).is_ok_and(|now| now == config) {
            return Ok(());
        }
        let program = tool::find("dnsmasq").ok_or_else(|| NatError::Missing {
            network: self.network.to_owned(),
            program: "dnsmasq",
            package: "dnsmasq-base",
        })?;
        self.stop()?;
        tool::write(&path, &config).map_err(|error| file(self.network, "writing", &path, error))?;
        // It goes on in the background once it serves, or says why it does not.
        let failed = |said: String| NatError::Failed {
            network: self.network.to_owned(),
            doing: "starting dnsmasq for it".to_owned(),
            said,
        };
        let output = tool::start(&program, &[&self.mark()]).map_err(|error| failed(error.to_string()))?;
        if output.status.success() { Ok(()) } else { Err(failed(tool::said(&output))) }
    }

    pub(super) fn stop(&self) -> Result<(), NatError> {
        let stopped = self.running().map_or(Ok(()), Running::stop);
        stopped.map_err(|error| NatError::Failed {
            network: self.network.to_owned(),
            doing: "stopping its dnsmasq".to_owned(),
            said: error.to_string(),
        })?;
        for name in ["dnsmasq.conf", "dnsmasq.pid"] {
            let path = self.path(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file(self.network, "removing", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What it is to serve, in words.
    pub(super) fn wanted(&self, wanted: Option<&Nat>) -> String {
        match wanted.and_then(|wanted| wanted.dhcp) {
            Some(DhcpRange { first, last }) => format!("{first}-{last}"),
            None => "none".to_owned(),
        }
    }

    /// What it serves, in the same words when it is as wanted.
    pub(super) fn actual(&self, wanted: Option<&Nat>) -> String {
        let running = self.running().is_some();
        let config = wanted.and_then(|wanted| self.config(wanted));
        match (config, fs::read_to_string(self.path("dnsmasq.conf")).ok()) {
            (Some(_), _) if !running => "dnsmasq does not run".to_owned(),
            (Some(config), Some(now)) if config == now => self.wanted(wanted),
            (None, _) if !running => "none".to_owned(),
            _ => "another range or other files".to_owned(),
        }
    }

    fn running(&self) -> Option<Running> {
        Running::find(&self.path("dnsmasq.pid"), &self.mark())
    }

    /// Its argument, by which it is known.
    fn mark(&self) -> String {
        format!("--conf-file={}", self.path("dnsmasq.conf").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn config(&self, nat: &Nat) -> Option<String> {
        let DhcpRange { first, last } = nat.dhcp?;
        let (own, mask) = nat.reaching(first)?;
        let (network, folder) = (self.network, self.folder.display());
        let many = last.to_bits().saturating_sub(first.to_bits()).saturating_add(1);
        Some(format!(
            "# Written by Throughway.\n\
             interface={network}\n\
             except-interface=lo\n\
             bind-dynamic\n\
             pid-file={folder}/dnsmasq.pid\n\
             dhcp-leasefile={folder}/leases\n\
             dhcp-range={first},{last},{mask},{LEASE}\n\
             dhcp-option=option:router,{own}\n\
             dhcp-lease-max={many}\n\
             dhcp-authoritative\n\
             dhcp-no-override\n"
        ))
    }
}
