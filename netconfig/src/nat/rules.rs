//! The table of one NAT network in nftables.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Output;

use super::{Nat, NatError, netmask};
use crate::settings::Address;
use crate::tool;

/// nft(8), for the table of one network.
pub(super) struct Nft<'a> {
    network: &'a str,
    program: PathBuf,
}

impl<'a> Nft<'a> {
    pub(super) fn find(network: &'a str) -> Result<Self, NatError> {
        let missing =
            || NatError::Missing { network: network.to_owned(), program: "nft", package: "nftables" };
        Ok(Self { network, program: tool::find("nft").ok_or_else(missing)? })
    }

    /// Puts the whole table in the place of the one that is there, in one go.
    pub(super) fn apply(&self, wanted: &Nat) -> Result<(), NatError> {
        let output = self.run(&["-f", "-"], &text(self.network, wanted))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(self.failed("replacing its nftables rules", &output))
        }
    }

    /// The table as the kernel has it; none when it is not there.
    pub(super) fn list(&self) -> Result<Option<String>, NatError> {
        let output = self.run(&["--stateless", "list", "table", "inet", &table(self.network)], "")?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let said = tool::said(&output);
        // Its words for ENOENT; it has no exit code of its own for that.
        if said.contains("No such file or directory") {
            return Ok(None);
        }
        Err(self.failed("reading its nftables rules", &output))
    }

    pub(super) fn remove(&self) -> Result<(), NatError> {
        let table = table(self.network);
        // Adding it first makes removing it succeed in either case.
        let output = self.run(&["-f", "-"], &format!("table inet {table}\ndelete table inet {table}\n"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(self.failed("removing its nftables rules", &output))
        }
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<Output, NatError> {
        tool::run(&self.program, arguments, input).map_err(|error| NatError::Failed {
            network: self.network.to_owned(),
            doing: "running nft".to_owned(),
            said: error.to_string(),
        })
    }

    fn failed(&self, doing: &str, output: &Output) -> NatError {
        let said = tool::said(output);
        NatError::Failed { network: self.network.to_owned(), doing: doing.to_owned(), said }
    }
}

fn table(network: &str) -> String {
    format!("throughway-{network}")
}

/// What replaces the table of `network`.
pub(super) fn text(network: &str, nat: &Nat) -> String {
    let table = table(network);
    let mut text = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
    text.push_str("\tchain postrouting {\n\t\ttype nat hook postrouting priority 100; policy accept;\n");
    for (family, list) in subnets(nat) {
        if !list.is_empty() {
            let _ = writeln!(
                text,
                "\t\t{family} saddr {{ {} }} oifname != \"{network}\" masquerade",
                list.join(", ")
            );
        }
    }
    text.push_str("\t}\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n");
    let mut rule = |rule: String| {
        let _ = writeln!(text, "\t\t{rule}");
    };
    rule(format!("iifname != \"{network}\" oifname != \"{network}\" accept"));
    // Between its guests: seen here where the kernel has bridges ask (br_netfilter).
    rule(format!("iifname \"{network}\" oifname \"{network}\" accept"));
    for (family, list) in subnets(nat) {
        if list.is_empty() {
            let family = if family == "ip" { "ipv4" } else { "ipv6" };
            rule(format!("iifname \"{network}\" meta nfproto {family} drop"));
        } else {
            rule(format!("iifname \"{network}\" {family} saddr != {{ {} }} drop", list.join(", ")));
        }
    }
    rule("ct state established,related accept".to_owned());
    for other in &nat.others {
        if nat.isolated {
            rule(format!("iifname \"{network}\" oifname \"{other}\" drop"));
        } else {
            rule(format!("iifname \"{other}\" oifname \"{network}\" accept"));
        }
    }
    rule(format!("oifname \"{network}\" drop"));
    text.push_str("\t}\n}\n");
    text
}

/// Its subnets, by nft's name of their family.
fn subnets(nat: &Nat) -> [(&'static str, Vec<String>); 2] {
    let mut lists = [("ip", Vec::new()), ("ip6", Vec::new())];
    let [(_, v4), (_, v6)] = &mut lists;
    for Address { address, prefix } in &nat.addresses {
        let (list, subnet) = match address {
            IpAddr::V4(address) => (&mut *v4, format!("{}/{prefix}", *address & netmask(*prefix))),
            IpAddr::V6(address) => {
                let hosts = u128::MAX.checked_shr((*prefix).into()).unwrap_or(0);
                (&mut *v6, format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(address.to_bits() & !hosts)))
            }
        };
        if !list.contains(&subnet) {
            list.push(subnet);
        }
    }
    lists
}

/// The first line in which two tables differ.
pub(super) fn first_difference(accepted: Option<&str>, actual: Option<&str>) -> Option<(String, String)> {
    if accepted == actual {
        return None;
    }
    let (Some(accepted), Some(actual)) = (accepted, actual) else {
        let shown = |text: Option<&str>| text.map_or("none", |_| "a table").to_owned();
        return Some((shown(accepted), shown(actual)));
    };
    let mut lines = (accepted.lines(), actual.lines());
    loop {
        match (lines.0.next(), lines.1.next()) {
            (None, None) => return None,
            (accepted, actual) if accepted == actual => {}
            (accepted, actual) => {
                let shown = |line: Option<&str>| line.map_or("the end", str::trim).to_owned();
                return Some((shown(accepted), shown(actual)));
            }
        }
    }
}
