//! Network cards of a guest: links that are there, opened for the machine.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context;
use netconfig::blocking::with_network;
use netconfig::{LinkKind, tap};
use vmm::virtio::net::listen_for_links;

use super::parts::CardPart;
use crate::apply::Taps;
use crate::jail::Files;
use crate::plan::Card;

const VHOST_NET: &str = "/dev/vhost-net";

/// The machine's name for a card.
pub(super) fn name(card: &Card) -> String {
    format!("nic {}", card.name)
}

/// Opens the link of a card, and what serves it.
pub(super) fn open(card: &Card, taps: &Taps, files: &mut Files) -> anyhow::Result<CardPart> {
    let name = name(card);
    let taps = open_link(card, taps).with_context(|| format!("Opening the link {} of {name}", card.link))?;
    let vhost = open_vhost(&name, card.queues);
    let watch = listen_for_links();
    let watch = watch.inspect_err(|error| tracing::debug!("{name}: listening for links: {error}")).ok();
    Ok(CardPart {
        mac: card.mac_address.0,
        mtu: u16::try_from(card.mtu).unwrap_or(u16::MAX),
        taps: taps.into_iter().map(|tap| files.put(tap)).collect(),
        vhost: vhost.into_iter().map(|vhost| files.put(vhost)).collect(),
        watch: watch.map(|socket| files.put(socket)),
        name,
    })
}

fn open_link(card: &Card, taps: &Taps) -> anyhow::Result<Vec<OwnedFd>> {
    let opened = match card.kind {
        LinkKind::Tap { multi_queue, .. } => {
            let first = taps.take(&card.link);
            let others = card.queues.saturating_sub(u16::from(first.is_some()));
            tap::open(&card.link, multi_queue, others).map(|others| first.into_iter().chain(others).collect())
        }
        _ => {
            let index = with_network(async |network| network.link(&card.link).await)?.index;
            tap::open_macvtap(index, card.queues)
        }
    };
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => anyhow::anyhow!("another guest or program has it open"),
        _ => error.into(),
    })
}

/// One for each pair of queues, or none where this host has no vhost-net.
fn open_vhost(name: &str, queues: u16) -> Vec<OwnedFd> {
    let open = || OpenOptions::new().read(true).write(true).open(VHOST_NET).map(OwnedFd::from);
    match (0..queues).map(|_| open()).collect::<io::Result<Vec<_>>>() {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(
                "{name}: opening {VHOST_NET}: {error}; Throughway moves its packets itself, which is slower. `modprobe vhost_net` gives the kernel's way"
            );
            Vec::new()
        }
    }
}
