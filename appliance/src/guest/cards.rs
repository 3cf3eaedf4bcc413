//! Virtio devices of a guest, from links and files that are there to devices that the machine takes.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context;
use netconfig::blocking::with_network;
use netconfig::{LinkKind, tap};
use vmm::spec::VirtioSlot;
use vmm::virtio::net::{Net, NetSpec};
use vmm::virtio::rng::Rng;

use crate::apply::Taps;
use crate::config::Vm;
use crate::plan::Card;

const VHOST_NET: &str = "/dev/vhost-net";

/// All virtio devices of a guest, in the order of their root ports.
pub(super) fn virtio(vm: &Vm, cards: &[Card], taps: &Taps) -> anyhow::Result<Vec<VirtioSlot>> {
    let mut slots = cards.iter().map(|card| open(card, taps)).collect::<anyhow::Result<Vec<_>>>()?;
    if vm.rng {
        slots.push(VirtioSlot { name: "rng".to_owned(), device: Box::new(Rng) });
    }
    Ok(slots)
}

/// The machine's name for a card.
pub(super) fn name(card: &Card) -> String {
    format!("nic {}", card.name)
}

fn open(card: &Card, taps: &Taps) -> anyhow::Result<VirtioSlot> {
    let name = name(card);
    let taps = open_link(card, taps).with_context(|| format!("Opening the link {} of {name}", card.link))?;
    let vhost = open_vhost(&name, card.queues);
    let mtu = u16::try_from(card.mtu).unwrap_or(u16::MAX);
    let device = Net::new(&name, NetSpec { mac: card.mac_address.0, mtu }, taps, vhost)?;
    Ok(VirtioSlot { name, device: Box::new(device) })
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
