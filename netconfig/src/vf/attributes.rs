//! What may be asked for of a virtual function. Names are those of `ip link set DEV vf N` spelled out, and of nmstate.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::MacAddress;

/// Attributes of one VF. What is absent is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VfAttributes {
    /// The MAC address that the VF's driver gets, in the guest too.
    #[serde(alias = "hwaddr", skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<MacAddress>,
    /// Its VLAN, 1 to 4094, which the card adds and strips unseen by the guest; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4094))]
    pub vlan_id: Option<u16>,
    /// Priority in the VLAN tag, 0 to 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 7))]
    pub qos: Option<u8>,
    /// Kind of the VLAN tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_proto: Option<VlanProtocol>,
    /// Drop what the guest sends from other MAC addresses than its own.
    #[serde(alias = "spoofchk", skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Let the guest change its MAC address and receive what is not for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// The link that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_state: Option<LinkMode>,
    /// Least rate of sending, in Mbit/s; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tx_rate: Option<u32>,
    /// Greatest rate of sending, in Mbit/s; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tx_rate: Option<u32>,
}

impl VfAttributes {
    /// These, and where one is absent that of `defaults`.
    pub fn or(self, defaults: &Self) -> Self {
        Self {
            mac_address: self.mac_address.or(defaults.mac_address),
            vlan_id: self.vlan_id.or(defaults.vlan_id),
            qos: self.qos.or(defaults.qos),
            vlan_proto: self.vlan_proto.or(defaults.vlan_proto),
            spoof_check: self.spoof_check.or(defaults.spoof_check),
            trust: self.trust.or(defaults.trust),
            link_state: self.link_state.or(defaults.link_state),
            min_tx_rate: self.min_tx_rate.or(defaults.min_tx_rate),
            max_tx_rate: self.max_tx_rate.or(defaults.max_tx_rate),
        }
    }
}

/// The kind of a VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum VlanProtocol {
    /// Customer tag.
    #[default]
    #[serde(rename = "802.1q", alias = "802.1Q")]
    Ieee8021Q,
    /// Service tag, as used in QinQ.
    #[serde(rename = "802.1ad", alias = "802.1AD")]
    Ieee8021Ad,
}

/// The link that a VF shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkMode {
    /// That of the port.
    Auto,
    /// Always up: VFs of one port reach each other though its cable is out.
    Enable,
    /// Always down.
    Disable,
}

impl fmt::Display for VlanProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for LinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
