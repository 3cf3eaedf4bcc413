//! The network card (virtio 1.2, 5.1): a tap or macvtap of the host's, served by vhost-net in the kernel, or by threads of
//! ours where there is none.

mod control;
mod link_watch;
mod supervisor;
mod tap;
#[cfg(test)]
mod tests;
mod user;
mod vhost;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use link_watch::LinkWatch;
pub use link_watch::listen as listen_for_links;
use supervisor::Supervisor;
use tap::Tap;
use user::Pair;
use vhost::VhostNet;

use super::vhost::Tables;
use super::{
    ActivateError, Activation, ActiveQueue, Class, Hears, Interrupts, VirtioDevice, Worker,
    feature as ring_feature,
};

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
}

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Of the control queue.
const CONTROL_SIZE: u16 = 64;
/// `struct virtio_net_hdr` of a virtio 1 device, with `num_buffers`.
const HEADER: usize = 12;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// What the card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The largest packet of its network, in bytes, without the Ethernet header.
    pub mtu: u16,
}

/// The card cannot be made of what was handed in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No queue at all.
    #[error("{0}: it has no tap")]
    NoTap(String),
    /// The descriptor is none of a tap or macvtap with virtio's header.
    #[error("{label}: setting its tap up ({doing}): {source}")]
    Tap {
        /// The card's name.
        label: String,
        /// The step.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// vhost-net refuses.
    #[error("{label}: setting vhost-net up: {source}")]
    Vhost {
        /// The card's name.
        label: String,
        /// What it says.
        source: io::Error,
    },
}

/// What the threads of a card share with it, and with whoever watches it.
#[derive(Default)]
pub struct Shared {
    link_down: AtomicBool,
    pairs: AtomicU16,
    received: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
    interrupts: Mutex<Option<Arc<Interrupts>>>,
}

impl Shared {
    /// Plugs the cable in or pulls it, as far as the guest can see.
    pub fn set_link(&self, up: bool) {
        if self.link_down.swap(!up, Ordering::AcqRel) == up
            && let Some(interrupts) = &*self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
        {
            interrupts.config_changed();
        }
    }

    fn link_is_up(&self) -> bool {
        !self.link_down.load(Ordering::Acquire)
    }
}

/// The card.
pub struct Net {
    label: String,
    spec: NetSpec,
    taps: Vec<Arc<Tap>>,
    /// One for each tap, or none at all.
    vhost: Vec<VhostNet>,
    tables: Arc<Tables>,
    watch: Option<Arc<LinkWatch>>,
    shared: Arc<Shared>,
}

impl Net {
    /// A card named `label`, with one pair of queues for each of `taps`: opened with IFF_VNET_HDR, and IFF_MULTI_QUEUE where
    /// they are several. `vhost` is as many descriptors of /dev/vhost-net, or none: then threads of ours serve it.
    ///
    /// # Errors
    /// A descriptor that is no tap, or that the kernel does not set up.
    pub fn new(label: &str, spec: NetSpec, taps: Vec<OwnedFd>, vhost: Vec<OwnedFd>) -> Result<Self, Error> {
        if taps.is_empty() {
            return Err(Error::NoTap(label.into()));
        }
        let taps: Vec<Arc<Tap>> = taps
            .into_iter()
            .map(|fd| {
                let failed = |(doing, source)| Error::Tap { label: label.into(), doing, source };
                Tap::new(fd).map(Arc::new).map_err(failed)
            })
            .collect::<Result<_, _>>()?;
        let vhost = if vhost.len() == taps.len() { vhost } else { Vec::new() };
        let vhost = vhost
            .into_iter()
            .map(VhostNet::new)
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| Error::Vhost { label: label.into(), source })?;
        let shared = Arc::new(Shared::default());
        shared.pairs.store(1, Ordering::Release);
        Ok(Self { label: label.into(), spec, taps, vhost, tables: Arc::default(), watch: None, shared })
    }

    /// Has it hear by a socket of [`listen_for_links`] that a link of the host may have gone. Without it the card works all the
    /// same; a tap that vanishes is then silence.
    pub fn hearing(mut self, socket: OwnedFd) -> Self {
        self.watch = Some(Arc::new(LinkWatch::new(socket, &self.label, &self.taps, &self.shared)));
        self
    }

    /// For pulling the cable while the guest runs.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.taps.len()).unwrap_or(u16::MAX)
    }

    /// Gives each pair of queues to vhost, with what the supervisor has to watch for it.
    fn start_vhost(
        &mut self,
        activation: &mut Activation,
        supervisor: &mut Supervisor,
    ) -> Result<(), ActivateError> {
        let failed = |source| ActivateError::Host { doing: "Setting vhost-net up".into(), source };
        self.tables.follow(&activation.memory).map_err(failed)?;
        for (index, (vhost, tap)) in (0..).zip(self.vhost.iter_mut().zip(&self.taps)) {
            let Some(queues) = pair_of(activation, index)? else { continue };
            vhost.begin(&self.tables, activation.features, &activation.memory).map_err(failed)?;
            for (ring, queue) in (0..).zip(queues) {
                let (call, error) = supervisor.signals.of_ring(&queue).map_err(failed)?;
                vhost.ring(ring, &queue, &call, &error).map_err(failed)?;
            }
            vhost.connect(Some(tap)).map_err(failed)?;
        }
        Ok(())
    }

    fn start_threads(&self, activation: &mut Activation) -> Result<Vec<Worker>, ActivateError> {
        let mut workers = Vec::new();
        for (index, tap) in (0..).zip(&self.taps) {
            let Some([receive, transmit]) = pair_of(activation, index)? else { continue };
            let pair = Pair {
                tap: Arc::clone(tap),
                receive,
                transmit,
                ram: Arc::clone(&activation.memory),
                mergeable: activation.features & feature::MRG_RXBUF != 0,
                shared: Arc::clone(&self.shared),
                interrupts: Arc::clone(&activation.interrupts),
            };
            let worker = Worker::spawn("virtio-net", move |stop| pair.serve(&stop));
            workers.push(worker.map_err(ActivateError::host("Starting a thread of a virtio-net"))?);
        }
        Ok(workers)
    }
}

