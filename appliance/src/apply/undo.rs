//! How one thing was before, and putting it back.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use netconfig::blocking::with_network;
use netconfig::nat::Nat;
use netconfig::{EswitchMode, KeptRoute, LinkSettings, MacAddress, VfState};
use serde::{Deserialize, Serialize};
use vfio::bind::{Binding, DriverState};
use vfio::sriov::{PhysicalFunction, SriovState};
use vfio::{PciAddress, Sysfs};

use super::Host;
use crate::config::Size;

/// How one thing was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Undo {
    /// A VF's attributes.
    Vf {
        /// Its PF.
        pf: PciAddress,
        /// Its attributes.
        before: VfState,
    },
    /// A function's driver.
    Driver {
        /// The function.
        address: PciAddress,
        /// Of a VF its PF: when that has made its VFs anew, this is put back after it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pf: Option<PciAddress>,
        /// Its driver.
        before: DriverState,
    },
    /// How many VFs a PF has, and how they are made.
    Sriov {
        /// The PF.
        pf: PciAddress,
        /// Number and autoprobe.
        before: SriovState,
        /// How the card's switch is run; none where the driver does not say.
        eswitch_mode: Option<EswitchMode>,
    },
    /// A link's settings; none where it was not there.
    Link {
        /// Its name.
        name: String,
        /// Its settings.
        before: Option<Box<LinkSettings>>,
    },
    /// What makes a bridge a NAT network; none where it is none.
    Nat {
        /// The bridge.
        name: String,
        /// Its settings.
        before: Option<Box<Nat>>,
    },
    /// Whether the box asks for an address on a link by DHCP.
    Dhcp {
        /// The link.
        name: String,
        /// It does.
        before: bool,
    },
    /// Whether a card is told of an address on the bridge that it is a port of.
    Forward {
        /// The card's link.
        link: String,
        /// The address.
        mac: MacAddress,
        /// It is.
        before: bool,
    },
    /// How many huge pages are set aside.
    Hugepages {
        /// Of which size.
        size: Size,
        /// How many.
        before: u64,
    },
    /// Routes beside those that links are set to: the kernel drops them with the addresses that they need.
    Routes {
        /// All of them.
        before: Vec<KeptRoute>,
    },
}

impl Undo {
    /// What it is about, alike for all undos of one thing.
    pub fn object(&self) -> String {
        match self {
            Self::Vf { pf, before } => format!("VF {} of {pf}", before.id),
            Self::Driver { address, .. } => format!("driver of {address}"),
            Self::Sriov { pf, .. } => format!("VFs of {pf}"),
            Self::Link { name, .. } => format!("link {name}"),
            Self::Nat { name, .. } => format!("NAT of {name}"),
            Self::Dhcp { name, .. } => format!("DHCP of {name}"),
            Self::Forward { link, mac, .. } => format!("{mac} told to {link}"),
            Self::Hugepages { size, .. } => format!("huge pages of {size}"),
            Self::Routes { .. } => "routes".to_owned(),
        }
    }

    /// The PF that it is about, itself or a VF of it.
    pub fn pf(&self) -> Option<PciAddress> {
        match self {
            Self::Vf { pf, .. } | Self::Sriov { pf, .. } => Some(*pf),
            Self::Driver { pf, .. } => *pf,
            Self::Link { .. }
            | Self::Nat { .. }
            | Self::Dhcp { .. }
            | Self::Forward { .. }
            | Self::Hugepages { .. }
            | Self::Routes { .. } => None,
        }
    }

