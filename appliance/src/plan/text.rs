//! Changes of a link as a person reads them: field by field, from -> to.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use netconfig::{LinkKind, LinkSettings};

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
    if from.and_then(|from| from.mac_address) != to.mac_address
        && let Some(mac) = to.mac_address
    {
        fields.push(format!("mac-address -> {mac}"));
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
    fields.extend(sets("vlans", &from.map(vlans).unwrap_or_default(), &vlans(to)));
    if from.is_some_and(|from| from.up != to.up) {
        fields.push(if to.up { "up".to_owned() } else { "down".to_owned() });
    }
    fields.iter().enumerate().fold(String::new(), |mut text, (at, field)| {
        let _ = write!(text, "{} {field}", if at == 0 { "" } else { "," });
        text
    })
}

fn kind(from: &LinkKind, to: &LinkKind) -> Vec<String> {
    fn field<T: PartialEq + Display>(name: &str, from: T, to: T) -> Option<String> {
        (from != to).then(|| format!("{name} {from} -> {to}"))
    }
    match (from, to) {
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
