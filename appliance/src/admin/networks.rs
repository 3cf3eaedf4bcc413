//! Networks of the file, and what is on each of them.

use netconfig::section::{NetworkSection, NetworkType, PortVlan};
use netconfig::{LinkKind, LinkSettings};
use web::Problem;
use web::wire::{Network, NetworkKind, Port};

use super::Admin;
use crate::config::Config;
use crate::host::HostState;
use crate::plan::{carries_the_administrator, link_name};

impl Admin {
    pub(super) async fn networks(&self) -> Result<Vec<Network>, Problem> {
        self.reading(|parts| {
            let (config, host) = parts.read()?;
            let management = carries_the_administrator(&config, &host);
            let one = |(name, section): (&String, &NetworkSection)| {
                let link = host.links.get(name);
                Network {
                    name: name.clone(),
                    kind: kind(section.kind),
                    up: link.map(|link| link.up),
                    addresses: link.map(addresses).unwrap_or_default(),
                    mtu: link.map(|link| link.mtu),
                    management: management.contains(name),
                    ports: ports(name, section, &config, &host),
                }
            };
            Ok(config.networks.iter().map(one).collect())
        })
        .await
    }
}

fn kind(of: NetworkType) -> NetworkKind {
    match of {
        NetworkType::Bridge => NetworkKind::Bridge,
        NetworkType::Nat => NetworkKind::Nat,
        NetworkType::Macvtap => NetworkKind::Macvtap,
        NetworkType::Vlan => NetworkKind::Vlan,
        NetworkType::Bond => NetworkKind::Bond,
    }
}

fn addresses(link: &LinkSettings) -> Vec<String> {
    link.addresses.iter().map(ToString::to_string).collect()
}

/// Ports of the file, links that are on it, and cards of guests whether they run or not; each once.
fn ports(name: &str, section: &NetworkSection, config: &Config, host: &HostState) -> Vec<Port> {
    let guests: Vec<(String, (String, String), Option<&PortVlan>)> = config
        .vms
        .iter()
        .flat_map(|(vm, guest)| guest.nics.iter().map(move |(key, nic)| (vm, key, nic)))
        .filter(|(_, _, nic)| nic.network.as_deref() == Some(name))
        .map(|(vm, key, nic)| (link_name(vm, key), (vm.clone(), key.clone()), nic.vlan.as_ref()))
        .collect();
    let on_it = |link: &LinkSettings| {
        link.controller.as_deref() == Some(name)
            || matches!(&link.kind, LinkKind::Vlan { base, .. } | LinkKind::Macvtap { base, .. } if base == name)
    };
    let mut links: Vec<String> = section.ports.keys().cloned().collect();
    links.extend(section.base_iface.iter().cloned());
    links.extend(host.links.iter().filter(|(_, link)| on_it(link)).map(|(link, _)| link.clone()));
    links.extend(guests.iter().map(|(link, ..)| link.clone()));
    links.sort_unstable();
    links.dedup();
    let tell = |link: String| {
        let of_guest = guests.iter().find(|(own, ..)| *own == link);
        let asked = section.ports.get(&link).and_then(|port| port.vlan.as_ref());
        let device = host.inventory.functions.values().find(|function| function.interfaces.contains(&link));
        Port {
            up: host.links.get(&link).map(|link| link.up),
            vlan: asked.or(of_guest.and_then(|(_, _, vlan)| *vlan)).map(vlan),
            device: device.map(|function| function.address.to_string()),
            guest: of_guest.map(|(_, guest, _)| guest.clone()),
            link,
        }
    };
    links.into_iter().map(tell).collect()
}

/// `access 100`, `trunk 10 20-30`.
fn vlan(vlan: &PortVlan) -> String {
    let value = serde_json::to_value(vlan).unwrap_or_default();
    let word = |key: &str| value.get(key).and_then(|word| word.as_str()).unwrap_or_default().to_owned();
    let mut words = vec![word("mode")];
    words.extend(vlan.tag.map(|tag| tag.to_string()));
    words.extend(vlan.trunk_tags.iter().map(|tags| {
        let all = tags.all();
        if all.start() == all.end() {
            all.start().to_string()
        } else {
            format!("{}-{}", all.start(), all.end())
        }
    }));
    words.join(" ")
}