    /// Makes it so again. May be done twice, and where it is so already. What is gone altogether is said and passed over.
    pub fn put_back(&self, host: &Host) -> anyhow::Result<()> {
        let sysfs = &host.sysfs;
        match self {
            Self::Driver { address, before, .. } => {
                // A VF may be gone with its PF's number, or a card with its slot: there is nothing to put back.
                if !sysfs.device(*address).exists() {
                    tracing::warn!("{address}: it is gone, so its driver cannot be put back");
                    return Ok(());
                }
                Binding::of(sysfs, *address)?.restore(before).context("Putting its driver back")
            }
            Self::Vf { pf, before } => put_vf_back(sysfs, *pf, before),
            Self::Sriov { pf, before, eswitch_mode } => {
                if !sysfs.device(*pf).exists() {
                    tracing::warn!("{pf}: it is gone, so its virtual functions cannot be put back");
                    return Ok(());
                }
                put_vfs_back(sysfs, *pf, before, *eswitch_mode).context("Putting its virtual functions back")
            }
            Self::Link { name, before } => Ok(with_network(async |network| {
                let now = network.settings().await?;
                match (before, now.get(name)) {
                    (Some(before), None) if matches!(before.kind, netconfig::LinkKind::Foreign(_)) => {
                        tracing::warn!("{name}: it is gone, so its settings cannot be put back");
                        Ok(())
                    }
                    _ => network.realize(name, before.as_deref()).await,
                }
            })?),
            Self::Nat { name, before } => Ok(host.nats.realize(name, before.as_deref())?),
            Self::Dhcp { name, before: false } => Ok(host.dhcp.stop(name)?),
            Self::Dhcp { name, before: true } => {
                if with_network(async |network| network.settings().await)?.contains_key(name) {
                    return Ok(host.dhcp.start(name)?);
                }
                tracing::warn!("{name}: it is gone, so nothing asks for its address any more");
                Ok(())
            }
            Self::Forward { link, mac, before } => {
                match with_network(async |network| network.tell(link, *mac, *before).await) {
                    Err(netconfig::Error::Absent(_)) => Ok(()),
                    told => Ok(told?),
                }
            }
            Self::Hugepages { size, before } => {
                crate::host::set_huge_pages(Path::new("/sys"), size.0, *before).map(|_| ())
            }
            Self::Routes { before } => {
                for lost in with_network(async |network| network.restore_routes(before).await)? {
                    tracing::warn!("The route {lost} cannot be put back");
                }
                Ok(())
            }
        }
    }
}

fn put_vf_back(sysfs: &Sysfs, pf: PciAddress, before: &VfState) -> anyhow::Result<()> {
    let interface = netconfig::blocking::interface_of(&sysfs.device(pf))
        .with_context(|| format!("{pf}: looking for its interface"))?;
    let Some(interface) = interface else {
        tracing::warn!("{pf}: it has no interface any more, so VF {} cannot be put back", before.id);
        return Ok(());
    };
    let reports = match with_network(async |network| network.restore_vf(&interface, before).await) {
        Err(netconfig::Error::NoVf { .. }) => return Ok(()),
        reports => reports?,
    };
    for report in reports.iter().filter(|report| !report.holds()) {
        tracing::warn!("{pf}: putting VF {} back: {report}", before.id);
    }
    Ok(())
}

fn put_vfs_back(
    sysfs: &Sysfs,
    pf: PciAddress,
    before: &SriovState,
    eswitch_mode: Option<EswitchMode>,
) -> anyhow::Result<()> {
    let function = PhysicalFunction::of(sysfs, pf)?;
    if let Some(mode) = eswitch_mode
        && crate::host::eswitch_mode(pf)? != Some(mode)
    {
        function.resize(0)?;
        crate::host::set_eswitch_mode(pf, mode)?;
    }
    Ok(function.restore(before)?)
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vf { pf, before } => write!(f, "{pf}: VF {} as it was", before.id),
            Self::Driver { address, before, .. } => {
                write!(f, "{address}: driver -> {}", before.driver.as_deref().unwrap_or("none"))
            }
            Self::Sriov { pf, before, .. } => write!(f, "{pf}: num-vfs -> {}", before.num_vfs),
            Self::Link { name, before: None } => write!(f, "{name}: remove"),
            Self::Link { name, before: Some(_) } => write!(f, "{name}: settings as they were"),
            Self::Nat { name, before: None } => write!(f, "{name}: no NAT network any more"),
            Self::Nat { name, before: Some(_) } => write!(f, "{name}: the NAT network as it was"),
            Self::Dhcp { name, before } => {
                write!(f, "{name}: dhcp4 -> {}", if *before { "on" } else { "off" })
            }
            Self::Forward { link, mac, before } => {
                write!(f, "{link}: fdb {}{mac}", if *before { '+' } else { '-' })
            }
            Self::Hugepages { size, before } => write!(f, "huge pages of {size} -> {before}"),
            Self::Routes { .. } => f.write_str("routes as they were"),
        }
    }
}
