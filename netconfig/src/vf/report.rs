//! What became of each attribute that was asked for: requested, accepted, actual.

use std::fmt;

use serde::Serialize;

use crate::Refusal;

use super::{LinkMode, VfState, VlanProtocol};

/// One attribute of a VF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// `mac-address`
    MacAddress,
    /// `vlan-id`
    VlanId,
    /// `qos`
    Qos,
    /// `vlan-proto`
    VlanProto,
    /// `spoof-check`
    SpoofCheck,
    /// `trust`
    Trust,
    /// `link-state`
    LinkState,
    /// `min-tx-rate`
    MinTxRate,
    /// `max-tx-rate`
    MaxTxRate,
}

impl Attribute {
    /// It keeps the guest from others on the wire: to go on without it would be to open what was asked to be shut.
    pub fn confines(self) -> bool {
        matches!(self, Self::VlanId | Self::VlanProto | Self::SpoofCheck)
    }

    /// What `state` has of it, as the file would say it; none where the driver does not report it.
    pub(crate) fn actual(self, state: &VfState) -> Option<String> {
        match self {
            Self::MacAddress => state.mac_address.map(|mac| mac.to_string()),
            Self::VlanId => state.vlan_id.map(|vlan| vlan.to_string()),
            Self::Qos => state.qos.map(|qos| qos.to_string()),
            Self::VlanProto => state.vlan_proto.map(|proto| Self::protocol(proto).to_owned()),
            Self::SpoofCheck => state.spoof_check.map(|on| on.to_string()),
            Self::Trust => state.trust.map(|on| on.to_string()),
            Self::LinkState => state.link_state.map(|mode| Self::link_mode(mode).to_owned()),
            Self::MinTxRate => state.min_tx_rate.map(|rate| rate.to_string()),
            Self::MaxTxRate => state.max_tx_rate.map(|rate| rate.to_string()),
        }
    }

    pub(crate) fn link_mode(mode: LinkMode) -> &'static str {
        match mode {
            LinkMode::Auto => "auto",
            LinkMode::Enable => "enable",
            LinkMode::Disable => "disable",
        }
    }

    pub(crate) fn protocol(proto: VlanProtocol) -> &'static str {
        match proto {
            VlanProtocol::Ieee8021Q => "802.1q",
            VlanProtocol::Ieee8021Ad => "802.1ad",
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MacAddress => "mac-address",
            Self::VlanId => "vlan-id",
            Self::Qos => "qos",
            Self::VlanProto => "vlan-proto",
            Self::SpoofCheck => "spoof-check",
            Self::Trust => "trust",
            Self::LinkState => "link-state",
            Self::MinTxRate => "min-tx-rate",
            Self::MaxTxRate => "max-tx-rate",
        })
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Accepted, and reads back as asked for.
    Kept,
    /// Accepted, but reads back otherwise, or not at all.
    Differs,
    /// This driver does not have it (EOPNOTSUPP).
    Unsupported,
    /// Refused, with the errno's words.
    Refused(String),
}

/// One attribute's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Which.
    pub attribute: Attribute,
    /// What was asked for, as the file says it.
    pub requested: String,
    /// What reads back; none where the driver does not report it.
    pub actual: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
}

impl Report {
    pub(crate) fn accepted(attribute: Attribute, requested: String, after: &VfState) -> Self {
        let actual = attribute.actual(after);
        let verdict = if actual.as_ref() == Some(&requested) { Verdict::Kept } else { Verdict::Differs };
        Self { attribute, requested, actual, verdict }
    }

    pub(crate) fn refused(attribute: Attribute, requested: String, after: &VfState, error: &Refusal) -> Self {
        let actual = attribute.actual(after);
        let verdict = match error.raw_os_error() {
            // EOPNOTSUPP, and ENOTSUPP, which some drivers return though it is not for user space and has no name there.
            Some(95 | 524) => Verdict::Unsupported,
            // EPROTONOSUPPORT is about the kind of tag; the VLAN that travels with it is refused for its sake.
            Some(93) if attribute == Attribute::VlanProto => Verdict::Unsupported,
            _ => Verdict::Refused(error.to_string()),
        };
        Self { attribute, requested, actual, verdict }
    }

    /// It is as asked for, whatever the way.
    pub fn holds(&self) -> bool {
        self.verdict == Verdict::Kept || self.actual.as_ref() == Some(&self.requested)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attribute, requested, actual, verdict } = self;
        let actual = actual.as_deref().unwrap_or("not reported");
        match verdict {
            Verdict::Kept => write!(f, "{attribute} {requested}"),
            Verdict::Differs => write!(f, "{attribute} {requested} was accepted, but reads back as {actual}"),
            Verdict::Unsupported => {
                write!(f, "{attribute} {requested} is not supported by this driver; it stays {actual}")
            }
            Verdict::Refused(why) => {
                write!(f, "{attribute} {requested} was refused, it stays {actual}: {why}")
            }
        }
    }
}
