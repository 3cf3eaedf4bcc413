//! The driver's notifications: an eventfd a queue, which KVM signals by itself while the queue is in use.

use std::io;
use std::sync::Arc;

use crate::vm::vector::Signal;
use crate::vm::{self, Vm};

use super::NOTIFY_MULTIPLIER;

/// All queues' eventfds, and which of them are ioeventfds now.
pub(super) struct Doorbells {
    vm: Arc<Vm>,
    kicks: Vec<Arc<Signal>>,
    in_use: Vec<u16>,
    /// Where the notification area is in the guest.
    base: Option<u64>,
    attached: Vec<(u16, u64)>,
}

impl Doorbells {
    pub(super) fn new(vm: &Arc<Vm>, queues: usize) -> io::Result<Self> {
        let kicks = (0..queues).map(|_| Signal::new().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { vm: Arc::clone(vm), kicks, in_use: Vec::new(), base: None, attached: Vec::new() })
    }

    /// What is signalled when the driver rings for a queue.
    pub(super) fn kick(&self, queue: u16) -> Option<Arc<Signal>> {
        self.kicks.get(usize::from(queue)).cloned()
    }

    /// A notification that came as an exit.
    pub(super) fn ring(&self, queue: u64) {
        let queue = u16::try_from(queue).ok().filter(|queue| self.in_use.contains(queue));
        if let Some(kick) = queue.and_then(|queue| self.kicks.get(usize::from(queue))) {
            kick.raise();
        }
    }

    /// These queues are served from now on. Where KVM refuses an ioeventfd, exits come instead.
    pub(super) fn use_queues(&mut self, queues: Vec<u16>) -> Result<(), vm::Error> {
        self.in_use = queues;
        self.attach()
    }

    /// No queue is served.
    pub(super) fn use_none(&mut self) {
        self.detach();
        self.in_use.clear();
    }

    /// The notification area is at `base` now, or nowhere.
    pub(super) fn moved(&mut self, base: Option<u64>) -> Result<(), vm::Error> {
        self.detach();
        self.base = base;
        self.attach()
    }

    fn attach(&mut self) -> Result<(), vm::Error> {
        let Some(base) = self.base else { return Ok(()) };
        for queue in &self.in_use {
            let Some(kick) = self.kicks.get(usize::from(*queue)) else { continue };
            let address = base.saturating_add(u64::from(*queue) * u64::from(NOTIFY_MULTIPLIER));
            self.vm.attach_doorbell(kick.eventfd(), address)?;
            self.attached.push((*queue, address));
        }
        Ok(())
    }

    fn detach(&mut self) {
        for (queue, address) in self.attached.drain(..) {
            if let Some(kick) = self.kicks.get(usize::from(queue))
                && let Err(error) = self.vm.detach_doorbell(kick.eventfd(), address)
            {
                tracing::warn!("{error}");
            }
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.detach();
    }
}
