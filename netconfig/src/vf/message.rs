//! Requests to set attributes of a VF: one netlink message each, so that one which a driver does not know spoils no other.

use rtnetlink::packet_route::link::{
    self, LinkAttribute, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfVlan, VfVlanInfo,
};

use super::report::Attribute;
use super::{LinkMode, VfAttributes, VfState, VlanProtocol};

/// One thing to set, and the attributes that it carries with what they were asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) attributes: Vec<(Attribute, String)>,
    pub(crate) info: VfInfo,
}

impl Request {
    fn new(attributes: Vec<(Attribute, String)>, info: VfInfo) -> Self {
        Self { attributes, info }
    }

    pub(crate) fn is_of_rates(&self) -> bool {
        matches!(self.info, VfInfo::Rate(_))
    }

    /// RTM_SETLINK of the PF with IFLA_VFINFO_LIST { IFLA_VF_INFO { this } }.
    pub(crate) fn message(&self, pf_index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = pf_index;
        message.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![self.info.clone()])]));
        message
    }
}

/// What has to be sent so that VF `id`, which is as `now` says, gets `wanted`. Attributes that travel together (VLAN with
/// priority and protocol, both rates) take what is not asked for from `now`.
pub(crate) fn requests(id: u32, wanted: &VfAttributes, now: &VfState) -> Vec<Request> {
    let mut requests = Vec::new();
    // Trust first: some drivers let only a trusted VF have the rest.
    if let Some(on) = wanted.trust {
        requests.push(Request::new(
            vec![(Attribute::Trust, on.to_string())],
            VfInfo::Trust(VfInfoTrust::new(id, on)),
        ));
    }
    if let Some(mac) = wanted.mac_address {
        let info = VfInfo::Mac(VfInfoMac::new(id, &mac.0));
        requests.push(Request::new(vec![(Attribute::MacAddress, mac.to_string())], info));
    }
    requests.extend(vlan(id, wanted, now));
    if let Some(on) = wanted.spoof_check {
        let info = VfInfo::SpoofCheck(VfInfoSpoofCheck::new(id, on));
        requests.push(Request::new(vec![(Attribute::SpoofCheck, on.to_string())], info));
    }
    if let Some(mode) = wanted.link_state {
        let state = match mode {
            LinkMode::Auto => link::VfLinkState::Auto,
            LinkMode::Enable => link::VfLinkState::Enable,
            LinkMode::Disable => link::VfLinkState::Disable,
        };
        let info = VfInfo::LinkState(VfInfoLinkState::new(id, state));
        requests
            .push(Request::new(vec![(Attribute::LinkState, Attribute::link_mode(mode).to_owned())], info));
    }
    requests.extend(rates(id, wanted, now));
    requests
}

fn vlan(id: u32, wanted: &VfAttributes, now: &VfState) -> Option<Request> {
    let asked = [
        wanted.vlan_id.map(|vlan| (Attribute::VlanId, vlan.to_string())),
        wanted.qos.map(|qos| (Attribute::Qos, qos.to_string())),
        wanted.vlan_proto.map(|proto| (Attribute::VlanProto, Attribute::protocol(proto).to_owned())),
    ];
    let asked: Vec<_> = asked.into_iter().flatten().collect();
    if asked.is_empty() {
        return None;
    }
    let vlan_id = wanted.vlan_id.or(now.vlan_id).unwrap_or(0);
    let qos = wanted.qos.or(now.qos).unwrap_or(0);
    let info = match wanted.vlan_proto.or(now.vlan_proto).unwrap_or_default() {
        // The older attribute, which every driver's kernel knows.
        VlanProtocol::Ieee8021Q => VfInfo::Vlan(VfInfoVlan::new(id, vlan_id.into(), qos.into())),
        VlanProtocol::Ieee8021Ad => {
            let protocol = link::VlanProtocol::Ieee8021Ad;
            VfInfo::VlanList(vec![VfVlan::Info(VfVlanInfo::new(id, vlan_id.into(), qos.into(), protocol))])
        }
    };
    Some(Request::new(asked, info))
}

