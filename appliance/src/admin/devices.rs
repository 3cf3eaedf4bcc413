//! PCI functions, each with its verdict, its names and its attributes as asked for and as they are.

use std::collections::BTreeMap;
use std::path::Path;

use netconfig::{VfAttributes, VfState};
use vfio::PciAddress;
use vfio::inventory::{Function, Modules, Names};
use web::Problem;
use web::wire::{Device, DeviceUse, Reason, Sriov, Verdict, VfAttribute};

use super::Admin;
use crate::apply::Host;
use crate::config::{Config, GroupScope};
use crate::explain::{self, Facts, judge};
use crate::host::HostState;
use crate::plan::{self, vf_fields};

impl Admin {
    pub(super) async fn devices(&self) -> Result<Vec<Device>, Problem> {
        self.reading(|parts| {
            let (config, mut host) = parts.read()?;
            let sysfs = Host::at(&parts.state).sysfs;
            host.inventory.look_closely(&sysfs, &Modules::load(), None);
            let names = Names::load();
            let mut named = BTreeMap::new();
            for name in config.devices.keys() {
                if let Ok(address) = plan::find(&config, &host, name) {
                    named.insert(address, name.as_str());
                }
            }
            let requested = requested(&config, &named);
            let tell = |function: &Function| {
                let facts = Facts::read(&sysfs, Path::new("/proc"), function.address);
                let scope = named
                    .get(&function.address)
                    .and_then(|name| config.devices.get(*name))
                    .map_or(GroupScope::Single, |device| device.group);
                let (verdict, reasons) = judge(&config, &host, function, &facts, scope);
                let mut device = about(function, &names, &host);
                device.named = named.get(&function.address).map(|&name| name.to_owned());
                device.verdict = told(verdict);
                let reason = |reason: explain::Reason| Reason {
                    weight: told(reason.weight),
                    message: reason.message,
                    help: reason.help,
                };
                device.reasons = reasons.into_iter().map(reason).collect();
                device.vf_attributes = attributes(function, &host, &requested);
                device
            };
            Ok(host.inventory.functions.values().map(tell).collect())
        })
        .await
    }
}

fn told(verdict: explain::Verdict) -> Verdict {
    match verdict {
        explain::Verdict::Ready => Verdict::Ready,
        explain::Verdict::PossibleAfter => Verdict::PossibleAfter,
        explain::Verdict::NotPossible => Verdict::Impossible,
    }
}

fn about(function: &Function, names: &Names, host: &HostState) -> Device {
    let used = host.uses.get(&function.address).into_iter().flatten();
    let held = host.held.get(&function.address).map(|holder| DeviceUse::Guest(holder.vm.clone()));
    Device {
        address: function.address.to_string(),
        name: names.describe(function),
        kind: names.class(function.class).map(str::to_owned),
        id: format!("{:04x}:{:04x}", function.vendor, function.device),
        parent: function.parent.map(|parent| parent.to_string()),
        bridge: function.is_bridge(),
        driver: function.driver.clone(),
        iommu_group: function.iommu_group,
        numa_node: function.numa_node.and_then(|node| u16::try_from(node).ok()),
        interfaces: function.interfaces.clone(),
        named: None,
        verdict: Verdict::Impossible,
        reasons: Vec::new(),
        uses: used.map(|used| DeviceUse::Host(used.to_string())).chain(held).collect(),
        sriov: function.sriov.as_ref().map(|sriov| Sriov { total: sriov.total_vfs, present: sriov.num_vfs }),
        physical_function: function.physical_function.map(|pf| pf.to_string()),
        vf_index: function.vf_index,
        vf_attributes: Vec::new(),
    }
}

/// What the file asks of each VF.
fn requested(
    config: &Config,
    named: &BTreeMap<PciAddress, &str>,
) -> BTreeMap<(PciAddress, u16), VfAttributes> {
    let mut found = BTreeMap::new();
    for (pf, name) in named {
        let Some(sriov) = config.sriov.get(*name) else { continue };
        for vf in 0..sriov.num_vfs {
            let own = sriov.vfs.iter().find(|one| one.id == vf);
            let own = own.map(|one| one.attributes.clone()).unwrap_or_default();
            found.insert((*pf, vf), own.or(&sriov.vf_defaults));
        }
    }
    found
}

/// What there is, as if it were asked for.
fn as_asked_for(state: &VfState) -> VfAttributes {
    VfAttributes {
        mac_address: state.mac_address,
        vlan_id: state.vlan_id,
        qos: state.qos,
        vlan_proto: state.vlan_proto,
        spoof_check: state.spoof_check,
        trust: state.trust,
        link_state: state.link_state,
        min_tx_rate: state.min_tx_rate,
        max_tx_rate: state.max_tx_rate,
    }
}

/// Each attribute that the file asks for or the card tells.
fn attributes(
    function: &Function,
    host: &HostState,
    requested: &BTreeMap<(PciAddress, u16), VfAttributes>,
) -> Vec<VfAttribute> {
    let (Some(pf), Some(index)) = (function.physical_function, function.vf_index) else { return Vec::new() };
    let state = host.vfs.get(&pf).and_then(|vfs| vfs.iter().find(|vf| vf.id == u32::from(index)));
    let wanted = requested.get(&(pf, index)).cloned().unwrap_or_default();
    let wanted: BTreeMap<&str, String> =
        vf_fields(state, &wanted).into_iter().map(|(key, _, wanted)| (key, wanted)).collect();
    let actual = state.map(|state| vf_fields(Some(state), &as_asked_for(state))).unwrap_or_default();
    let actual: BTreeMap<&str, String> = actual.into_iter().map(|(key, _, value)| (key, value)).collect();
    let keys: std::collections::BTreeSet<&str> = wanted.keys().chain(actual.keys()).copied().collect();
    let one = |key: &str| VfAttribute {
        key: key.to_owned(),
        requested: wanted.get(key).cloned(),
        actual: actual.get(key).cloned(),
    };
    keys.into_iter().map(one).collect()
}
