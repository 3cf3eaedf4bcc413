//! What a link is: the kernel's name for its kind and that kind's own attributes (IFLA_LINKINFO), read and written.

use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::link::{
    BondMode as KernelBondMode, BridgeStpState, InfoBond, InfoBridge, InfoData, InfoKind, InfoMacVtap,
    InfoVlan, LinkAttribute, LinkInfo, LinkMessage, MacVtapMode as KernelMacvtapMode,
    VlanProtocol as KernelVlanProtocol,
};

use crate::VlanProtocol;
use crate::settings::{Bond, BondMode, Bridge, LinkKind, MacvtapMode};

/// Of times that the kernel tells in USER_HZ.
const TICKS_PER_SECOND: u32 = 100;
/// IFLA_TUN_TYPE, IFLA_TUN_VNET_HDR and IFLA_TUN_MULTI_QUEUE (linux/if_link.h), which have one byte each.
const TUN_TYPE: u16 = 3;
const TUN_VNET_HDR: u16 = 5;
const TUN_MULTI_QUEUE: u16 = 7;
/// IFF_TAP (linux/if_tun.h).
const TAP: u8 = 2;

/// What the link of `message` is, on `base`. One that is not understood to the end is none that Throughway makes.
pub(super) fn of(message: &LinkMessage, base: Option<String>) -> LinkKind {
    let mut info: &[LinkInfo] = &[];
    for attribute in &message.attributes {
        if let LinkAttribute::LinkInfo(found) = attribute {
            info = found;
        }
    }
    let kind = info.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
    let data = info.iter().find_map(|info| if let LinkInfo::Data(data) = info { Some(data) } else { None });
    let ours = data.and_then(|data| match (kind?, data) {
        (InfoKind::Bridge, InfoData::Bridge(data)) => Some(LinkKind::Bridge(bridge(data))),
        (InfoKind::Bond, InfoData::Bond(data)) => Some(LinkKind::Bond(bond(data)?)),
        (InfoKind::Vlan, InfoData::Vlan(data)) => vlan(data, base?),
        (InfoKind::MacVtap, InfoData::MacVtap(data)) => macvtap(data, base?),
        (InfoKind::Tun, data @ InfoData::Tun(_)) => tap(data),
        _ => None,
    });
    ours.unwrap_or_else(|| LinkKind::Foreign(kind.map(ToString::to_string).unwrap_or_default()))
}

fn bridge(data: &[InfoBridge]) -> Bridge {
    let mut bridge = Bridge { stp: false, ageing_time: 0, vlan_filtering: false };
    for attribute in data {
        match attribute {
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::AgeingTime(ticks) => bridge.ageing_time = ticks / TICKS_PER_SECOND,
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            _ => {}
        }
    }
    bridge
}

fn bond(data: &[InfoBond]) -> Option<Bond> {
    let (mut mode, mut miimon) = (None, 0);
    for attribute in data {
        match attribute {
            InfoBond::Mode(found) => mode = BOND_MODES.iter().find(|(_, kernel)| kernel == found),
            InfoBond::MiiMon(found) => miimon = *found,
            _ => {}
        }
    }
    Some(Bond { mode: mode?.0, miimon })
}

fn vlan(data: &[InfoVlan], base: String) -> Option<LinkKind> {
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for attribute in data {
        match attribute {
            InfoVlan::Id(found) => id = Some(*found),
            InfoVlan::Protocol(KernelVlanProtocol::Ieee8021Ad) => protocol = VlanProtocol::Ieee8021Ad,
            _ => {}
        }
    }
    Some(LinkKind::Vlan { base, id: id?, protocol })
}

fn macvtap(data: &[InfoMacVtap], base: String) -> Option<LinkKind> {
    let mode = data.iter().find_map(|attribute| match attribute {
        InfoMacVtap::Mode(found) => MACVTAP_MODES.iter().find(|(_, kernel)| kernel == found),
        _ => None,
    });
    Some(LinkKind::Macvtap { base, mode: mode?.0 })
}

