//! Vectors, the pin, and what the host has to say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{Awake, Judged, Stop, Subject, ensure, skip};
use crate::function::{IrqKind, PciFunction};

/// An interrupt that must come comes within this.
const SOON: Duration = Duration::from_secs(2);

/// An eventfd.
struct Signal(OwnedFd);

impl Signal {
    fn new() -> Result<Self, Stop> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn raise(&self) -> Result<(), Stop> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Waits for it; how often it was signalled, 0 when it was not.
    fn take(&self, patience: Duration) -> Result<u64, Stop> {
        let wait = Timespec::try_from(patience).map_err(|error| Stop::Broken(error.to_string()))?;
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&wait))? == 0 {
            return Ok(0);
        }
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}

/// Interrupts of a kind, ended with this.
struct Enabled {
    function: Arc<dyn PciFunction>,
    kind: IrqKind,
}

impl Enabled {
    fn new(function: &Arc<dyn PciFunction>, kind: IrqKind, signals: &[Signal]) -> Result<Self, Stop> {
        let fds: Vec<_> = signals.iter().map(Signal::fd).collect();
        function.set_irqs(kind, 0, &fds)?;
        Ok(Self { function: Arc::clone(function), kind })
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        if let Err(error) = self.function.disable_irqs(self.kind) {
            tracing::warn!("{error}");
        }
    }
}

pub(super) fn descriptions(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    let most =
        [(IrqKind::Intx, 1), (IrqKind::Msi, 32), (IrqKind::Msix, 2048), (IrqKind::Err, 1), (IrqKind::Req, 1)];
    for (kind, most) in most {
        let info = function.irq_info(kind);
        ensure!(info.count <= most, "{kind:?} has {} vectors", info.count);
    }
    let pin = function.irq_info(IrqKind::Intx);
    ensure!(pin.count == 0 || pin.maskable && pin.automasked, "INTx must mask itself: {pin:?}");
    Ok(())
}

/// The message signalled kind with the most vectors, and up to eight of them.
fn messages(function: &dyn PciFunction) -> Result<(IrqKind, Vec<Signal>), Stop> {
    let kinds = [IrqKind::Msix, IrqKind::Msi];
    let Some(kind) = kinds.into_iter().max_by_key(|kind| function.irq_info(*kind).count) else {
        return skip("it has no MSI");
    };
    let count = function.irq_info(kind).count;
    if count == 0 {
        return skip("it has neither MSI-X nor MSI");
    }
    let signals = (0..count.min(8)).map(|_| Signal::new()).collect::<Result<_, _>>()?;
    Ok((kind, signals))
}

/// Vector `fired` has signalled its eventfd once, and no other has.
fn only(subject: &dyn Subject, signals: &[Signal], fired: Option<usize>) -> Judged {
    for (number, signal) in signals.iter().enumerate().filter(|(number, _)| Some(*number) == fired) {
        let count = signal.take(SOON)?;
        ensure!(count == 1, "vector {number} was fired once and signalled {count} times");
    }
    for (number, signal) in signals.iter().enumerate().filter(|(number, _)| Some(*number) != fired) {
        let patience = if number == 0 || fired == Some(0) { subject.patience() } else { Duration::ZERO };
        let count = signal.take(patience)?;
        ensure!(count == 0, "vector {number} was signalled where {fired:?} was fired");
    }
    Ok(())
}

/// Forgets what was pending: a device may keep what it signalled while a vector was away, and send it when it is back.
fn settle(subject: &dyn Subject, signals: &[Signal]) -> Judged {
    std::thread::sleep(subject.patience());
    signals.iter().try_for_each(|signal| signal.take(Duration::ZERO).map(|_| ()))
}

/// Fires a vector.
fn fire(subject: &dyn Subject, kind: IrqKind, vector: usize) -> Judged {
    let vector = u32::try_from(vector).unwrap_or(u32::MAX);
    if subject.fire(kind, vector) { Ok(()) } else { skip("the device cannot be made to interrupt") }
}

pub(super) fn vectors(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let (kind, signals) = messages(&*awake.0)?;
    let _enabled = Enabled::new(&awake.0, kind, &signals)?;
    settle(subject, &signals)?;
    for vector in 0..signals.len() {
        fire(subject, kind, vector)?;
        only(subject, &signals, Some(vector))?;
    }
    Ok(())
}

