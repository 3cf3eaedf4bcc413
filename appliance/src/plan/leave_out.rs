//! A file without what this host cannot be given now, so that it is given the rest.

use vfio::PciAddress;

use super::{Step, Target, find};
use crate::config::{Config, GroupScope};
use crate::host::HostState;

/// Takes out of a file what a refusal with this path is about, and what guests would have of it. False where that is nothing that a
/// file can do without. Links that stand on one that is taken out are refused in their turn.
pub fn leave_out(config: &mut Config, path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["devices", name, ..] | ["sriov", name, ..] => card(config, name, path.first() == Some(&"devices")),
        ["pools", name, ..] => pool(config, name),
        ["networks", name, "ports", port, ..] => {
            config.networks.get_mut(*name).is_some_and(|section| section.ports.remove(*port).is_some())
        }
        ["networks", name, ..] => config.networks.remove(*name).is_some(),
        ["vms", vm, "nics", key, ..] => {
            config.vms.get_mut(*vm).is_some_and(|vm| vm.nics.remove(*key).is_some())
        }
        ["vms", vm, "pci", key, ..] => {
            config.vms.get_mut(*vm).is_some_and(|vm| vm.pci.remove(*key).is_some())
        }
        ["host", "hugepages", size] => {
            let before = config.host.hugepages.len();
            config.host.hugepages.retain(|known, _| known.to_string() != *size);
            config.host.hugepages.len() < before
        }
        ["management", ..] => config.management.interface.take().is_some(),
        _ => false,
    }
}

/// Where in the file stands what a step is for.
pub fn path_of(step: &Step, config: &Config, host: &HostState) -> Option<Vec<String>> {
    let path = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect());
    match step {
        Step::BringUp { pf, .. }
        | Step::Autoprobe { pf, .. }
        | Step::Resize { pf, .. }
        | Step::SetVf { pf, .. }
        | Step::Eswitch { pf, .. } => path(&["sriov", name_of(config, host, *pf)?]),
        Step::Lend(target) => lent(config, host, target),
        Step::Hugepages { size, .. } => path(&["host", "hugepages", &size.to_string()]),
        Step::Link { name, .. } | Step::Nat { name, .. } | Step::Dhcp { link: name, .. }
            if config.networks.contains_key(name) =>
        {
            path(&["networks", name])
        }
        Step::Link { name, .. } => {
            let (above, _) = config.networks.iter().find(|(_, section)| section.ports.contains_key(name))?;
            path(&["networks", above, "ports", name])
        }
        Step::Forward { link, bridge, .. } => path(&["networks", bridge, "ports", link]),
        Step::Nat { .. } | Step::Dhcp { .. } | Step::Card { .. } | Step::Release(_) => None,
    }
}

fn lent(config: &Config, host: &HostState, target: &Target) -> Option<Vec<String>> {
    let path = |vm: &str, kind: &str, key: &str| ["vms", vm, kind, key].map(str::to_owned).to_vec();
    match target {
        Target::Vf { pf, vf } => {
            let name = name_of(config, host, *pf)?;
            config.vms.iter().find_map(|(vm, guest)| {
                let fits = |(_, nic): &(&String, &crate::config::Nic)| {
                    nic.pf.as_deref() == Some(name) && nic.vf == Some(*vf)
                };
                guest.nics.iter().find(fits).map(|(key, _)| path(vm, "nics", key))
            })
        }
        Target::Function(address) => config.vms.iter().find_map(|(vm, guest)| {
            let goes = |device: &str| {
                let Ok(found) = find(config, host, device) else { return false };
                let whole = config.devices.get(device).map(|device| device.group);
                let group = |address: PciAddress| {
                    host.inventory.function(address).and_then(|function| function.iommu_group)
                };
                found == *address
                    || whole == Some(GroupScope::AllEndpoints) && group(found) == group(*address)
            };
            guest.pci.iter().find(|(_, given)| goes(&given.device)).map(|(key, _)| path(vm, "pci", key))
        }),
    }
}

fn name_of<'a>(config: &'a Config, host: &HostState, pf: PciAddress) -> Option<&'a str> {
    config.sriov.keys().find(|name| find(config, host, name) == Ok(pf)).map(String::as_str)
}

