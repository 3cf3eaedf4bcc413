//! What the box has and lacks for giving devices to guests, each finding with what to do. Pure, from facts that were read.

mod cmdline;
mod facts;

use std::collections::BTreeMap;

use serde::Serialize;

pub use cmdline::{Edit, Loader};
pub use facts::Facts;

use crate::config::{Config, CpuList, Size};
use crate::host::HostState;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Fair,
    /// Something will not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How it stands.
    pub health: Health,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// All findings, and the change of the kernel's command line that they come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// In the order in which they matter.
    pub findings: Vec<Finding>,
    /// What to change for the next boot.
    pub edit: Option<Edit>,
}

impl Report {
    /// The worst of all findings.
    pub fn health(&self) -> Health {
        self.findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Good)
    }
}

/// Looks at everything. `config` adds what its guests want.
pub fn examine(facts: &Facts, host: &HostState, config: &Config) -> Report {
    let mut doctor = Doctor { facts, host, config, findings: Vec::new(), wanted: Vec::new() };
    doctor.kvm();
    doctor.iommu();
    doctor.vfio();
    doctor.memory();
    doctor.processors();
    doctor.cpusets();
    doctor.numa();
    doctor.lockdown();
    let edit = Edit::propose(&facts.loader, &facts.cmdline, &doctor.wanted);
    Report { findings: doctor.findings, edit }
}

struct Doctor<'a> {
    facts: &'a Facts,
    host: &'a HostState,
    config: &'a Config,
    findings: Vec<Finding>,
    /// Words that the kernel's command line lacks.
    wanted: Vec<String>,
}

