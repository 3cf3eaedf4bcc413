//! The steps themselves: note how it was, do, look whether it is so.

use std::path::Path;

use anyhow::{Context, bail};
use netconfig::blocking::with_network;
use netconfig::direct::Direct;
use netconfig::{LinkSettings, MacAddress, Verdict, VfAttributes, VfState};
use vfio::bind::Binding;
use vfio::sriov::PhysicalFunction;
use vfio::{PciAddress, Sysfs};

use super::{Host, Undo};
use crate::host;
use crate::plan::{Step, Target};

/// Where undos are kept. When a note returns, the undo survives a power cut.
pub trait Journal {
    /// Notes how something that a guest borrows is before it is changed: a driver, a VF's attributes.
    fn note(&mut self, undo: Undo) -> anyhow::Result<()>;

    /// Notes how something of the box's own is before it is changed: links, numbers of VFs, huge pages.
    fn note_own(&mut self, undo: Undo) -> anyhow::Result<()>;
}

/// Does one step.
pub(super) fn take(step: &Step, host: &Host, journal: &mut dyn Journal) -> anyhow::Result<()> {
    tracing::info!("{step}");
    Work { host, sysfs: &host.sysfs, journal }.step(step).with_context(|| format!("Doing the step `{step}`"))
}

/// Puts back what was noted, last first. What fails is said, and the rest is done all the same.
pub(super) fn put_back(undo: &[Undo], host: &Host) -> anyhow::Result<()> {
    let order = backwards(undo).into_iter();
    let failures: Vec<String> =
        order.filter_map(|undo| Some(format!("{:#}", undo.put_back(host).err()?))).collect();
    if failures.is_empty() { Ok(()) } else { bail!(failures.join("; ")) }
}

/// Last first; but a VF has its attributes back before a driver of the host takes it, which asks for its MAC address only then.
/// VFs that are yet to be made anew are another matter.
pub fn backwards(undo: &[Undo]) -> Vec<&Undo> {
    let mut order = Vec::<&Undo>::with_capacity(undo.len());
    let mut first_driver = None;
    for undo in undo.iter().rev() {
        match (undo, first_driver) {
            (Undo::Vf { .. }, Some(at)) => {
                order.insert(at, undo);
                first_driver = Some(at.saturating_add(1));
                continue;
            }
            (Undo::Driver { .. }, None) => first_driver = Some(order.len()),
            (Undo::Sriov { .. }, _) => first_driver = None,
            _ => {}
        }
        order.push(undo);
    }
    order
}

/// Where a target is.
pub(super) fn find(sysfs: &Sysfs, target: &Target) -> anyhow::Result<PciAddress> {
    match target {
        Target::Function(address) => Ok(*address),
        Target::Vf { pf, vf } => {
            let vfs = PhysicalFunction::of(sysfs, *pf)?.vfs();
            let found = vfs.into_iter().find(|(index, _)| index == vf);
            found.map(|(_, address)| address).with_context(|| format!("{pf}: VF {vf} is not there"))
        }
    }
}

struct Work<'a> {
    host: &'a Host,
    sysfs: &'a Sysfs,
    journal: &'a mut dyn Journal,
}

