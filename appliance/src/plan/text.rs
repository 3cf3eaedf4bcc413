//! Changes of a link as a person reads them: field by field, from -> to.

use std::collections::BTreeSet;
use std::fmt::Display;

use netconfig::{LinkKind, LinkSettings, VfAttributes, VfState};

/// ` mtu 1500 -> 9000, up`: what differs, or for a link that is yet to be made what is not as new ones are.
pub(super) fn changes(from: Option<&LinkSettings>, to: &LinkSettings) -> String {
    let mut fields = Vec::new();
    if let Some(from) = from
        && from.kind != to.kind
    {
        fields.extend(kind(&from.kind, &to.kind));
    }
    let mtu = from.map_or(1500, |from| from.mtu);
    if mtu != to.mtu {
        fields.push(format!("mtu {mtu} -> {}", to.mtu));
    }
    let own = from.and_then(|from| from.mac_address);
    if let Some(mac) = to.mac_address.filter(|mac| own != Some(*mac)) {
        let own = own.map_or_else(String::new, |own| format!("{own} "));
        fields.push(format!("mac-address {own}-> {mac}"));
    }
    let controller = from.and_then(|from| from.controller.as_deref());
    if controller != to.controller.as_deref() {
        fields.push(format!(
            "controller {} -> {}",
            controller.unwrap_or("none"),
            to.controller.as_deref().unwrap_or("none")
        ));
    }
    let none = BTreeSet::new();
    fields.extend(sets("addresses", from.map_or(&none, |from| &from.addresses), &to.addresses));
    let none = BTreeSet::new();
    fields.extend(sets("gateways", from.map_or(&none, |from| &from.gateways), &to.gateways));
    let vlans = |link: &LinkSettings| -> BTreeSet<String> {
        let text = |(id, member): (&u16, &netconfig::VlanMembership)| match (member.pvid, member.untagged) {
            (true, _) => format!("{id} (native)"),
            (false, true) => format!("{id} (untagged)"),
            (false, false) => id.to_string(),
        };
        link.vlans.iter().map(text).collect()
    };
    let none = BTreeSet::new();
    fields.extend(sets("forwarded", from.map_or(&none, |from| &from.forwarded), &to.forwarded));
    fields.extend(sets("vlans", &from.map(vlans).unwrap_or_default(), &vlans(to)));
    if from.is_some_and(|from| from.up != to.up) {
        fields.push(if to.up { "up".to_owned() } else { "down".to_owned() });
    }
    joined(fields.into_iter())
}

/// ` trust off -> on, vlan-id -> 100`: what a VF gets.
pub(super) fn vf_changes(from: Option<&VfState>, to: &VfAttributes) -> String {
    let field = |(name, from, to): (&str, Option<String>, String)| {
        let from = from.map_or_else(String::new, |from| format!("{from} "));
        format!("{name} {from}-> {to}")
    };
    joined(vf_fields(from, to).into_iter().map(field))
}

/// Each attribute that a VF gets: its name, what it is where that is known, and what it will be.
pub(crate) fn vf_fields(
    from: Option<&VfState>,
    to: &VfAttributes,
) -> Vec<(&'static str, Option<String>, String)> {
    type Field = (&'static str, Option<String>, String);
    fn field<T: Display>(name: &'static str, from: Option<T>, to: Option<T>) -> Option<Field> {
        to.map(|to| (name, from.map(|from| from.to_string()), to.to_string()))
    }
    let on = |value: bool| if value { "on" } else { "off" };
    let from = from.cloned().unwrap_or_default();
    let fields = [
        field("mac-address", from.mac_address, to.mac_address),
        field("vlan-id", from.vlan_id, to.vlan_id),
        field("qos", from.qos, to.qos),
        field("vlan-proto", from.vlan_proto, to.vlan_proto),
        field("spoof-check", from.spoof_check.map(on), to.spoof_check.map(on)),
        field("trust", from.trust.map(on), to.trust.map(on)),
        field("link-state", from.link_state, to.link_state),
        field("min-tx-rate", from.min_tx_rate, to.min_tx_rate),
        field("max-tx-rate", from.max_tx_rate, to.max_tx_rate),
    ];
    fields.into_iter().flatten().collect()
}

fn joined(fields: impl Iterator<Item = String>) -> String {
    fields.enumerate().fold(String::new(), |text, (at, field)| {
        let comma = if at == 0 { "" } else { "," };
        format!("{text}{comma} {field}")
    })
}

fn kind(from: &LinkKind, to: &LinkKind) -> Vec<String> {
    fn field<T: PartialEq + Display>(name: &str, from: T, to: T) -> Option<String> {
        (from != to).then(|| format!("{name} {from} -> {to}"))
    }
    match (from, to) {
        (LinkKind::Bond(from), LinkKind::Bond(to)) => {
            [field("mode", from.mode, to.mode), field("miimon", from.miimon, to.miimon)]
                .into_iter()
                .flatten()
                .collect()
        }
        (LinkKind::Bridge(from), LinkKind::Bridge(to)) => [
            field("stp", from.stp, to.stp),
            field("ageing-time", from.ageing_time, to.ageing_time),
            field("vlan-filtering", from.vlan_filtering, to.vlan_filtering),
        ]
        .into_iter()
        .flatten()
        .collect(),
        _ => vec![format!("{from} -> {to}")],
    }
}

fn sets<T: Ord + Display>(name: &str, from: &BTreeSet<T>, to: &BTreeSet<T>) -> Option<String> {
    let gone = from.difference(to).map(|item| format!("-{item}"));
    let new = to.difference(from).map(|item| format!("+{item}"));
    let all: Vec<String> = gone.chain(new).collect();
    (!all.is_empty()).then(|| format!("{name} {}", all.join(" ")))
}