impl Doctor<'_> {
    fn good(&mut self, message: impl Into<String>) {
        self.findings.push(Finding { health: Health::Good, message: message.into(), help: None });
    }

    fn find(&mut self, health: Health, message: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Finding { health, message: message.into(), help: Some(help.into()) });
    }

    fn kvm(&mut self) {
        match &self.facts.kvm {
            Ok(()) => self.good("/dev/kvm can be used"),
            Err(why) if why.contains("No such file") => {
                let (module, setting) =
                    if self.facts.intel { ("kvm_intel", "VT-x") } else { ("kvm_amd", "SVM") };
                let help = format!("switch {setting} on in the firmware, then `modprobe {module}`");
                self.find(Health::Bad, "There is no /dev/kvm: this host runs no guests", help);
            }
            Err(why) => {
                let help = "run as root, or let the user into the group that owns it (kvm)";
                self.find(Health::Bad, format!("/dev/kvm cannot be used: {why}"), help);
            }
        }
    }

    fn iommu(&mut self) {
        let state = &self.host.inventory.iommu;
        if state.is_on() {
            self.good(format!("The IOMMU is on ({})", state.units.join(", ")));
            match state.interrupt_remapping {
                Some(true) => self.good("Interrupts are remapped"),
                Some(false) => self.find(
                    Health::Bad,
                    "Interrupts are not remapped: a guest could send any interrupt to the host",
                    "switch interrupt remapping (often with x2APIC) on in the firmware, and take `intremap=off` out of the kernel's command line",
                ),
                None => {}
            }
        } else if self.facts.intel {
            self.wanted.push("intel_iommu=on".to_owned());
            self.find(
                Health::Bad,
                "The IOMMU is off: nothing can be given to a guest",
                "switch VT-d on in the firmware, and boot with intel_iommu=on",
            );
        } else {
            self.find(
                Health::Bad,
                "The IOMMU is off: nothing can be given to a guest",
                "switch AMD-Vi (IOMMU) on in the firmware; the kernel needs no argument",
            );
        }
        if !self.facts.has_word("iommu=pt") && !self.facts.has_word("iommu.passthrough=1") {
            self.wanted.push("iommu=pt".to_owned());
            if state.is_on() {
                let message = "The host's own devices go through the IOMMU too, which costs them speed";
                self.find(Health::Fair, message, "boot with iommu=pt");
            }
        }
        if self.facts.cmdline.iter().any(|word| word.starts_with("pcie_acs_override")) {
            self.find(
                Health::Bad,
                "pcie_acs_override makes groups look apart that are not: guests can reach each other's devices",
                "take it out of the kernel's command line, and give whole groups (`group: all-endpoints`)",
            );
        }
    }

    fn vfio(&mut self) {
        if self.facts.vfio_pci {
            self.good("vfio-pci is there");
        } else {
            self.find(
                Health::Bad,
                "This kernel has no vfio-pci",
                "install the modules of the kernel that runs (Debian: linux-image-amd64, not -cloud), or build it with CONFIG_VFIO_PCI",
            );
        }
        for (node, problem, needed) in &self.facts.nodes {
            match problem {
                None => self.good(format!("{node} can be used")),
                Some(why) if *needed => {
                    self.find(Health::Bad, format!("{node} cannot be used: {why}"), "run as root");
                }
                Some(_) => {}
            }
        }
    }

    fn memory(&mut self) {
        let (config, host) = (self.config, self.host);
        for (size, wanted) in &config.host.hugepages {
            let there = host.hugepages.get(&size.0).copied().unwrap_or(0);
            if there >= *wanted {
                self.good(format!("{there} huge pages of {size} are set aside"));
            } else {
                let word = if size.0 == 0x4000_0000 {
                    format!("hugepagesz=1G hugepages={wanted}")
                } else {
                    format!("hugepagesz=2M hugepages={wanted}")
                };
                self.wanted.push(word);
                let help = "`throughway apply` sets them aside while memory is not scattered; at boot it always works";
                self.find(
                    Health::Fair,
                    format!("{there} of {wanted} huge pages of {size} are set aside"),
                    help,
                );
            }
        }
        let largest = config.vms.iter().filter(|(_, vm)| !vm.nics.is_empty() || !vm.pci.is_empty());
        let largest = largest.map(|(name, vm)| (vm.memory.detail().size, name)).max();
        if let (Some((size, name)), Some(limit)) = (largest, self.facts.memlock)
            && limit < size.0
        {
            self.find(
                Health::Bad,
                format!("Guest `{name}` locks {size} of memory, and {} is allowed", Size(limit & !0x3ff)),
                "run as root, or raise LimitMEMLOCK= of the service or `ulimit -l`",
            );
        }
    }

    fn processors(&mut self) {
        let Some(wanted) = &self.config.host.isolated_cpus else { return };
        if wanted.0.is_subset(&self.facts.isolated) {
            return self.good(format!("Processors {wanted} are isolated"));
        }
        if let Some(absent) = wanted.0.iter().find(|cpu| !self.facts.online.contains(cpu)) {
            let help = "correct `host.isolated-cpus`";
            return self.find(Health::Bad, format!("There is no processor {absent}"), help);
        }
        self.wanted.push(format!("isolcpus=managed_irq,domain,{wanted}"));
        self.wanted.push(format!("nohz_full={wanted}"));
        self.wanted.push(format!("rcu_nocbs={wanted}"));
        let help =
            format!("boot with isolcpus=managed_irq,domain,{wanted} nohz_full={wanted} rcu_nocbs={wanted}");
        self.find(
            Health::Fair,
            format!("Processors {wanted} are not isolated: the host's work disturbs guests"),
            help,
        );
    }

    /// What guests are to run on: there, undisturbed, and each processor for one guest.
    fn cpusets(&mut self) {
        let mut taken: BTreeMap<u32, &str> = BTreeMap::new();
        for (name, vm) in &self.config.vms {
            let Some(cpuset) = vm.cpus.cpuset() else { continue };
            let key = format!("vms.{name}.cpus.cpuset");
            if let Some(absent) = cpuset.0.difference(&self.facts.online).next() {
                let message = format!("Guest `{name}` is to run on processor {absent}, which is not there");
                self.find(Health::Bad, message, format!("correct `{key}`"));
                continue;
            }
            if let Some(isolated) = &self.config.host.isolated_cpus {
                let disturbed = CpuList(cpuset.0.difference(&isolated.0).copied().collect());
                if !disturbed.0.is_empty() {
                    let message = format!(
                        "Guest `{name}` runs on processors {disturbed} too, which are not among `host.isolated-cpus`: the host's work disturbs it"
                    );
                    self.find(Health::Fair, message, format!("name them there, or take them out of `{key}`"));
                }
            }
            for cpu in &cpuset.0 {
                if let Some(other) = taken.insert(*cpu, name) {
                    let message = format!("Guests `{other}` and `{name}` share processor {cpu}");
                    self.find(Health::Fair, message, "give each its own where speed matters");
                    break;
                }
            }
        }
    }

    /// How far a guest's devices are from each other and from its processors: memory can be near one of them only.
    fn numa(&mut self) {
        let (config, host) = (self.config, self.host);
        for (name, vm) in &config.vms {
            let devices =
                vm.pci.values().map(|given| &given.device).chain(vm.nics.values().flat_map(|nic| {
                    let pool = nic.pool.as_ref().and_then(|pool| config.pools.get(pool));
                    nic.pf.iter().chain(pool.into_iter().flat_map(|pool| &pool.pf))
                }));
            let node = |device: &String| {
                let address = crate::plan::find(config, host, device).ok()?;
                Some((format!("`{device}`"), host.inventory.function(address)?.numa_node?))
            };
            let own = vm.cpus.cpuset().map(|cpuset| host.nodes_of(cpuset)).unwrap_or_default();
            if own.len() > 1 {
                let nodes: Vec<String> = own.iter().map(u32::to_string).collect();
                let message =
                    format!("Guest `{name}` runs on processors of NUMA nodes {}", nodes.join(" and "));
                self.find(Health::Fair, message, "name processors of one node where speed matters");
            }
            let own = own.first().map(|node| ("its processors".to_owned(), *node));
            let nodes: Vec<(String, u32)> = own.into_iter().chain(devices.filter_map(node)).collect();
            let Some((first, home)) = nodes.first() else { continue };
            for (other, away) in nodes.iter().filter(|(_, away)| away != home) {
                let distance = self.facts.distances.get(&(*home, *away));
                let distance = distance
                    .map_or_else(String::new, |distance| format!(", distance {distance} (10 is local)"));
                let message = format!(
                    "Guest `{name}` has {first} on NUMA node {home} and {other} on node {away}{distance}"
                );
                self.find(Health::Fair, message, "give it devices of one node where speed matters");
            }
        }
    }

    fn lockdown(&mut self) {
        if let Some(mode) = &self.facts.lockdown {
            let help = "VFIO works; modules must be signed, and the kernel's command line cannot be changed by kexec";
            self.find(Health::Fair, format!("The kernel is locked down (Secure Boot, mode {mode})"), help);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, load};

    fn facts() -> Facts {
        Facts {
            kvm: Ok(()),
            intel: true,
            vfio_pci: true,
            cmdline: vec!["quiet".into()],
            loader: Loader::Grub,
            online: (0..8).collect(),
            ..Facts::default()
        }
    }

    fn messages(report: &Report, health: Health) -> Vec<&str> {
        let of = report.findings.iter().filter(|finding| finding.health == health);
        of.map(|finding| finding.message.as_str()).collect()
    }

    #[test]
    fn what_lacks_is_named_with_one_edit_for_all_of_it() {
        let text = "version: 1\nhost: {hugepages: {1GiB: 4}, isolated-cpus: \"4-7\"}\n";
        let config = load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap();
        let report = examine(&facts(), &HostState::default(), &config);
        assert_eq!(messages(&report, Health::Bad), ["The IOMMU is off: nothing can be given to a guest"]);
        assert_eq!(messages(&report, Health::Fair).len(), 2);
        let edit = report.edit.unwrap();
        assert_eq!(
            edit.add,
            "intel_iommu=on iommu=pt hugepagesz=1G hugepages=4 isolcpus=managed_irq,domain,4-7 nohz_full=4-7 rcu_nocbs=4-7"
        );
    }

    #[test]
    fn a_good_box_has_nothing_to_edit() {
        let mut host = HostState::default();
        host.inventory.iommu.units = vec!["dmar0".into()];
        host.inventory.iommu.interrupt_remapping = Some(true);
        let facts = Facts { cmdline: vec!["iommu=pt".into()], ..facts() };
        let report = examine(&facts, &host, &Config::default());
        assert_eq!((report.health(), report.edit), (Health::Good, None));
    }

    #[test]
    fn a_processor_that_is_not_there_is_named() {
        let text = "version: 1\nhost: {isolated-cpus: \"6-9\"}\n";
        let config = load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap();
        let report = examine(&facts(), &HostState::default(), &config);
        assert!(messages(&report, Health::Bad).contains(&"There is no processor 8"));
    }

    #[test]
    fn what_guests_run_on_is_compared_with_the_box() {
        let text = "version: 1\nhost: {isolated-cpus: \"4-7\"}\nvms:\n  a: {cpus: {count: 3, cpuset: \"3-5\"}, memory: 1GiB, boot: {kernel: /k}}\n  \
                    b: {cpus: {count: 2, cpuset: \"5-6\"}, memory: 1GiB, boot: {kernel: /k}}\n  \
                    c: {cpus: {count: 1, cpuset: \"7,9\"}, memory: 1GiB, boot: {kernel: /k}}\n";
        let config = load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap();
        let host = HostState {
            nodes_of_processors: (0..8).map(|cpu| (cpu, cpu / 4)).collect(),
            ..HostState::default()
        };
        let report = examine(&Facts { isolated: (4..8).collect(), ..facts() }, &host, &config);
        assert_eq!(
            messages(&report, Health::Fair),
            [
                "Guest `a` runs on processors 3 too, which are not among `host.isolated-cpus`: the host's work disturbs it",
                "Guests `a` and `b` share processor 5",
                "Guest `a` runs on processors of NUMA nodes 0 and 1",
            ]
        );
        assert!(
            messages(&report, Health::Bad)
                .contains(&"Guest `c` is to run on processor 9, which is not there")
        );
    }
}