impl Work<'_> {
    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::BringUp { interface, .. } => self.bring_up(interface),
            Step::Autoprobe { pf, on } => {
                self.note_vfs(*pf)?;
                if !PhysicalFunction::of(self.sysfs, *pf)?.set_autoprobe(*on)? {
                    tracing::debug!("{pf}: this kernel has no sriov_drivers_autoprobe");
                }
                Ok(())
            }
            Step::Resize { pf, to, .. } => {
                self.note_vfs(*pf)?;
                Ok(PhysicalFunction::of(self.sysfs, *pf)?.resize(*to)?)
            }
            Step::Eswitch { pf, to, .. } => {
                self.note_vfs(*pf)?;
                host::set_eswitch_mode(*pf, *to)
            }
            Step::SetVf { pf, interface, vf, attributes, .. } => self.set_vf(*pf, interface, *vf, attributes),
            Step::Lend(target) => {
                let address = find(self.sysfs, target)?;
                let binding = Binding::of(self.sysfs, address)?;
                let pf = pf_of(self.sysfs, address);
                self.journal.note(Undo::Driver { address, pf, before: binding.state()? })?;
                load_vfio_pci(self.sysfs);
                Ok(binding.lend()?)
            }
            Step::Hugepages { size, to, .. } => {
                let sys = Path::new("/sys");
                let before = host::huge_pages(sys, size.0);
                self.journal.note_own(Undo::Hugepages { size: *size, before })?;
                let actual = host::set_huge_pages(sys, size.0, *to)?;
                if actual != *to {
                    bail!(
                        "{to} were asked for, and there was memory for {actual}; memory gets scattered: set them aside on the kernel's command line"
                    );
                }
                Ok(())
            }
            Step::Card { link, to } => self.card(link, to),
            Step::Link { name, to, .. } => self.link(name, to.as_deref()),
            Step::Nat { name, to, .. } => {
                self.note_nat(name)?;
                Ok(self.host.nats.realize(name, to.as_deref())?)
            }
            Step::Dhcp { link, to, .. } => self.dhcp(link, *to),
            Step::Forward { link, macs, .. } => macs.iter().try_for_each(|mac| self.forward(link, *mac)),
            Step::Release(undo) => self.release(undo),
        }
    }

    /// Most are taps that are not there yet, on a bridge.
    fn card(&mut self, link: &str, to: &LinkSettings) -> anyhow::Result<()> {
        let mut direct = Direct::open()?;
        let is_new = direct.is_free(link)?;
        let before = if is_new {
            None
        } else {
            with_network(async |network| network.settings().await)?.remove(link).map(Box::new)
        };
        self.journal.note(Undo::Link { name: link.to_owned(), before })?;
        if is_new && let Some(queue) = direct.make_port(link, to)? {
            self.host.taps.keep(link, queue);
            return Ok(());
        }
        Ok(with_network(async |network| network.realize(link, Some(to)).await)?)
    }

    /// First how the link is: what DHCP gives it goes when it is put back.
    fn dhcp(&mut self, link: &str, on: bool) -> anyhow::Result<()> {
        self.note_link(link)?;
        self.note_dhcp(link)?;
        // One that asks there already may ask on a link that is no more.
        self.host.dhcp.stop(link)?;
        if on {
            self.host.dhcp.start(link)?;
        }
        Ok(())
    }

    fn forward(&mut self, link: &str, mac: MacAddress) -> anyhow::Result<()> {
        self.note_forward(link, mac)?;
        Ok(with_network(async |network| network.tell(link, mac, true).await)?)
    }

    fn note_forward(&mut self, link: &str, mac: MacAddress) -> anyhow::Result<()> {
        let told = with_network(async |network| network.forwarded().await)?;
        let before = told.get(link).is_some_and(|told| told.contains(&mac));
        self.journal.note_own(Undo::Forward { link: link.to_owned(), mac, before })
    }

    fn note_dhcp(&mut self, link: &str) -> anyhow::Result<()> {
        let before = self.host.dhcp.is_running(link);
        self.journal.note_own(Undo::Dhcp { name: link.to_owned(), before })
    }

    fn release(&mut self, undo: &Undo) -> anyhow::Result<()> {
        match undo {
            Undo::Vf { pf, before } => {
                let interface = interface(self.sysfs, *pf)?;
                let mut now = with_network(async |network| network.vf(&interface, before.id).await)?;
                without_chosen_mac(self.sysfs, *pf, &mut now);
                self.journal.note(Undo::Vf { pf: *pf, before: now })?;
            }
            // A VF that has not come back; putting it back says so.
            Undo::Driver { address, .. } if !self.sysfs.device(*address).exists() => {}
            Undo::Driver { address, .. } => {
                let before = Binding::of(self.sysfs, *address)?.state()?;
                let pf = pf_of(self.sysfs, *address);
                self.journal.note(Undo::Driver { address: *address, pf, before })?;
            }
            Undo::Sriov { pf, .. } => self.note_vfs(*pf)?,
            Undo::Link { name, .. } => self.note_link(name)?,
            Undo::Nat { name, .. } => self.note_nat(name)?,
            Undo::Dhcp { name, .. } => self.note_dhcp(name)?,
            Undo::Forward { link, mac, .. } => self.note_forward(link, *mac)?,
            Undo::Hugepages { size, .. } => {
                let before = host::huge_pages(Path::new("/sys"), size.0);
                self.journal.note_own(Undo::Hugepages { size: *size, before })?;
            }
            Undo::Routes { .. } => {}
        }
        undo.put_back(self.host)
    }

    /// A PF's VFs are about to be made anew: first how each was, then how many there were, as undoing goes backwards.
    fn note_vfs(&mut self, pf: PciAddress) -> anyhow::Result<()> {
        let function = PhysicalFunction::of(self.sysfs, pf)?;
        if let Ok(interface) = interface(self.sysfs, pf) {
            for mut before in with_network(async |network| network.vfs(&interface).await)? {
                without_chosen_mac(self.sysfs, pf, &mut before);
                self.journal.note_own(Undo::Vf { pf, before })?;
            }
        }
        for (_, address) in function.vfs() {
            let before = Binding::of(self.sysfs, address)?.state()?;
            self.journal.note_own(Undo::Driver { address, pf: Some(pf), before })?;
        }
        let (before, eswitch_mode) = (function.state()?, host::eswitch_mode(pf)?);
        self.journal.note_own(Undo::Sriov { pf, before, eswitch_mode })
    }

    fn bring_up(&mut self, interface: &str) -> anyhow::Result<()> {
        if with_network(async |network| network.link(interface).await)?.up {
            return Ok(());
        }
        self.note_link(interface)?;
        Ok(with_network(async |network| network.set_up(interface, true).await)?)
    }

    fn link(&mut self, name: &str, to: Option<&LinkSettings>) -> anyhow::Result<()> {
        self.note_link(name)?;
        Ok(with_network(async |network| network.realize(name, to).await)?)
    }

    /// A link, after all that goes when it goes: its ports and what stands on it.
    fn note_link(&mut self, name: &str) -> anyhow::Result<()> {
        let links = with_network(async |network| network.settings().await)?;
        let mut order = vec![name.to_owned()];
        let mut at = 0;
        while let Some(below) = order.get(at).cloned() {
            let above = links.iter().filter(|(other, link)| {
                !order.contains(other)
                    && (link.controller.as_deref() == Some(&below) || link.kind.base() == Some(&below))
            });
            let above: Vec<String> = above.map(|(other, _)| other.clone()).collect();
            order.extend(above);
            at += 1;
        }
        order.into_iter().rev().try_for_each(|name| {
            let before = links.get(&name).cloned().map(Box::new);
            self.journal.note_own(Undo::Link { name, before })
        })
    }

    fn note_nat(&mut self, name: &str) -> anyhow::Result<()> {
        let before = self.host.nats.settings()?.remove(name).map(Box::new);
        self.journal.note_own(Undo::Nat { name: name.to_owned(), before })
    }

    fn set_vf(
        &mut self,
        pf: PciAddress,
        interface: &str,
        vf: u16,
        wanted: &VfAttributes,
    ) -> anyhow::Result<()> {
        let id = u32::from(vf);
        let mut before = with_network(async |network| network.vf(interface, id).await)?;
        without_chosen_mac(self.sysfs, pf, &mut before);
        self.journal.note(Undo::Vf { pf, before })?;
        let reports = with_network(async |network| network.set_vf(interface, id, wanted).await)?;
        let (kept, lost): (Vec<_>, Vec<_>) = reports.iter().partition(|report| report.holds());
        let kept: Vec<_> =
            kept.iter().map(|report| format!("{} {}", report.attribute, report.requested)).collect();
        tracing::info!("{pf}: VF {vf} reads back with {}", kept.join(", "));
        let mut refused = Vec::new();
        for report in lost {
            match report.verdict {
                Verdict::Unsupported | Verdict::Differs if !report.attribute.confines() => {
                    tracing::warn!("{pf}: VF {vf}: {report}");
                }
                _ => refused.push(report.to_string()),
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            bail!("{}; change it in the file or take it out, or use a card that has it", refused.join("; "))
        }
    }
}

