//! The section `networks:` of an appliance file. Keys are those of nmstate where it has them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::settings::{Address, VlanMembership};
use crate::{MacAddress, VlanProtocol};

/// One network. Which keys mean something depends on its type; [`merge`](crate::merge::merge) says so of those that do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NetworkSection {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: NetworkType,
    /// Largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// MAC address of the box itself on it.
    #[serde(alias = "hwaddr", skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<MacAddress>,
    /// Addresses of the box itself on it, with the length of their network: all that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<Address>>,
    /// The box gets its address there by DHCP.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dhcp4: bool,
    /// Where packets to everywhere else go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Of a bridge: spanning tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<Stp>,
    /// Of a bridge: seconds until an address that is not seen any more is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing_time: Option<u32>,
    /// Of a bridge: its ports are members of VLANs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_filtering: Option<bool>,
    /// Of a bridge or bond: links of the host that are its ports. Others that it has are left alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Port>,
    /// Of a bridge: MAC addresses of guests on it that this file does not run. A port that has virtual functions is told of them
    /// (`bridge fdb add MAC dev PORT self`), so that its card sends what its VFs have for them to the bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_macs: Vec<MacAddress>,
    /// Of a VLAN or macvtap: the link below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_iface: Option<String>,
    /// Of a VLAN: 1 to 4094.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// Of a VLAN: kind of its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<VlanProtocol>,
    /// Of a bond or macvtap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Of a bond: milliseconds between looks at its ports' links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miimon: Option<u32>,
    /// Of a NAT network: addresses for guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<Dhcp>,
    /// Of a NAT network: it reaches no other network of this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkType {
    /// A bridge: guests and ports of the host on one wire.
    Bridge,
    /// A VLAN on another link.
    Vlan,
    /// Several links as one.
    Bond,
    /// A guest's card right on a link of the host.
    Macvtap,
    /// A bridge without ports, whose guests reach the rest by the box's own address.
    Nat,
}

impl fmt::Display for NetworkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Vlan => "vlan",
            Self::Bond => "bond",
            Self::Macvtap => "macvtap",
            Self::Nat => "nat",
        })
    }
}

/// Spanning tree protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Stp {
    /// On or off.
    pub enabled: bool,
}

/// A port of a bridge or bond.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Port {
    /// Its VLANs, on a bridge with `vlan-filtering`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<PortVlan>,
}

/// VLANs of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortVlan {
    /// One VLAN without tags, or several with.
    pub mode: PortMode,
    /// Of an access port its VLAN; of a trunk the native one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// Of a trunk: VLANs, single ones and ranges, `[100, "200-210"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk_tags: Vec<Tags>,
    /// Of a trunk: what has no tag belongs to `tag`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub enable_native: bool,
}

impl PortVlan {
    /// What the port is a member of, or what is wrong with it.
    pub fn memberships(&self) -> Result<BTreeMap<u16, VlanMembership>, String> {
        let tags: Vec<u16> = self.trunk_tags.iter().flat_map(|tags| tags.all()).collect();
        if let Some(wrong) = tags.iter().chain(&self.tag).find(|tag| !(1..=4094).contains(*tag)) {
            return Err(format!("A VLAN is 1 to 4094, not {wrong}"));
        }
        let native = self.tag.map(|tag| (tag, VlanMembership { pvid: true, untagged: true }));
        match self.mode {
            PortMode::Access if !tags.is_empty() || self.enable_native => {
                Err("An access port has one VLAN: `tag`".to_owned())
            }
            PortMode::Access if self.tag.is_none() => Err("An access port needs a `tag`".to_owned()),
            PortMode::Trunk if self.enable_native != self.tag.is_some() => {
                Err("A trunk's native VLAN needs both `enable-native: true` and `tag`".to_owned())
            }
            PortMode::Trunk if tags.is_empty() && self.tag.is_none() => {
                Err("A trunk needs `trunk-tags`".to_owned())
            }
            _ => Ok(tags.into_iter().map(|tag| (tag, VlanMembership::default())).chain(native).collect()),
        }
    }
}

/// How a port carries VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortMode {
    /// One, without tags.
    Access,
    /// Several, with tags.
    Trunk,
}

/// One VLAN, or all from a first to a last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "TagsText")]
pub enum Tags {
    /// One.
    One(u16),
    /// First and last.
    #[serde(serialize_with = "as_range")]
    Range(u16, u16),
}

/// How [`Tags`] are written.
#[derive(Deserialize)]
#[serde(untagged, expecting = "write a VLAN, such as 100, or a range in quotes, such as \"200-210\"")]
enum TagsText {
    Number(u16),
    Text(String),
}

impl TryFrom<TagsText> for Tags {
    type Error = &'static str;

    fn try_from(text: TagsText) -> Result<Self, Self::Error> {
        match text {
            TagsText::Number(tag) => Ok(Self::One(tag)),
            TagsText::Text(text) => text
                .split_once('-')
                .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)))
                .filter(|(first, last)| first <= last)
                .map(|(first, last)| Self::Range(first, last))
                .ok_or("write a VLAN, such as 100, or a range in quotes, such as \"200-210\""),
        }
    }
}

fn as_range<S: serde::Serializer>(first: &u16, last: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{first}-{last}"))
}

impl Tags {
    /// All of them.
    pub fn all(self) -> std::ops::RangeInclusive<u16> {
        match self {
            Self::One(tag) => tag..=tag,
            Self::Range(first, last) => first..=last,
        }
    }
}

impl JsonSchema for Tags {
    fn schema_name() -> Cow<'static, str> {
        "Tags".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A VLAN, such as 100, or a range, such as \"200-210\".",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 4094},
                {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}
            ]
        })
    }
}

/// Modes of bonds and of macvtaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Of a bond: each port in turn.
    BalanceRr,
    /// Of a bond: one port, another when it fails.
    ActiveBackup,
    /// Of a bond: by a hash of the addresses.
    BalanceXor,
    /// Of a bond: every packet by all ports.
    Broadcast,
    /// Of a bond: LACP.
    #[serde(rename = "802.3ad")]
    Lacp,
    /// Of a bond: sending by load.
    BalanceTlb,
    /// Of a bond: sending and receiving by load.
    BalanceAlb,
    /// Of a macvtap: all on the same base reach each other.
    Bridge,
    /// Of a macvtap: by the switch that the base is plugged into.
    Vepa,
    /// Of a macvtap: nobody on the same base.
    Private,
    /// Of a macvtap: the base is one guest's alone.
    #[serde(alias = "passthrough")]
    Passthru,
}

/// Addresses for guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Dhcp {
    /// The first and the last, `10.77.0.50-10.77.0.150`.
    pub range: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_numbers_and_ranges() {
        let read = |text: &str| serde_json::from_str::<Vec<Tags>>(text);
        assert_eq!(read("[100, \"200-210\"]").unwrap(), [Tags::One(100), Tags::Range(200, 210)]);
        for wrong in ["[\"9-3\"]", "[\"a\"]", "[70000]", "[true]"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("write a VLAN"), "{error}");
        }
        assert_eq!(serde_json::to_string(&[Tags::One(7), Tags::Range(8, 9)]).unwrap(), "[7,\"8-9\"]");
    }
}
