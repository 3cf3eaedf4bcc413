//! As much of the host as the plan of a guest depends on that has no function of it: its links.

use std::path::Path;

use netconfig::direct::{Direct, Look};

use super::{HostState, memory_available, memory_is_free};

impl HostState {
    /// Reads it, for a guest with so many bytes of memory whose cards are all on networks. None where the host has more that such
    /// a plan depends on: VFs, whose addresses nobody else may have, or links that change just now.
    pub fn read_for_cards(memory: u64) -> anyhow::Result<Option<Self>> {
        let Some(look) = Direct::open()?.look()?.filter(|look| !look.has_vfs) else { return Ok(None) };
        let free = memory_is_free(memory);
        let memory_available = if free { u64::MAX } else { memory_available(Path::new("/proc")) };
        Ok(Some(Self { memory_available, ..Self::of_links(look) }))
    }

    fn of_links(Look { settings, links, .. }: Look) -> Self {
        let mut host = Self { links: settings, ..Self::default() };
        host.take_macs(links);
        host
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use netconfig::{Bridge, Link, LinkKind, LinkSettings, MacAddress, MacvtapMode};

    use super::*;
    use crate::config::{Document, load};
    use crate::plan::plan;

    fn link(kind: LinkKind, mac: &str) -> LinkSettings {
        LinkSettings {
            kind,
            up: true,
            mtu: 1400,
            mac_address: mac.parse().ok(),
            controller: None,
            addresses: ["10.0.0.5/24".parse().unwrap()].into(),
            gateways: ["10.0.0.1".parse().unwrap()].into(),
            vlans: BTreeMap::new(),
            forwarded: ["02:00:00:00:00:77".parse().unwrap()].into(),
        }
    }

    fn file(mac: &str) -> Document {
        let text = format!(
            "version: 1
networks:
  br0: {{type: bridge}}
  mv: {{type: macvtap, base-iface: eth0, mode: bridge}}
vms:
  a:
    cpus: 2
    memory: 64MiB
    boot: {{kernel: /k}}
    nics: {{lan: {{network: br0, queues: 2}}, wan: {{network: mv, mac-address: \"{mac}\"}}}}
"
        );
        Document { name: "box.yaml".into(), text }
    }

    #[test]
    fn cards_on_networks_need_no_more_than_a_look_at_links() {
        let mac = |text: &str| text.parse::<MacAddress>().ok();
        let macvtap = LinkKind::Macvtap { base: "eth0".into(), mode: MacvtapMode::Bridge };
        let bridge = LinkKind::Bridge(Bridge { stp: false, ageing_time: 300, vlan_filtering: false });
        let whole: BTreeMap<String, LinkSettings> = [
            ("eth0".into(), link(LinkKind::Foreign(String::new()), "02:00:00:00:00:01")),
            ("br0".into(), link(bridge, "02:00:00:00:00:02")),
            ("mv".into(), link(macvtap, "02:00:00:00:00:03")),
        ]
        .into();
        let links: Vec<Link> =
            [("eth0", "02:00:00:00:00:01", "02:00:00:00:00:09"), ("br0", "02:00:00:00:00:02", "")]
                .into_iter()
                .map(|(name, own, burnt)| Link {
                    name: name.into(),
                    mac_address: mac(own),
                    permanent_mac: mac(burnt),
                    ..Link::default()
                })
                .collect();
        let skimmed = |links: &BTreeMap<String, LinkSettings>| {
            links
                .iter()
                .map(|(name, link)| {
                    let (addresses, gateways, forwarded) =
                        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
                    (name.clone(), LinkSettings { addresses, gateways, forwarded, ..link.clone() })
                })
                .collect()
        };
        let look = Look { settings: skimmed(&whole), links: links.clone(), has_vfs: false };
        let quick = HostState { memory_available: u64::MAX, ..HostState::of_links(look) };
        let mut full = HostState { links: whole, memory_available: u64::MAX, ..HostState::default() };
        full.take_macs(links);
        full.session = "10.0.0.5".parse().ok();
        // That of a link now, one that is burnt in, and one that is nobody's.
        for (own, refused) in
            [("02:00:00:00:00:02", true), ("02:00:00:00:00:09", true), ("02:00:00:00:00:50", false)]
        {
            let config = load(&file(own)).unwrap();
            let [quick, full] = [&quick, &full].map(|host| plan(&config, host, "a", &config.vms["a"]));
            assert_eq!(quick, full);
            assert_eq!(quick.is_err(), refused, "{own}");
            if let Ok(plan) = quick {
                assert_eq!((plan.steps.len(), plan.cards[0].queues, plan.cards[0].mtu), (2, 2, 1400));
            }
        }
    }
}