/// Of a VF, its PF.
fn pf_of(sysfs: &Sysfs, address: PciAddress) -> Option<PciAddress> {
    let link = std::fs::read_link(sysfs.device(address).join("physfn")).ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// A VF as it is to be noted, for the VF at `pf`.
fn without_chosen_mac(sysfs: &Sysfs, pf: PciAddress, vf: &mut VfState) {
    let vfs = PhysicalFunction::of(sysfs, pf).map(|pf| pf.vfs()).unwrap_or_default();
    if let Some((_, address)) = vfs.into_iter().find(|(index, _)| u32::from(*index) == vf.id) {
        host::without_chosen_mac(sysfs, address, vf);
    }
}

fn interface(sysfs: &Sysfs, pf: PciAddress) -> anyhow::Result<String> {
    netconfig::blocking::interface_of(&sysfs.device(pf))
        .with_context(|| format!("{pf}: looking for its interface"))?
        .with_context(|| format!("{pf}: it has no network interface"))
}

/// Where vfio-pci is a module that nobody has loaded yet, the kernel's own loader is asked for it.
fn load_vfio_pci(sysfs: &Sysfs) {
    if sysfs.path("bus/pci/drivers").join(vfio::bind::VFIO_PCI).exists() {
        return;
    }
    let modprobe = ["/usr/sbin/modprobe", "/sbin/modprobe"].into_iter().find(|path| Path::new(path).exists());
    let Some(modprobe) = modprobe else { return };
    match std::process::Command::new(modprobe).arg(vfio::bind::VFIO_PCI).status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!("modprobe vfio-pci: {status}"),
        Err(error) => tracing::warn!("{modprobe}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use vfio::bind::DriverState;
    use vfio::sriov::SriovState;

    use super::*;

    const PF: &str = "0000:01:00.0";

    fn at(address: &str) -> PciAddress {
        address.parse().unwrap()
    }

    fn vf(id: u32) -> Undo {
        Undo::Vf { pf: at(PF), before: VfState { id, ..VfState::default() } }
    }

    fn driver(address: &str) -> Undo {
        let before = DriverState { driver: None, driver_override: None };
        Undo::Driver { address: at(address), pf: None, before }
    }

    #[test]
    fn attributes_come_before_drivers_and_never_before_the_vfs_are_made_anew() {
        let before = SriovState { num_vfs: 1, drivers_autoprobe: None };
        let made = Undo::Sriov { pf: at(PF), before, eswitch_mode: None };
        let link = |name: &str| Undo::Link { name: name.into(), before: None };
        let noted = [
            link("a"),
            vf(0),
            driver("01:10.0"),
            made.clone(),
            vf(1),
            link("b"),
            driver("01:10.2"),
            vf(2),
            link("c"),
            driver("01:10.4"),
        ];
        let want = [
            vf(2),
            vf(1),
            driver("01:10.4"),
            link("c"),
            driver("01:10.2"),
            link("b"),
            made,
            vf(0),
            driver("01:10.0"),
            link("a"),
        ];
        assert_eq!(backwards(&noted), want.iter().collect::<Vec<_>>());
    }

    #[test]
    fn an_address_that_a_driver_made_up_is_none_to_put_back() {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("bus/pci/devices");
        let net = devices.join("0000:01:10.0/net/eth1v0");
        fs::create_dir_all(&net).unwrap();
        fs::create_dir_all(devices.join(PF)).unwrap();
        for (name, value) in [("sriov_totalvfs", "7"), ("sriov_numvfs", "1")] {
            fs::write(devices.join(PF).join(name), value).unwrap();
        }
        symlink("../0000:01:10.0", devices.join(PF).join("virtfn0")).unwrap();
        fs::write(net.join("address"), "7a:00:00:00:00:01\n").unwrap();
        let sysfs = Sysfs::at(root.path());
        for (kind, mac, kept) in [
            ("1", "7a:00:00:00:00:01", "00:00:00:00:00:00"),
            ("0", "7a:00:00:00:00:01", "7a:00:00:00:00:01"),
            ("1", "02:00:00:00:00:09", "02:00:00:00:00:09"),
        ] {
            fs::write(net.join("addr_assign_type"), format!("{kind}\n")).unwrap();
            let mut state = VfState { mac_address: mac.parse().ok(), ..VfState::default() };
            without_chosen_mac(&sysfs, at(PF), &mut state);
            assert_eq!(state.mac_address.unwrap().to_string(), kept);
        }
    }
}
