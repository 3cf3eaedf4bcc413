//! What a link is set to: all of it that Throughway reads, changes and puts back. Names are those of iproute2 and nmstate.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{MacAddress, VlanProtocol};

/// A link's settings. What it is does not change while it lives: another kind under the same name is another link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LinkSettings {
    /// What it is.
    pub kind: LinkKind,
    /// Administratively up.
    #[serde(default)]
    pub up: bool,
    /// Largest packet, in bytes.
    #[serde(default = "ethernet")]
    pub mtu: u32,
    /// MAC address; none for a link that has none, or whose address is left to the kernel.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
    /// The bridge or bond that it is a port of.
    #[serde(default)]
    pub controller: Option<String>,
    /// Its addresses of global and site scope; link-local ones are the kernel's own.
    #[serde(default)]
    pub addresses: BTreeSet<Address>,
    /// Gateways of default routes through it.
    #[serde(default)]
    pub gateways: BTreeSet<IpAddr>,
    /// Of a bridge with VLAN filtering and its ports: the VLANs it is a member of.
    #[serde(default)]
    pub vlans: BTreeMap<u16, VlanMembership>,
    /// Addresses that are told to the card so that its VFs reach them (`bridge fdb add ... self`).
    #[serde(default)]
    pub forwarded: BTreeSet<MacAddress>,
}

fn ethernet() -> u32 {
    1500
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A card's interface, or another link that Throughway neither makes nor removes: the kernel's name for its kind.
    Foreign(String),
    /// A bridge.
    Bridge(Bridge),
    /// A VLAN on another link.
    Vlan {
        /// The link below.
        base: String,
        /// 1 to 4094.
        id: u16,
        /// Kind of its tag.
        protocol: VlanProtocol,
    },
    /// Several links as one.
    Bond(Bond),
    /// A card of a guest right on another link.
    Macvtap {
        /// The link below.
        base: String,
        /// Who reaches whom.
        mode: MacvtapMode,
    },
    /// A card of a guest, for a bridge.
    Tap {
        /// It has several queues.
        multi_queue: bool,
        /// Packets carry the header of virtio-net (checksums and segmentation left to the receiver).
        vnet_hdr: bool,
    },
}

impl LinkKind {
    /// The link below.
    pub fn base(&self) -> Option<&str> {
        match self {
            Self::Vlan { base, .. } | Self::Macvtap { base, .. } => Some(base),
            _ => None,
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(kind) => f.write_str(kind),
            Self::Bridge(_) => f.write_str("bridge"),
            Self::Vlan { base, id, .. } => write!(f, "vlan {id} on {base}"),
            Self::Bond(bond) => write!(f, "bond {}", bond.mode),
            Self::Macvtap { base, mode } => write!(f, "macvtap {mode} on {base}"),
            Self::Tap { .. } => f.write_str("tap"),
        }
    }
}

/// A bridge's own settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Bridge {
    /// Spanning tree protocol.
    pub stp: bool,
    /// Seconds until an address that is not seen any more is forgotten.
    pub ageing_time: u32,
    /// Ports are members of VLANs.
    pub vlan_filtering: bool,
}

/// A bond's own settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Bond {
    /// How its ports share the work.
    pub mode: BondMode,
    /// Milliseconds between looks at the ports' links; 0 for none.
    pub miimon: u32,
}

/// Modes of a bond, by the kernel's names and numbers (Documentation/networking/bonding.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// 0: each port in turn.
    BalanceRr,
    /// 1: one port, another when it fails.
    ActiveBackup,
    /// 2: by a hash of the addresses.
    BalanceXor,
    /// 3: every packet by all ports.
    Broadcast,
    /// 4: LACP.
    #[serde(rename = "802.3ad")]
    Lacp,
    /// 5: sending by load.
    BalanceTlb,
    /// 6: sending and receiving by load.
    BalanceAlb,
}

impl fmt::Display for BondMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Who reaches whom on a macvtap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvtapMode {
    /// All on the same base reach each other.
    Bridge,
    /// By the switch that the base is plugged into.
    Vepa,
    /// Nobody on the same base.
    Private,
    /// The base is this guest's alone.
    #[serde(alias = "passthrough")]
    Passthru,
}

impl fmt::Display for MacvtapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Membership of a port in a VLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VlanMembership {
    /// What comes in without a tag belongs to it.
    pub pvid: bool,
    /// What goes out has no tag.
    pub untagged: bool,
}

/// How a card's switch between its port and its VFs is run (devlink eswitch mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EswitchMode {
    /// By MAC address and VLAN, in the card.
    Legacy,
    /// By the host, which sees each VF as a link of its own.
    Switchdev,
}

impl fmt::Display for EswitchMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An address and the length of its network's prefix, `10.0.0.5/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network: to 32, or 128.
    pub prefix: u8,
}

/// Text that is no address with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an address with the length of its network, such as 10.0.0.5/24 or fd00::5/64")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let (address, prefix) = text.split_once('/').ok_or(NoAddress)?;
        let address: IpAddr = address.parse().map_err(|_| NoAddress)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|prefix| digits && *prefix <= most).ok_or(NoAddress)?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Address {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An IP address with the length of its network, such as 10.0.0.5/24.",
            "pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_have_a_prefix_of_their_family() {
        assert_eq!("10.0.0.5/24".parse::<Address>().unwrap().to_string(), "10.0.0.5/24");
        assert_eq!("fd00::5/64".parse::<Address>().unwrap().prefix, 64);
        for wrong in ["10.0.0.5", "10.0.0.5/33", "10.0.0/24", "fd00::5/129", "10.0.0.5/+4", "/8", ""] {
            assert_eq!(wrong.parse::<Address>(), Err(NoAddress), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(address: IpAddr, prefix in 0_u8..=32) {
            let address = Address { address, prefix };
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }
    }
}
