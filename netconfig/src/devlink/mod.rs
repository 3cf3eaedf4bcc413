//! How a card's switch is run, asked and told by devlink (Documentation/networking/devlink/devlink-eswitch-attr.rst).
//!
//! A card is named by its bus and its name there: `pci` and `0000:65:00.0`, `netdevsim` and `netdevsim1`.

mod generic;

use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use serde::{Deserialize, Serialize};

use crate::EswitchMode;
use crate::refusal::Refusal;
use generic::{Attributes, Failure, Generic};

/// From linux/devlink.h.
const FAMILY: &str = "devlink";
const VERSION: u8 = 1;
const ESWITCH_GET: u8 = 29;
const ESWITCH_SET: u8 = 30;
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;
const ESWITCH_MODE: u16 = 25;
const LEGACY: u16 = 0;
const SWITCHDEV: u16 = 1;

/// How the switch of a card is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Eswitch {
    /// So.
    Mode(EswitchMode),
    /// It cannot be told: the kernel, the driver or the card has no such thing. Why.
    Unsupported(String),
}

/// The mode of a card's switch could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DevlinkError {
    /// No netlink socket is to be had.
    #[error("Opening a netlink socket: {0}")]
    Socket(io::Error),
    /// There is nothing to change.
    #[error("{device}: its eswitch mode cannot be changed: {reason}")]
    Unsupported {
        /// The card, by its name on its bus.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The kernel or the driver refused.
    #[error("{device}: {doing}: {refusal}")]
    Refused {
        /// The card, by its name on its bus.
        device: String,
        /// What was being done.
        doing: String,
        /// The errno, and the kernel's words.
        refusal: Refusal,
    },
    /// This process may not.
    #[error("{device}: {doing} needs root (CAP_NET_ADMIN), which this process does not have")]
    NotPermitted {
        /// The card, by its name on its bus.
        device: String,
        /// What was being done.
        doing: String,
    },
}

/// How the switch of the card `device` on `bus` is run.
pub fn eswitch_mode(bus: &str, device: &str) -> Result<Eswitch, DevlinkError> {
    let doing = "reading its eswitch mode";
    let asked =
        Generic::open(FAMILY).and_then(|mut devlink| devlink.ask(ESWITCH_GET, VERSION, &named(bus, device)));
    let answer = match asked {
        Ok(answer) => answer,
        Err(failure) => {
            return unsupported(&failure)
                .map(Eswitch::Unsupported)
                .ok_or_else(|| failed(device, doing, failure));
        }
    };
    let mode = answer.iter().find_map(|answer| answer.u16(ESWITCH_MODE));
    Ok(match mode {
        Some(LEGACY) => Eswitch::Mode(EswitchMode::Legacy),
        Some(SWITCHDEV) => Eswitch::Mode(EswitchMode::Switchdev),
        Some(other) => {
            Eswitch::Unsupported(format!("it is in eswitch mode {other}, which is not known here"))
        }
        None => Eswitch::Unsupported("its driver tells no eswitch mode".to_owned()),
    })
}

/// Has the switch of the card `device` on `bus` run so; what is so already is left alone. This can take seconds, and takes away
/// the links of the card's VFs, or makes them.
pub fn set_eswitch_mode(bus: &str, device: &str, mode: EswitchMode) -> Result<(), DevlinkError> {
    match eswitch_mode(bus, device)? {
        Eswitch::Mode(now) if now == mode => return Ok(()),
        Eswitch::Mode(_) => {}
        Eswitch::Unsupported(reason) => {
            return Err(DevlinkError::Unsupported { device: device.to_owned(), reason });
        }
    }
    let (number, name) = match mode {
        EswitchMode::Legacy => (LEGACY, "legacy"),
        EswitchMode::Switchdev => (SWITCHDEV, "switchdev"),
    };
    let mut attributes = named(bus, device);
    attributes.push_u16(ESWITCH_MODE, number);
    let told = Generic::open(FAMILY).and_then(|mut devlink| devlink.ask(ESWITCH_SET, VERSION, &attributes));
    match told {
        Ok(_) => Ok(()),
        Err(failure) => match unsupported(&failure) {
            Some(reason) => Err(DevlinkError::Unsupported { device: device.to_owned(), reason }),
            None => Err(failed(device, &format!("setting its eswitch mode to {name}"), failure)),
        },
    }
}

fn named(bus: &str, device: &str) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.push_text(BUS_NAME, bus);
    attributes.push_text(DEV_NAME, device);
    attributes
}

/// Why there is no such thing, when that is what a failure means.
fn unsupported(failure: &Failure) -> Option<String> {
    match failure {
        Failure::NoFamily => Some("the kernel has no devlink".to_owned()),
        Failure::Refused(refusal) if refusal.is(Errno::NODEV) => {
            Some("its driver has no devlink, or there is no such card".to_owned())
        }
        Failure::Refused(refusal) if refusal.is(Errno::OPNOTSUPP) => {
            Some(format!("its driver has no eswitch modes ({refusal})"))
        }
        Failure::Refused(_) | Failure::Socket(_) => None,
    }
}

fn failed(device: &str, doing: &str, failure: Failure) -> DevlinkError {
    let (device, doing) = (device.to_owned(), doing.to_owned());
    let privileged =
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    match failure {
        Failure::Socket(error) => DevlinkError::Socket(error),
        Failure::NoFamily => {
            DevlinkError::Unsupported { device, reason: "the kernel has no devlink".to_owned() }
        }
        Failure::Refused(refusal) if refusal.is(Errno::PERM) && !privileged() => {
            DevlinkError::NotPermitted { device, doing }
        }
        Failure::Refused(refusal) => DevlinkError::Refused { device, doing, refusal },
    }
}
