//! A fake's interrupts: eventfds by vector, and the pin.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::function::IrqKind;

/// The eventfds that were tied, and how the pin stands.
#[derive(Default)]
pub(super) struct Interrupts {
    triggers: BTreeMap<(IrqKind, u32), OwnedFd>,
    /// INTx, MSI or MSI-X: the one that is on.
    on: Option<IrqKind>,
    /// The device asserts its pin.
    line: bool,
    masked: bool,
    most_msix: Option<u32>,
}

impl Interrupts {
    /// Ties vectors, as the kernel would: with its errnos.
    pub(super) fn set(
        &mut self,
        kind: IrqKind,
        first: u32,
        triggers: &[Option<BorrowedFd<'_>>],
        count: u32,
    ) -> io::Result<()> {
        let end = u32::try_from(triggers.len()).ok().and_then(|length| first.checked_add(length));
        let Some(end) = end.filter(|end| *end <= count) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let exclusive = matches!(kind, IrqKind::Intx | IrqKind::Msi | IrqKind::Msix);
        if exclusive && self.on.is_some_and(|on| on != kind) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if kind == IrqKind::Msix && self.most_msix.is_some_and(|most| end > most) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if exclusive {
            self.on = Some(kind);
        }
        for (vector, trigger) in (first..).zip(triggers) {
            match trigger {
                Some(fd) => self.triggers.insert((kind, vector), fd.try_clone_to_owned()?),
                None => self.triggers.remove(&(kind, vector)),
            };
        }
        if kind == IrqKind::Intx {
            self.masked = false;
            self.settle();
        }
        Ok(())
    }

    pub(super) fn disable(&mut self, kind: IrqKind) {
        self.triggers.retain(|(of, _), _| *of != kind);
        if self.on == Some(kind) {
            self.on = None;
        }
    }

    /// True if an eventfd heard it.
    pub(super) fn fire(&mut self, kind: IrqKind, vector: u32) -> bool {
        if kind == IrqKind::Intx {
            self.line = true;
            return self.settle();
        }
        self.signal(kind, vector)
    }

    pub(super) fn set_line(&mut self, asserted: bool) {
        self.line = asserted;
        self.settle();
    }

    pub(super) fn mask(&mut self, masked: bool) {
        self.masked = masked;
        self.settle();
    }

    pub(super) fn limit_msix(&mut self, most: u32) {
        self.most_msix = Some(most);
    }

    /// A pin that is asserted and not masked fires, and masks itself.
    fn settle(&mut self) -> bool {
        let fires = self.line && !self.masked && self.signal(IrqKind::Intx, 0);
        self.masked |= fires;
        fires
    }

    fn signal(&self, kind: IrqKind, vector: u32) -> bool {
        let trigger = self.triggers.get(&(kind, vector));
        trigger.is_some_and(|fd| rustix::io::write(fd, &1_u64.to_ne_bytes()).is_ok())
    }
}
