//! What the function reports about itself, on its way to the policy `on-device-error`.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio::{IrqKind, PciFunction};

use super::Error;
use crate::Action;
use crate::vm::vector::Signal;

const ERROR: u64 = 0;
const REQUEST: u64 = 1;
const GONE: u64 = 2;

/// The eventfds that the machine's loop watches.
pub(super) struct Events {
    label: String,
    error: Option<Signal>,
    request: Option<Signal>,
    gone: Signal,
    is_gone: AtomicBool,
}

impl Events {
    /// Asks the function to report. One that cannot is told so in the log.
    pub(super) fn new(function: &dyn PciFunction) -> Result<Self, Error> {
        let label = function.label().to_owned();
        let events = Self {
            error: listen(function, IrqKind::Err)?,
            request: listen(function, IrqKind::Req)?,
            gone: signal(function)?,
            is_gone: AtomicBool::new(false),
            label,
        };
        if events.error.is_none() {
            tracing::debug!("{}: it reports no errors (no AER)", events.label);
        }
        Ok(events)
    }

    /// Looks at what an access ended in. The first time that the function is gone, the loop hears of it.
    pub(super) fn note(&self, result: &Result<(), vfio::Error>) {
        match result {
            Ok(()) => {}
            Err(vfio::Error::Gone { .. }) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    self.gone.raise();
                }
            }
            Err(error) => tracing::debug!("An access of the guest: {error}"),
        }
    }

    /// The function is gone: everything reads all ones.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    pub(super) fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let watched =
            [(self.error.as_ref(), ERROR), (self.request.as_ref(), REQUEST), (Some(&self.gone), GONE)];
        watched.into_iter().filter_map(|(signal, token)| Some((signal?.fd(), token))).collect()
    }

    pub(super) fn ready(&self, token: u64) -> Action {
        // Whatever it reported before, a function that is gone is reported once, and as that.
        let token = if self.is_gone() { GONE } else { token };
        let (signal, what) = match token {
            ERROR => (self.error.as_ref(), "it reported an error that it did not correct (AER)"),
            REQUEST => (self.request.as_ref(), "the host asks for it back (unbind or removal is waiting)"),
            GONE => {
                // The others are not readable any more, or the loop would never rest.
                for signal in [&self.error, &self.request].into_iter().flatten() {
                    signal.take();
                }
                (Some(&self.gone), "it is gone: unplugged, its VF removed, or its server hung up")
            }
            _ => (None, ""),
        };
        // Another thread may have been faster.
        if signal.is_some_and(Signal::take) { self.failed(what) } else { Action::None }
    }

    /// For the policy.
    pub(super) fn failed(&self, what: impl Into<String>) -> Action {
        Action::DeviceError { device: self.label.clone(), what: what.into() }
    }
}

fn signal(function: &dyn PciFunction) -> Result<Signal, Error> {
    Signal::new().map_err(Error::host(function.label(), "Making an eventfd for errors"))
}

fn listen(function: &dyn PciFunction, kind: IrqKind) -> Result<Option<Signal>, Error> {
    if function.irq_info(kind).count == 0 {
        return Ok(None);
    }
    let signal = signal(function)?;
    function.set_irqs(kind, 0, &[Some(signal.fd())])?;
    Ok(Some(signal))
}