/// A card's virtual functions, and with it, where it is not there at all, the card itself.
fn card(config: &mut Config, name: &str, itself: bool) -> bool {
    let mut found = config.sriov.remove(name).is_some();
    for vm in config.vms.values_mut() {
        let before = vm.nics.len() + vm.pci.len();
        vm.nics.retain(|_, nic| nic.pf.as_deref() != Some(name));
        if itself {
            vm.pci.retain(|_, given| given.device != name);
        }
        found |= vm.nics.len() + vm.pci.len() < before;
    }
    for pool in config.pools.values_mut() {
        pool.pf.retain(|pf| pf != name);
    }
    let empty: Vec<String> =
        config.pools.iter().filter(|(_, pool)| pool.pf.is_empty()).map(|(name, _)| name.clone()).collect();
    empty.iter().for_each(|name| found |= pool(config, name));
    found
}

fn pool(config: &mut Config, name: &str) -> bool {
    for vm in config.vms.values_mut() {
        vm.nics.retain(|_, nic| nic.pool.as_deref() != Some(name));
    }
    config.pools.remove(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, load};
    use crate::plan::whole;

    const FILE: &str = "version: 1
management: {interface: br0}
host: {hugepages: {2MiB: 8}}
devices:
  lan: {match: {address: '0000:01:00.0'}}
  gpu: {match: {address: '0000:02:00.0'}}
sriov: {lan: {num-vfs: 4}}
pools: {vfs: {pf: [lan], vf-range: 1-3}}
networks:
  br0: {type: bridge, addresses: [10.0.0.1/24], ports: {eno1: {}, eno2: {}}}
  up0: {type: macvtap, base-iface: eno3, mode: bridge}
vms:
  one:
    memory: 192MiB
    boot: {kernel: /k}
    nics: {a: {pool: vfs}, b: {pf: lan, vf: 0}}
    pci: {gpu: {device: gpu}}
";

    fn config() -> Config {
        load(&Document { name: "box.yaml".into(), text: FILE.into() }).unwrap()
    }

    fn without(path: &str) -> Config {
        let mut config = config();
        assert!(leave_out(&mut config, &path.split('.').map(str::to_owned).collect::<Vec<_>>()), "{path}");
        config
    }

    #[test]
    fn what_needs_a_thing_goes_with_it_and_nothing_else() {
        let all = config();
        let left = without("devices.lan.match");
        assert!(left.sriov.is_empty() && left.pools.is_empty());
        assert!(left.vms["one"].nics.is_empty());
        assert_eq!((left.vms["one"].pci.len(), &left.networks), (1, &all.networks));
        let left = without("devices.gpu.match");
        assert_eq!((left.vms["one"].pci.len(), &left.sriov), (0, &all.sriov));
        assert_eq!(without("networks.br0.ports.eno2").networks["br0"].ports.len(), 1);
        assert_eq!(without("networks.up0.base-iface").networks.keys().collect::<Vec<_>>(), ["br0"]);
        assert!(without("host.hugepages.2MiB").host.hugepages.is_empty());
        assert_eq!(without("management.interface").management.interface, None);
        for path in
            [&[][..], &["vms", "two", "pci", "gpu"], &["networks", "br7"], &["host", "hugepages", "1GiB"]]
        {
            let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            assert!(!leave_out(&mut config(), &path), "{path:?}");
        }
    }

    #[test]
    fn a_host_that_has_nothing_of_it_is_refused_piece_by_piece_until_it_is_not() {
        let (mut config, host) = (config(), HostState::default());
        let mut gone = Vec::new();
        let plan = loop {
            let refusals = match whole(&config, &host, &[]) {
                Ok(plan) => break plan,
                Err(refusals) => refusals,
            };
            let before = config.clone();
            refusals.iter().for_each(|refusal| {
                if leave_out(&mut config, &refusal.path) {
                    gone.push(refusal.path.join("."));
                }
            });
            assert_ne!(config, before, "{refusals:?}");
        };
        let steps: Vec<String> = plan.steps.iter().map(|planned| planned.step.to_string()).collect();
        assert_eq!(steps.len(), 1, "{steps:?}");
        assert!(steps[0].starts_with("br0: make bridge"), "{steps:?}");
        assert_eq!(path_of(&plan.steps[0].step, &config, &host), Some(vec!["networks".into(), "br0".into()]));
        assert!(gone.contains(&"devices.lan.match".to_owned()), "{gone:?}");
    }
}