fn tap(data: &InfoData) -> Option<LinkKind> {
    let InfoData::Tun(data) = data else { return None };
    let byte = |wanted: u16| {
        let attribute = data.iter().find(|attribute| attribute.kind() == wanted)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        value.first().copied()
    };
    (byte(TUN_TYPE)? == TAP).then(|| LinkKind::Tap {
        multi_queue: byte(TUN_MULTI_QUEUE) == Some(1),
        vnet_hdr: byte(TUN_VNET_HDR) == Some(1),
    })
}

/// What makes a link of kind `wanted`, or one of it from `now`; none for kinds that rtnetlink does not make.
///
/// Only what differs: a kernel without VLAN filtering refuses to be told that there is none, and a bond with ports to be told
/// its mode.
pub(crate) fn own_data(now: Option<&LinkKind>, wanted: &LinkKind) -> Option<Vec<LinkInfo>> {
    let (kind, data) = match wanted {
        LinkKind::Bridge(wanted) => {
            let now = if let Some(LinkKind::Bridge(now)) = now { Some(now) } else { None };
            (InfoKind::Bridge, InfoData::Bridge(bridge_data(now, *wanted)))
        }
        LinkKind::Bond(wanted) => {
            let now = if let Some(LinkKind::Bond(now)) = now { Some(now) } else { None };
            (InfoKind::Bond, InfoData::Bond(bond_data(now, *wanted)))
        }
        LinkKind::Vlan { id, protocol, .. } => {
            let protocol = match protocol {
                VlanProtocol::Ieee8021Q => KernelVlanProtocol::Ieee8021Q,
                VlanProtocol::Ieee8021Ad => KernelVlanProtocol::Ieee8021Ad,
            };
            (InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(*id), InfoVlan::Protocol(protocol)]))
        }
        LinkKind::Macvtap { mode, .. } => {
            let mode = MACVTAP_MODES.iter().find(|(ours, _)| ours == mode)?.1;
            (InfoKind::MacVtap, InfoData::MacVtap(vec![InfoMacVtap::Mode(mode)]))
        }
        LinkKind::Tap { .. } | LinkKind::Foreign(_) => return None,
    };
    Some(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}

fn bridge_data(now: Option<&Bridge>, wanted: Bridge) -> Vec<InfoBridge> {
    let mut data = Vec::new();
    if now.is_some_and(|now| now.stp) != wanted.stp {
        let on = if wanted.stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        data.push(InfoBridge::StpState(on));
    }
    if now.map(|now| now.ageing_time) != Some(wanted.ageing_time) {
        data.push(InfoBridge::AgeingTime(wanted.ageing_time.saturating_mul(TICKS_PER_SECOND)));
    }
    if now.is_some_and(|now| now.vlan_filtering) != wanted.vlan_filtering {
        data.push(InfoBridge::VlanFiltering(wanted.vlan_filtering));
    }
    data
}

fn bond_data(now: Option<&Bond>, wanted: Bond) -> Vec<InfoBond> {
    let mut data = Vec::new();
    if now.map(|now| now.mode) != Some(wanted.mode) {
        let mode = BOND_MODES.iter().find(|(ours, _)| *ours == wanted.mode);
        data.extend(mode.map(|(_, kernel)| InfoBond::Mode(*kernel)));
    }
    // After the mode, some of which set it.
    if now != Some(&wanted) {
        data.push(InfoBond::MiiMon(wanted.miimon));
    }
    data
}

const BOND_MODES: [(BondMode, KernelBondMode); 7] = [
    (BondMode::BalanceRr, KernelBondMode::BalanceRr),
    (BondMode::ActiveBackup, KernelBondMode::ActiveBackup),
    (BondMode::BalanceXor, KernelBondMode::BalanceXor),
    (BondMode::Broadcast, KernelBondMode::Broadcast),
    (BondMode::Lacp, KernelBondMode::Ieee8023Ad),
    (BondMode::BalanceTlb, KernelBondMode::BalanceTlb),
    (BondMode::BalanceAlb, KernelBondMode::BalanceAlb),
];

const MACVTAP_MODES: [(MacvtapMode, KernelMacvtapMode); 4] = [
    (MacvtapMode::Bridge, KernelMacvtapMode::Bridge),
    (MacvtapMode::Vepa, KernelMacvtapMode::Vepa),
    (MacvtapMode::Private, KernelMacvtapMode::Private),
    (MacvtapMode::Passthru, KernelMacvtapMode::Passthrough),
];
