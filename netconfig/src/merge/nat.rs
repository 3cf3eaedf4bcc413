//! NAT networks of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Problem, contains};
use crate::nat::{DhcpRange, Nat};
use crate::section::{NetworkSection, NetworkType};
use crate::settings::Address;

/// What makes bridges the NAT networks that the file names.
pub fn nats(sections: &BTreeMap<String, NetworkSection>) -> Result<BTreeMap<String, Nat>, Vec<Problem>> {
    let (mut nats, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, section) in sections.iter().filter(|(_, section)| section.kind == NetworkType::Nat) {
        let addresses: BTreeSet<Address> = section.addresses.iter().flatten().copied().collect();
        let mut report = |key: Option<&str>, message: &str, help| {
            let path = std::iter::once(name.as_str()).chain(key).map(str::to_owned).collect();
            problems.push(Problem { path, message: message.to_owned(), help: Some(help) });
        };
        if addresses.is_empty() {
            report(
                None,
                "A NAT network needs `addresses`: its guests go out by them",
                "such as addresses: [10.77.0.1/24]",
            );
        }
        let range = section.dhcp.as_ref().map(|dhcp| {
            let (first, last) = dhcp.range.split_once('-')?;
            Some(DhcpRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        });
        let dhcp = match range {
            None => None,
            Some(Some(range)) if range.first <= range.last => {
                let within = |guest: Ipv4Addr| addresses.iter().any(|own| contains(own, guest.into()));
                if !within(range.first) || !within(range.last) {
                    report(
                        Some("dhcp"),
                        "This range is not within the network of any of its addresses",
                        "such as range: \"10.77.0.50-10.77.0.150\" for 10.77.0.1/24",
                    );
                }
                Some(range)
            }
            Some(_) => {
                report(
                    Some("dhcp"),
                    "This is no range of addresses",
                    "write the first and the last, such as \"10.77.0.50-10.77.0.150\"",
                );
                None
            }
        };
        let others = sections.keys().filter(|other| *other != name).cloned().collect();
        let isolated = section.isolated.unwrap_or(false);
        nats.insert(name.clone(), Nat { addresses, dhcp, isolated, others });
    }
    if problems.is_empty() { Ok(nats) } else { Err(problems) }
}
