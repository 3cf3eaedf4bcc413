//! What a virtual function has, as the kernel reads it back.

use rtnetlink::packet_route::link::{self, LinkAttribute, LinkMessage, LinkVfInfo, VfInfo, VfVlan};
use serde::{Deserialize, Serialize};

use super::{LinkMode, VlanProtocol};
use crate::MacAddress;

/// One VF's attributes. What the driver does not report is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VfState {
    /// Its index.
    pub id: u32,
    /// MAC address; zeros while the VF's own driver chooses.
    pub mac_address: Option<MacAddress>,
    /// VLAN, 0 for none.
    pub vlan_id: Option<u16>,
    /// Priority in the VLAN tag.
    pub qos: Option<u8>,
    /// Kind of the VLAN tag.
    pub vlan_proto: Option<VlanProtocol>,
    /// Spoofed packets are dropped.
    pub spoof_check: Option<bool>,
    /// The guest is trusted.
    pub trust: Option<bool>,
    /// The link that it shows.
    pub link_state: Option<LinkMode>,
    /// Mbit/s.
    pub min_tx_rate: Option<u32>,
    /// Mbit/s, 0 for no limit.
    pub max_tx_rate: Option<u32>,
}

/// All VFs that a PF's link message tells of (IFLA_VFINFO_LIST), by index.
pub(crate) fn of_link(message: &LinkMessage) -> Vec<VfState> {
    let lists = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    let mut states: Vec<VfState> = lists.flatten().map(of_vf).collect();
    states.sort_by_key(|state| state.id);
    states
}

fn of_vf(info: &LinkVfInfo) -> VfState {
    let mut state = VfState::default();
    for attribute in &info.0 {
        state.take(attribute);
    }
    state
}

impl VfState {
    fn take(&mut self, attribute: &VfInfo) {
        match attribute {
            VfInfo::Mac(mac) => {
                self.id = mac.vf_id;
                self.mac_address = mac.mac.first_chunk().map(|octets| MacAddress(*octets));
            }
            VfInfo::Vlan(vlan) => {
                self.vlan_id = u16::try_from(vlan.vlan_id).ok();
                self.qos = u8::try_from(vlan.qos).ok();
            }
            VfInfo::VlanList(list) => {
                let first = list.iter().find_map(|entry| match entry {
                    VfVlan::Info(info) => Some(info.protocol),
                    _ => None,
                });
                self.vlan_proto = first.and_then(|protocol| match protocol {
                    link::VlanProtocol::Ieee8021Q => Some(VlanProtocol::Ieee8021Q),
                    link::VlanProtocol::Ieee8021Ad => Some(VlanProtocol::Ieee8021Ad),
                    _ => None,
                });
            }
            // Where the driver does not say, the kernel sends -1, which the library reads as off.
            VfInfo::SpoofCheck(check) => self.spoof_check = Some(check.enabled),
            VfInfo::Trust(trust) => self.trust = Some(trust.enabled),
            VfInfo::LinkState(link) => {
                self.link_state = match link.state {
                    link::VfLinkState::Auto => Some(LinkMode::Auto),
                    link::VfLinkState::Enable => Some(LinkMode::Enable),
                    link::VfLinkState::Disable => Some(LinkMode::Disable),
                    _ => None,
                }
            }
            VfInfo::Rate(rate) => {
                self.min_tx_rate = Some(rate.min_tx_rate);
                self.max_tx_rate = Some(rate.max_tx_rate);
            }
            _ => {}
        }
    }
}