fn rates(id: u32, wanted: &VfAttributes, now: &VfState) -> Option<Request> {
    let asked = [
        wanted.min_tx_rate.map(|rate| (Attribute::MinTxRate, rate.to_string())),
        wanted.max_tx_rate.map(|rate| (Attribute::MaxTxRate, rate.to_string())),
    ];
    let asked: Vec<_> = asked.into_iter().flatten().collect();
    let least = wanted.min_tx_rate.or(now.min_tx_rate).unwrap_or(0);
    let most = wanted.max_tx_rate.or(now.max_tx_rate).unwrap_or(0);
    (!asked.is_empty()).then(|| Request::new(asked, VfInfo::Rate(VfInfoRate::new(id, least, most))))
}

/// What has to be sent so that a VF which is as `now` says is again as `before` said. Attributes that are so already are left alone.
pub(crate) fn restore_requests(before: &VfState, now: &VfState) -> Vec<Request> {
    fn changed<T: PartialEq + Copy>(before: Option<T>, now: Option<T>) -> Option<T> {
        before.filter(|_| before != now)
    }
    let wanted = VfAttributes {
        mac_address: changed(before.mac_address, now.mac_address),
        vlan_id: changed(before.vlan_id, now.vlan_id),
        qos: changed(before.qos, now.qos),
        vlan_proto: changed(before.vlan_proto, now.vlan_proto),
        spoof_check: changed(before.spoof_check, now.spoof_check),
        trust: changed(before.trust, now.trust),
        link_state: changed(before.link_state, now.link_state),
        min_tx_rate: changed(before.min_tx_rate, now.min_tx_rate),
        max_tx_rate: changed(before.max_tx_rate, now.max_tx_rate),
    };
    requests(before.id, &wanted, now)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
    use rtnetlink::packet_route::RouteNetlinkMessage;

    use super::*;
    use crate::MacAddress;

    /// Through bytes and back, as the kernel would read it.
    fn through_bytes(message: LinkMessage) -> LinkMessage {
        let mut out = NetlinkMessage::from(RouteNetlinkMessage::SetLink(message));
        out.finalize();
        let mut bytes = vec![0; out.buffer_len()];
        out.serialize(&mut bytes);
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::SetLink(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_attribute_travels_alone_and_survives_the_wire() {
        let wanted = VfAttributes {
            mac_address: Some(MacAddress([2, 0, 0, 0, 1, 0])),
            vlan_id: Some(100),
            spoof_check: Some(true),
            trust: Some(false),
            link_state: Some(LinkMode::Auto),
            max_tx_rate: Some(1000),
            ..Default::default()
        };
        let sent =
            requests(3, &wanted, &VfState { qos: Some(5), min_tx_rate: Some(10), ..Default::default() });
        assert_eq!(sent.len(), 6);
        for request in &sent {
            let message = through_bytes(request.message(7));
            assert_eq!(message.header.index, 7);
            assert_eq!(message.attributes, request.message(7).attributes);
        }
        assert!(sent.iter().any(|request| request.info == VfInfo::Vlan(VfInfoVlan::new(3, 100, 5))));
        assert!(sent.iter().any(|request| request.info == VfInfo::Rate(VfInfoRate::new(3, 10, 1000))));
    }

    #[test]
    fn a_service_tag_needs_the_list() {
        let wanted = VfAttributes {
            vlan_id: Some(9),
            vlan_proto: Some(VlanProtocol::Ieee8021Ad),
            ..Default::default()
        };
        let sent = requests(0, &wanted, &VfState::default());
        assert!(matches!(sent.as_slice(), [Request { info: VfInfo::VlanList(_), .. }]));
    }

    #[test]
    fn only_what_changed_is_put_back() {
        let before = VfState {
            mac_address: Some(MacAddress([0; 6])),
            vlan_id: Some(0),
            trust: Some(true),
            ..Default::default()
        };
        let now = VfState { mac_address: Some(MacAddress([2; 6])), ..before.clone() };
        let sent = restore_requests(&before, &now);
        assert_eq!(
            sent.iter().map(|request| request.attributes[0].0).collect::<Vec<_>>(),
            [Attribute::MacAddress]
        );
        assert!(restore_requests(&before, &before).is_empty());
    }
}
