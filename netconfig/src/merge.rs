//! From what the file says and what is there to what shall be. Pure.
//!
//! What the file does not name is left alone: a bridge keeps its other ports, a link its other settings. Only a link's addresses
//! and a port's VLANs are all or nothing, as half of them would be of no use.

mod nat;
mod ports;

use std::collections::{BTreeMap, BTreeSet};

pub use nat::nats;

use crate::section::{Mode, NetworkSection, NetworkType};
use crate::settings::{Address, Bond, BondMode, Bridge, LinkKind, LinkSettings, MacvtapMode, VlanMembership};

/// The kernel's longest name of a link, in bytes (IFNAMSIZ without the NUL).
const LONGEST_NAME: usize = 15;

/// One thing that is wrong, at keys below `networks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Keys below `networks`.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<&'static str>,
}

/// What each link that the file names shall be, in an order in which it can be made so: what a link stands on comes before it.
pub fn merge(
    sections: &BTreeMap<String, NetworkSection>,
    current: &BTreeMap<String, LinkSettings>,
) -> Result<Vec<(String, LinkSettings)>, Vec<Problem>> {
    let mut merge = Merge { sections, current, wanted: BTreeMap::new(), problems: Vec::new() };
    merge.loops();
    let order = merge.order();
    for name in &order {
        if let Some(section) = sections.get(name) {
            merge.section(name, section);
        }
    }
    for (name, section) in sections {
        for (port, settings) in &section.ports {
            merge.port(name, section, port, settings);
        }
        if let Some(base) = &section.base_iface {
            merge.base(name, base);
        }
    }
    if !merge.problems.is_empty() {
        return Err(merge.problems);
    }
    let Merge { mut wanted, .. } = merge;
    // Ports that are no networks of the file themselves come last: their controllers are there by then.
    let mut ordered: Vec<_> =
        order.iter().filter_map(|name| Some((name.clone(), wanted.remove(name)?))).collect();
    ordered.extend(wanted);
    Ok(ordered)
}

struct Merge<'a> {
    sections: &'a BTreeMap<String, NetworkSection>,
    current: &'a BTreeMap<String, LinkSettings>,
    wanted: BTreeMap<String, LinkSettings>,
    problems: Vec<Problem>,
}