/// Both queues of a pair, receiving first; an error only where the first pair is missing.
fn pair_of(activation: &mut Activation, index: u16) -> Result<Option<[ActiveQueue; 2]>, ActivateError> {
    let first = index.saturating_mul(2);
    match (activation.take_queue(first), activation.take_queue(first.saturating_add(1))) {
        (Some(receive), Some(transmit)) => Ok(Some([receive, transmit])),
        _ if index == 0 => Err(ActivateError::Queue(0)),
        _ => Ok(None),
    }
}

impl VirtioDevice for Net {
    fn class(&self) -> Class {
        Class::Net
    }

    fn features(&self) -> u64 {
        use feature::*;
        let own = CSUM
            | GUEST_CSUM
            | MTU
            | MAC
            | GUEST_TSO4
            | GUEST_TSO6
            | HOST_TSO4
            | HOST_TSO6
            | MRG_RXBUF
            | STATUS;
        let several = if self.taps.len() > 1 { CTRL_VQ | MQ } else { 0 };
        // What the kernel walks the rings with is what the kernel can.
        let rings = MRG_RXBUF | ring_feature::OF_RINGS;
        let missing = self.vhost.iter().fold(0, |missing, vhost| missing | rings & !vhost.features());
        (own | several | ring_feature::OF_RINGS) & !missing
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; self.taps.len().saturating_mul(2)];
        if self.taps.len() > 1 {
            sizes.push(CONTROL_SIZE);
        }
        sizes
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let status = if self.shared.link_is_up() { LINK_UP } else { 0 };
        let mut config = self.spec.mac.to_vec();
        for word in [status, self.pairs(), self.spec.mtu] {
            config.extend(word.to_le_bytes());
        }
        for (slot, byte) in data.iter_mut().zip(config.get(usize::from(offset)..).unwrap_or_default()) {
            *slot = *byte;
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let failed = |source| ActivateError::Host { doing: "Setting the tap up".into(), source };
        for tap in &self.taps {
            tap.offload(activation.features).map_err(failed)?;
        }
        let several = activation.features & feature::MQ != 0;
        self.shared.pairs.store(1, Ordering::Release);
        control::use_pairs(&self.taps, 1).map_err(failed)?;
        *self.shared.interrupts.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(&activation.interrupts));

        let mut supervisor = Supervisor::new(&self.taps, &self.shared, &activation);
        // Without MQ the control queue follows the first pair.
        let control = if several { self.pairs().saturating_mul(2) } else { 2 };
        if activation.features & feature::CTRL_VQ != 0 {
            supervisor.control = activation.take_queue(control);
        }
        let mut workers = if self.vhost.is_empty() {
            self.start_threads(&mut activation)?
        } else {
            self.start_vhost(&mut activation, &mut supervisor)?;
            Vec::new()
        };
        if supervisor.is_needed() {
            let worker = Worker::spawn("virtio-net-ctl", move |stop| supervisor.serve(&stop));
            workers.push(worker.map_err(ActivateError::host("Starting a thread of a virtio-net"))?);
        }
        Ok(workers)
    }

    fn reset(&mut self) {
        for vhost in &mut self.vhost {
            vhost.end(&self.tables);
        }
        *self.shared.interrupts.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let quiet = self.taps.iter().try_for_each(|tap| tap.offload(0));
        if let Err(error) = quiet.and_then(|()| control::use_pairs(&self.taps, self.taps.len())) {
            tracing::debug!("{}: resetting its tap: {error}", self.label);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        if !self.vhost.is_empty() {
            return Vec::new();
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { received, sent, dropped, .. } = &*self.shared;
        vec![
            ("packets-received", count(received)),
            ("packets-sent", count(sent)),
            ("packets-dropped", count(dropped)),
        ]
    }

    fn link(&self) -> Option<bool> {
        Some(self.shared.link_is_up())
    }

    fn set_link(&mut self, up: bool) -> bool {
        self.shared.set_link(up);
        true
    }

    fn hears(&self) -> Option<Arc<dyn Hears>> {
        self.watch.clone().map(|watch| watch as _)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.vhost.iter().try_for_each(VhostNet::pause)
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.vhost.iter().zip(&self.taps).try_for_each(|(vhost, tap)| vhost.go_on(tap))
    }

    fn in_kernel(&self) -> bool {
        !self.vhost.is_empty()
    }

    fn report(&self) -> Option<String> {
        let pairs = self.shared.pairs.load(Ordering::Relaxed);
        let of = format!("{pairs} of {} queue pairs", self.taps.len());
        let link = if self.shared.link_is_up() { "" } else { ", link down" };
        if !self.vhost.is_empty() {
            return Some(format!("vhost-net in use, {of}{link}"));
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(format!(
            "vhost-net not in use, threads of Throughway serve {of}{link}; packets received {}, sent {}, dropped {}",
            count(&self.shared.received),
            count(&self.shared.sent),
            count(&self.shared.dropped)
        ))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}
