//! NAT networks: a bridge whose guests reach the rest by the box's own addresses, with DHCP and DNS on it.
//!
//! The bridge itself is a link like others ([`Network::realize`](crate::Network::realize)); this is what makes a NAT network of
//! it: one table of nftables, forwarding by the kernel, and a dnsmasq of its own. All of it is written down in a folder, so that
//! it is found again by another process, and taken back.

mod dnsmasq;
mod forwarding;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Difference;
use crate::settings::Address;
use crate::tool;

/// What makes a bridge a NAT network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Nat {
    /// The box's own addresses on it, and by their prefixes its subnets.
    pub addresses: BTreeSet<Address>,
    /// Addresses for guests; without them there is no DHCP and no DNS.
    pub dhcp: Option<DhcpRange>,
    /// It reaches none of `others`.
    pub isolated: bool,
    /// Links of the other networks of the file. From anywhere else nobody gets in unasked.
    pub others: BTreeSet<String>,
}

/// From the first address to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DhcpRange {
    /// The first.
    pub first: Ipv4Addr,
    /// The last.
    pub last: Ipv4Addr,
}

/// A NAT network could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// A program is not there.
    #[error(
        "{network}: a NAT network needs {program}, which is not there: install the Debian package {package}"
    )]
    Missing {
        /// The bridge's name.
        network: String,
        /// The program.
        program: &'static str,
        /// What has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{network}: {doing}: {said}")]
    Failed {
        /// The bridge's name.
        network: String,
        /// What was being done.
        doing: String,
        /// What it said.
        said: String,
    },
    /// What is wanted cannot be.
    #[error("{network}: {problem}")]
    Invalid {
        /// The bridge's name.
        network: String,
        /// What is wrong.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{network}: {doing} {}: {error}", path.display())]
    File {
        /// The bridge's name.
        network: String,
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The NAT networks of this box, or of this network namespace of it.
pub struct Nats {
    folder: PathBuf,
}

impl Nats {
    /// NAT networks that are written down in `folder`, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// What was made, by the bridge's name; whether it still is so, [`Nats::differences`] tells.
    pub fn settings(&self) -> Result<BTreeMap<String, Nat>, NatError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            result => result.map_err(|error| file("all networks", "reading", &self.folder, error))?,
        };
        let mut nats = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|error| file("all networks", "reading", &self.folder, error))?;
            if let Ok(name) = entry.file_name().into_string()
                && let Some(nat) = self.written(&name)?
            {
                nats.insert(name, nat);
            }
        }
        Ok(nats)
    }

    /// Makes a bridge a NAT network as `wanted`, or one no more: the same call with what [`Nats::settings`] had of it undoes that.
    pub fn realize(&self, name: &str, wanted: Option<&Nat>) -> Result<(), NatError> {
        check(name, wanted)?;
        let Some(wanted) = wanted else { return self.remove(name) };
        let folder = self.folder_of(name);
        fs::create_dir_all(&folder).map_err(|error| file(name, "making", &folder, error))?;
        let nft = rules::Nft::find(name)?;
        // Written down before it is done: what is half done is found, and taken back.
        let text = serde_json::to_string_pretty(wanted).unwrap_or_default();
        let path = folder.join(SETTINGS);
        tool::write(&path, &text).map_err(|error| file(name, "writing", &path, error))?;
        nft.apply(wanted)?;
        let path = folder.join(RULES);
        let rules = nft.list()?.unwrap_or_default();
        tool::write(&path, &rules).map_err(|error| file(name, "writing", &path, error))?;
        self.forwarding(name).turn_on(wanted.has_v6())?;
        self.dnsmasq(name).realize(wanted)
    }

    /// What of a NAT network is not as wanted (`None`: none).
    pub fn differences(&self, name: &str, wanted: Option<&Nat>) -> Result<Vec<Difference>, NatError> {
        check(name, wanted)?;
        let mut found = Vec::new();
        let mut different = |field: &str, wanted: String, actual: String| {
            if wanted != actual {
                found.push(Difference { field: field.to_owned(), wanted, actual });
            }
        };
        let actual = self.written(name)?;
        different("nat", in_words(wanted), in_words(actual.as_ref()));
        let rules = match rules::Nft::find(name) {
            Ok(nft) => nft.list()?,
            // Without the program there are no rules of ours.
            Err(_) if wanted.is_none() => None,
            Err(error) => return Err(error),
        };
        let accepted = wanted.and_then(|_| fs::read_to_string(self.folder_of(name).join(RULES)).ok());
        let first_other = rules::first_difference(accepted.as_deref(), rules.as_deref());
        if let Some((accepted, actual)) = first_other {
            different("rules", accepted, actual);
        }
        if let Some(wanted) = wanted {
            let on = self.forwarding(name).is_on(wanted.has_v6());
            different("forwarding", "on".to_owned(), if on { "on" } else { "off" }.to_owned());
        }
        let dnsmasq = self.dnsmasq(name);
        different("dhcp", dnsmasq.wanted(wanted), dnsmasq.actual(wanted));
        Ok(found)
    }

    fn remove(&self, name: &str) -> Result<(), NatError> {
        let folder = self.folder_of(name);
        if !folder.exists() {
            return Ok(());
        }
        self.dnsmasq(name).stop()?;
        match rules::Nft::find(name) {
            Ok(nft) => nft.remove()?,
            Err(error) if folder.join(RULES).exists() => return Err(error),
            Err(_) => {}
        }
        fs::remove_dir_all(&folder).map_err(|error| file(name, "removing", &folder, error))?;
        if self.settings()?.is_empty() {
            self.forwarding(name).put_back()?;
        }
        Ok(())
    }

    fn written(&self, name: &str) -> Result<Option<Nat>, NatError> {
        let path = self.folder_of(name).join(SETTINGS);
        match fs::read(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(file(name, "reading", &path, error)),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| file(name, "reading", &path, io::Error::other(error))),
        }
    }

    fn folder_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn forwarding<'a>(&self, name: &'a str) -> forwarding::Forwarding<'a> {
        forwarding::Forwarding { network: name, note: self.folder.join(FORWARDING) }
    }

    fn dnsmasq<'a>(&self, name: &'a str) -> dnsmasq::Dnsmasq<'a> {
        dnsmasq::Dnsmasq { network: name, folder: self.folder_of(name) }
    }
}