impl Merge<'_> {
    fn report(&mut self, path: &[&str], message: impl Into<String>, help: Option<&'static str>) {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        self.problems.push(Problem { path, message: message.into(), help });
    }

    /// Names of the file's networks, each after those that must be there first: its base, and the bridge or bond that it is a port
    /// of.
    fn order(&self) -> Vec<String> {
        let mut order = Vec::new();
        for name in self.sections.keys() {
            self.visit(name, &mut Vec::new(), &mut order);
        }
        order
    }

    fn visit(&self, name: &str, way: &mut Vec<String>, order: &mut Vec<String>) {
        let Some(section) = self.sections.get(name) else { return };
        if order.iter().chain(way.iter()).any(|done| done == name) {
            return;
        }
        way.push(name.to_owned());
        let controllers = self.sections.iter().filter(|(_, other)| other.ports.contains_key(name));
        let controllers: Vec<&String> = controllers.map(|(controller, _)| controller).collect();
        for below in section.base_iface.iter().chain(controllers) {
            self.visit(below, way, order);
        }
        way.pop();
        order.push(name.to_owned());
    }

    /// Networks that stand on themselves, by whatever is between: a base, or ports.
    fn loops(&mut self) {
        let sections = self.sections;
        let mut known = BTreeSet::new();
        for name in sections.keys() {
            let mut ways = vec![vec![name]];
            let mut seen = BTreeSet::new();
            while let Some(way) = ways.pop() {
                let section = way.last().and_then(|last| sections.get(*last)).into_iter();
                for below in section.flat_map(|section| section.base_iface.iter().chain(section.ports.keys()))
                {
                    if below == name && known.is_disjoint(&way.iter().copied().collect()) {
                        known.extend(way.iter().copied());
                        let text = way.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" -> ");
                        let help = Some("take one of them out of the others' base-iface or ports");
                        self.report(
                            &[name],
                            format!("This network stands on itself: {text} -> {name}"),
                            help,
                        );
                        break;
                    }
                    if seen.insert(below) {
                        ways.push([way.as_slice(), &[below]].concat());
                    }
                }
            }
        }
    }

    fn section(&mut self, name: &str, section: &NetworkSection) {
        if name.is_empty()
            || name.len() > LONGEST_NAME
            || name.contains(|c: char| c == '/' || c.is_whitespace())
        {
            let message = format!(
                "`{name}` cannot be a link's name: 1 to {LONGEST_NAME} bytes without blanks and slashes"
            );
            self.report(&[name], message, None);
        }
        self.keys(name, section);
        let current = self.current.get(name);
        let Some(kind) = self.kind(name, section, current.map(|current| &current.kind)) else { return };
        if let Some(LinkSettings { kind: LinkKind::Foreign(there), .. }) = current {
            let message =
                format!("A link of this name is there already, and it is no {}: {there}", section.kind);
            self.report(&[name], message, Some("take another name"));
            return;
        }
        let mut wanted = current
            .filter(|current| std::mem::discriminant(&current.kind) == std::mem::discriminant(&kind))
            .cloned()
            .unwrap_or_else(|| fresh(kind.clone()));
        wanted.kind = kind;
        wanted.up = true;
        if let Some(mtu) = section.mtu {
            wanted.mtu = mtu;
            if !(68..=65535).contains(&mtu) {
                self.report(&[name, "mtu"], format!("A link carries 68 to 65535 bytes, not {mtu}"), None);
            }
        }
        if let Some(mac) = section.mac_address {
            wanted.mac_address = Some(mac);
            if !mac.is_unicast() {
                self.report(
                    &[name, "mac-address"],
                    format!("{mac} is a group's address; a link needs one of its own"),
                    None,
                );
            }
        }
        self.addresses(name, section, &mut wanted);
        self.wanted.insert(name.to_owned(), wanted);
    }

    fn addresses(&mut self, name: &str, section: &NetworkSection, wanted: &mut LinkSettings) {
        if let Some(addresses) = &section.addresses {
            for (at, address) in addresses.iter().enumerate() {
                let elsewhere =
                    self.sections.iter().filter(|(other, _)| other.as_str() < name).find(|(_, other)| {
                        other.addresses.iter().flatten().any(|a| a.address == address.address)
                    });
                let index = format!("#{at}");
                if addresses.iter().take(at).any(|earlier| earlier.address == address.address) {
                    self.report(
                        &[name, "addresses", &index],
                        format!("{} is there twice", address.address),
                        None,
                    );
                } else if let Some((other, _)) = elsewhere {
                    let message = format!("{} is an address of `{other}` already", address.address);
                    self.report(&[name, "addresses", &index], message, None);
                }
            }
            // What DHCP gives comes beside them.
            if !section.dhcp4 {
                wanted.addresses.clear();
            }
            wanted.addresses.extend(addresses);
        }
        if let Some(gateway) = section.gateway {
            if !section.dhcp4 {
                wanted.gateways.clear();
            }
            wanted.gateways.insert(gateway);
            let reached = wanted.addresses.iter().any(|address| contains(address, gateway));
            if !reached && !section.dhcp4 {
                let help = Some("a gateway lies in the network of one of the addresses");
                self.report(
                    &[name, "gateway"],
                    format!("{gateway} is not reached from any address of `{name}`"),
                    help,
                );
            }
        }
    }

    /// Keys that mean nothing for the type.
    fn keys(&mut self, name: &str, section: &NetworkSection) {
        use NetworkType::{Bond, Bridge, Macvtap, Nat, Vlan};
        let given: [(&str, bool, &[NetworkType]); 13] = [
            ("stp", section.stp.is_some(), &[Bridge, Nat]),
            ("ageing-time", section.ageing_time.is_some(), &[Bridge, Nat]),
            ("vlan-filtering", section.vlan_filtering.is_some(), &[Bridge]),
            ("ports", !section.ports.is_empty(), &[Bridge, Bond]),
            ("guest-macs", !section.guest_macs.is_empty(), &[Bridge]),
            ("base-iface", section.base_iface.is_some(), &[Vlan, Macvtap]),
            ("id", section.id.is_some(), &[Vlan]),
            ("protocol", section.protocol.is_some(), &[Vlan]),
            ("mode", section.mode.is_some(), &[Bond, Macvtap]),
            ("miimon", section.miimon.is_some(), &[Bond]),
            ("dhcp", section.dhcp.is_some(), &[Nat]),
            ("isolated", section.isolated.is_some(), &[Nat]),
            ("dhcp4", section.dhcp4, &[Bridge, Vlan, Bond]),
        ];
        for (key, given, of) in given {
            if given && !of.contains(&section.kind) {
                let types: Vec<String> = of.iter().map(ToString::to_string).collect();
                let message =
                    format!("`{key}` means nothing for a {}: it is of {}", section.kind, types.join(" and "));
                self.report(&[name, key], message, None);
            }
        }
    }

    fn kind(&mut self, name: &str, section: &NetworkSection, current: Option<&LinkKind>) -> Option<LinkKind> {
        match section.kind {
            NetworkType::Bridge | NetworkType::Nat => {
                let was = match current {
                    Some(LinkKind::Bridge(bridge)) => *bridge,
                    _ => Bridge { stp: false, ageing_time: 300, vlan_filtering: false },
                };
                Some(LinkKind::Bridge(Bridge {
                    stp: section.stp.map_or(was.stp, |stp| stp.enabled),
                    ageing_time: section.ageing_time.unwrap_or(was.ageing_time),
                    vlan_filtering: section.vlan_filtering.unwrap_or(was.vlan_filtering),
                }))
            }
            NetworkType::Vlan => {
                let (base, id) = (section.base_iface.clone(), section.id);
                if base.is_none() || id.is_none() {
                    self.report(&[name], "A VLAN needs base-iface and id", None);
                }
                if id.is_some_and(|id| !is_vlan(id)) {
                    self.report(&[name, "id"], "A VLAN is 1 to 4094", None);
                }
                Some(LinkKind::Vlan { base: base?, id: id?, protocol: section.protocol.unwrap_or_default() })
            }
            NetworkType::Bond => {
                let was = match current {
                    Some(LinkKind::Bond(bond)) => *bond,
                    _ => Bond { mode: BondMode::BalanceRr, miimon: 100 },
                };
                let mode = section.mode.map_or(Some(was.mode), bond_mode);
                if mode.is_none() {
                    self.report(
                        &[name, "mode"],
                        "This is a mode of macvtaps, not of bonds",
                        Some("such as active-backup or 802.3ad"),
                    );
                }
                Some(LinkKind::Bond(Bond { mode: mode?, miimon: section.miimon.unwrap_or(was.miimon) }))
            }
            NetworkType::Macvtap => {
                let mode = section.mode.map_or(Some(MacvtapMode::Bridge), macvtap_mode);
                if mode.is_none() {
                    self.report(
                        &[name, "mode"],
                        "This is a mode of bonds, not of macvtaps",
                        Some("bridge, vepa, private or passthru"),
                    );
                }
                if section.base_iface.is_none() {
                    self.report(&[name], "A macvtap needs base-iface", None);
                }
                Some(LinkKind::Macvtap { base: section.base_iface.clone()?, mode: mode? })
            }
        }
    }

    /// What another link stands on must be there, and up.
    fn base(&mut self, name: &str, base: &str) {
        let Some(there) = self.wanted.get(base).or_else(|| self.current.get(base)) else {
            self.absent(&[name, "base-iface"], base);
            return;
        };
        let (mtu, mut wanted) = (there.mtu, there.clone());
        if let Some(own) = self.wanted.get_mut(name).filter(|own| own.mtu > mtu) {
            let more = own.mtu;
            // The kernel does so too where nobody asks for more.
            own.mtu = mtu;
            if self.sections.get(name).is_some_and(|section| section.mtu.is_some()) {
                let message = format!("{more} bytes do not fit through `{base}`, whose MTU is {mtu}");
                let help = Some("raise that of the link below, or lower this one");
                self.report(&[name, "mtu"], message, help);
            }
        }
        // Though nothing changes: what is named here is not given back.
        wanted.up = true;
        self.wanted.insert(base.to_owned(), wanted);
    }

    fn absent(&mut self, path: &[&str], name: &str) {
        // It is there, and what is wrong with it is said already.
        if self.sections.contains_key(name) {
            return;
        }
        let help = Some("`ip link` lists the host's interfaces");
        self.report(
            path,
            format!("There is no interface `{name}`, and no network of this file has the name"),
            help,
        );
    }
}