pub(super) fn neighbours(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let (kind, mut signals) = messages(&*awake.0)?;
    if signals.len() < 3 {
        return skip("it has fewer than three vectors");
    }
    let _enabled = Enabled::new(&awake.0, kind, &signals)?;
    settle(subject, &signals)?;
    awake.0.set_irqs(kind, 1, &[None])?;
    for vector in [1, 0, 2] {
        fire(subject, kind, vector)?;
        only(subject, &signals, Some(vector).filter(|vector| *vector != 1))?;
    }
    // Another eventfd in its place, with a neighbour's taken in the same call.
    signals[1] = Signal::new()?;
    awake.0.set_irqs(kind, 1, &[signals[1].fd(), None])?;
    settle(subject, &signals)?;
    for vector in [1, 2, 0] {
        fire(subject, kind, vector)?;
        only(subject, &signals, Some(vector).filter(|vector| *vector != 2))?;
    }
    Ok(())
}

pub(super) fn out_of_range(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let (kind, signals) = messages(&*awake.0)?;
    let _enabled = Enabled::new(&awake.0, kind, &signals)?;
    settle(subject, &signals)?;
    let count = awake.0.irq_info(kind).count;
    for first in [count, count + 1, u32::MAX] {
        let set = awake.0.set_irqs(kind, first, &[signals[0].fd()]);
        ensure!(set.is_err(), "vector {first} of {count} was taken");
    }
    let both = awake.0.set_irqs(kind, count - 1, &[None, None]);
    ensure!(both.is_err(), "two vectors from {} of {count} were taken", count - 1);
    fire(subject, kind, 0)?;
    only(subject, &signals, Some(0))
}

pub(super) fn exclusive(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let has = |kind: &IrqKind| awake.0.irq_info(*kind).count > 0;
    let kinds: Vec<_> = [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix].into_iter().filter(has).collect();
    let [one, other, ..] = kinds[..] else { return skip("it has only one kind of interrupt") };
    let signals = [Signal::new()?];
    for (one, other) in [(one, other), (other, one)] {
        let enabled = Enabled::new(&awake.0, one, &signals)?;
        let set = awake.0.set_irqs(other, 0, &[signals[0].fd()]);
        ensure!(set.is_err(), "{other:?} was enabled beside {one:?}");
        drop(enabled);
        drop(Enabled::new(&awake.0, other, &signals)?);
    }
    Ok(())
}

/// The pin, wired to an eventfd.
fn wired(subject: &dyn Subject) -> Result<(Awake, [Signal; 1], Enabled), Stop> {
    let awake = Awake::new(subject)?;
    if awake.0.irq_info(IrqKind::Intx).count == 0 {
        return skip("it has no pin");
    }
    let signals = [Signal::new()?];
    let enabled = Enabled::new(&awake.0, IrqKind::Intx, &signals)?;
    Ok((awake, signals, enabled))
}

pub(super) fn pin(subject: &dyn Subject) -> Judged {
    let (awake, signals, _enabled) = wired(subject)?;
    fire(subject, IrqKind::Intx, 0)?;
    only(subject, &signals, Some(0))?;
    // It is still asserted, and masked now.
    fire(subject, IrqKind::Intx, 0)?;
    only(subject, &signals, None)?;
    awake.0.mask_intx(false)?;
    only(subject, &signals, Some(0))?;
    subject.lower_pin();
    awake.0.mask_intx(false)?;
    only(subject, &signals, None)?;
    awake.0.mask_intx(true)?;
    fire(subject, IrqKind::Intx, 0)?;
    only(subject, &signals, None)?;
    awake.0.mask_intx(false)?;
    only(subject, &signals, Some(0))?;
    subject.lower_pin();
    Ok(())
}

pub(super) fn resample(subject: &dyn Subject) -> Judged {
    let (awake, signals, _enabled) = wired(subject)?;
    let resample = Signal::new()?;
    awake.0.set_intx_unmask(resample.fd())?;
    for _ in 0..3 {
        fire(subject, IrqKind::Intx, 0)?;
        only(subject, &signals, Some(0))?;
        resample.raise()?;
        only(subject, &signals, Some(0))?;
        subject.lower_pin();
        resample.raise()?;
        only(subject, &signals, None)?;
    }
    awake.0.set_intx_unmask(None)?;
    fire(subject, IrqKind::Intx, 0)?;
    only(subject, &signals, Some(0))?;
    resample.raise()?;
    only(subject, &signals, None)?;
    subject.lower_pin();
    Ok(())
}

pub(super) fn events(subject: &dyn Subject) -> Judged {
    let function = subject.function();
    let mut some = false;
    for kind in [IrqKind::Err, IrqKind::Req] {
        if function.irq_info(kind).count == 0 {
            continue;
        }
        some = true;
        let signals = [Signal::new()?];
        function.set_irqs(kind, 0, &[signals[0].fd()])?;
        if subject.fire(kind, 0) {
            only(subject, &signals, Some(0))?;
        }
        function.set_irqs(kind, 0, &[None])?;
        if subject.fire(kind, 0) {
            only(subject, &signals, None)?;
        }
    }
    if some { Ok(()) } else { skip("it reports neither") }
}