/// Files below the folder: of all networks, and of each in a folder of its own.
const FORWARDING: &str = "forwarding.json";
const SETTINGS: &str = "nat.json";
const RULES: &str = "rules.nft";

impl Nat {
    fn has_v6(&self) -> bool {
        self.addresses.iter().any(|address| address.address.is_ipv6())
    }

    /// The address and prefix that reach `guest`.
    fn reaching(&self, guest: Ipv4Addr) -> Option<(Ipv4Addr, Ipv4Addr)> {
        self.addresses.iter().find_map(|own| match own.address {
            IpAddr::V4(address) => {
                let mask = netmask(own.prefix);
                (address & mask == guest & mask).then_some((address, mask))
            }
            IpAddr::V6(_) => None,
        })
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(!u32::MAX.checked_shr(prefix.into()).unwrap_or(0))
}

/// Names and ranges that are safe to write into other programs' files.
fn check(name: &str, wanted: Option<&Nat>) -> Result<(), NatError> {
    let invalid = |problem: String| Err(NatError::Invalid { network: name.to_owned(), problem });
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(plain) || name.starts_with('.') || name == FORWARDING {
        return invalid(
            "the name of a NAT network has letters, digits, dashes, dots and underscores only".to_owned(),
        );
    }
    let Some(wanted) = wanted else { return Ok(()) };
    let quotable = |c: char| !c.is_control() && !matches!(c, '"' | '\\' | '*');
    if let Some(other) = wanted.others.iter().find(|other| !other.chars().all(quotable)) {
        return invalid(format!("`{other}` is no name of a network"));
    }
    if wanted.addresses.is_empty() {
        return invalid("a NAT network needs an address of the box, such as 10.77.0.1/24".to_owned());
    }
    let Some(DhcpRange { first, last }) = wanted.dhcp else { return Ok(()) };
    let ends = (wanted.reaching(first), wanted.reaching(last));
    let (Some(own), Some(_)) = ends else {
        return invalid(format!("its addresses reach no guest that has one of {first}-{last}"));
    };
    if first > last || ends.0 != ends.1 {
        return invalid(format!("{first}-{last} are no addresses from a first to a last in one network"));
    }
    if (first..=last).contains(&own.0) {
        return invalid(format!("{first}-{last} has the box's own address {}", own.0));
    }
    Ok(())
}

fn in_words(nat: Option<&Nat>) -> String {
    let Some(nat) = nat else { return "none".to_owned() };
    let addresses: Vec<String> = nat.addresses.iter().map(ToString::to_string).collect();
    let mut text = addresses.join(", ");
    if let Some(DhcpRange { first, last }) = nat.dhcp {
        text.push_str(&format!(", dhcp {first}-{last}"));
    }
    if nat.isolated {
        text.push_str(", isolated");
    }
    if !nat.others.is_empty() {
        let others: Vec<&str> = nat.others.iter().map(String::as_str).collect();
        text.push_str(&format!(", beside {}", others.join(", ")));
    }
    text
}

fn file(network: &str, doing: &'static str, path: &Path, error: io::Error) -> NatError {
    NatError::File { network: network.to_owned(), doing, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
