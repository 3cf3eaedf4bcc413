//! Links of the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// A bridge.
    Bridge,
    /// A bridge behind the host's own addresses (NAT).
    Nat,
    /// Macvtaps of a link.
    Macvtap,
    /// A VLAN on another link.
    Vlan,
    /// Several links as one.
    Bond,
}

/// A network of the host's, with what is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Network {
    /// Its name in the file, and of its link.
    pub name: String,
    /// What it is.
    pub kind: NetworkKind,
    /// It is up; none where it is not there.
    pub up: Option<bool>,
    /// The host's addresses on it, with their prefix lengths.
    pub addresses: Vec<String>,
    /// The largest packet.
    pub mtu: Option<u32>,
    /// It is the way that the administrator comes by.
    pub management: bool,
    /// What is plugged into it: cards of the host, and taps of guests.
    pub ports: Vec<Port>,
}

/// What is plugged into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Port {
    /// The link's name.
    pub link: String,
    /// It is up, and has a carrier; none where it is not there.
    pub up: Option<bool>,
    /// Its VLANs in words, where it has some: `access 100`.
    pub vlan: Option<String>,
    /// The PCI function behind it.
    pub device: Option<String>,
    /// The guest whose card it is, and the card's name.
    pub guest: Option<(String, String)>,
}