impl LinkSettings {
    /// A link of the host of which nothing else is known, for a look at a file without a host: everything fits through it.
    pub fn any() -> Self {
        Self { mtu: u32::MAX, ..fresh(LinkKind::Foreign("a link".to_owned())) }
    }
}

fn fresh(kind: LinkKind) -> LinkSettings {
    LinkSettings {
        vlans: match kind {
            LinkKind::Bridge(Bridge { vlan_filtering: true, .. }) => default_vlan(),
            _ => BTreeMap::new(),
        },
        kind,
        up: true,
        mtu: 1500,
        mac_address: None,
        controller: None,
        addresses: BTreeSet::new(),
        gateways: BTreeSet::new(),
        forwarded: BTreeSet::new(),
    }
}

/// What the kernel makes a port of a filtering bridge a member of (IFLA_BR_VLAN_DEFAULT_PVID).
fn default_vlan() -> BTreeMap<u16, VlanMembership> {
    BTreeMap::from([(1, VlanMembership { pvid: true, untagged: true })])
}

fn is_vlan(tag: u16) -> bool {
    (1..=4094).contains(&tag)
}

/// Whether an address lies in the network of another.
fn contains(network: &Address, address: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    let same = |one: u128, other: u128, bits: u32| {
        let apart = bits.saturating_sub(u32::from(network.prefix));
        one.checked_shr(apart).unwrap_or(0) == other.checked_shr(apart).unwrap_or(0)
    };
    match (network.address, address) {
        (V4(one), V4(other)) => same(u128::from(one.to_bits()), u128::from(other.to_bits()), 32),
        (V6(one), V6(other)) => same(one.to_bits(), other.to_bits(), 128),
        _ => false,
    }
}

fn bond_mode(mode: Mode) -> Option<BondMode> {
    Some(match mode {
        Mode::BalanceRr => BondMode::BalanceRr,
        Mode::ActiveBackup => BondMode::ActiveBackup,
        Mode::BalanceXor => BondMode::BalanceXor,
        Mode::Broadcast => BondMode::Broadcast,
        Mode::Lacp => BondMode::Lacp,
        Mode::BalanceTlb => BondMode::BalanceTlb,
        Mode::BalanceAlb => BondMode::BalanceAlb,
        Mode::Bridge | Mode::Vepa | Mode::Private | Mode::Passthru => return None,
    })
}

fn macvtap_mode(mode: Mode) -> Option<MacvtapMode> {
    Some(match mode {
        Mode::Bridge => MacvtapMode::Bridge,
        Mode::Vepa => MacvtapMode::Vepa,
        Mode::Private => MacvtapMode::Private,
        Mode::Passthru => MacvtapMode::Passthru,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
