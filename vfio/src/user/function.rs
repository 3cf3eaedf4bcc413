//! One function that a server serves.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};

use super::connection::Connection;
use super::regions::Place;
use super::space::UserSpace;
use super::watch::Watch;
use super::wire::{Command, Payload};
use crate::function::{Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex};
use crate::resample::Resampler;

/// How long a server may take for an answer. A reset is the slowest thing that is asked of one.
const PATIENCE: Duration = Duration::from_secs(10);
/// PCI regions by VFIO's numbers; what a server has beyond is not ours.
const REGIONS: u32 = 9;
const IRQS: [IrqKind; 5] = [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix, IrqKind::Err, IrqKind::Req];
/// The fixed part of VFIO_USER_DEVICE_SET_IRQS.
const SET_IRQS: u32 = 20;

/// One function behind a socket.
pub struct UserFunction {
    connection: Arc<Connection>,
    places: Vec<Place>,
    irqs: BTreeMap<IrqKind, IrqInfo>,
    resettable: bool,
    space: Arc<UserSpace>,
    resampler: Mutex<Option<Resampler>>,
    /// What is to be signalled when the server ends.
    error: ErrorTrigger,
    _watch: Watch,
}

type ErrorTrigger = Arc<Mutex<Option<OwnedFd>>>;

impl UserFunction {
    /// Connects to the server that listens at `path` and asks what it has.
    ///
    /// # Errors
    /// [`Error::Io`] where nobody listens or the server refuses, [`Error::Invalid`] for one that serves no PCI function,
    /// and [`Error::Gone`] for one that hangs up, does not answer within ten seconds or breaks the protocol.
    pub fn connect(path: &Path) -> Result<Arc<Self>, Error> {
        Self::connect_within(path, PATIENCE)
    }

    pub(super) fn connect_within(path: &Path, patience: Duration) -> Result<Arc<Self>, Error> {
        let connection = Arc::new(Connection::open(path, patience)?);
        let doing = || "asking what it can do".to_owned();
        let payload = Payload::new().u32(16).u32(0).u32(0).u32(0);
        let reply = connection.call(Command::DeviceInfo, payload, &[], doing)?;
        let info = |at| reply.fields().u32(at).ok_or_else(|| connection.short(doing()));
        let (flags, regions, irqs) = (info(4)?, info(8)?, info(12)?);
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(connection.invalid("its server serves no PCI function"));
        }
        let places = (0..regions.min(REGIONS)).map(|index| Place::ask(&connection, index));
        let places = places.collect::<Result<_, _>>()?;
        let known = IRQS.into_iter().filter(|kind| kind.number() < irqs);
        let irqs = known.map(|kind| ask_irq(&connection, kind)).collect::<Result<_, _>>()?;
        let error = ErrorTrigger::default();
        let watch = watch(&connection, &error)?;
        let function = Self {
            error,
            _watch: watch,
            space: Arc::new(UserSpace::new(Arc::clone(&connection))),
            places,
            irqs,
            resettable: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            resampler: Mutex::new(None),
            connection,
        };
        function.check_alive("connecting to it")?;
        Ok(Arc::new(function))
    }

    fn place(&self, index: RegionIndex) -> Option<&Place> {
        let at = usize::try_from(index.number()).ok()?;
        self.places.get(at).filter(|place| place.region.size > 0)
    }

    fn check_bounds(&self, index: RegionIndex, offset: u64, length: usize) -> Result<(), Error> {
        if self.place(index).is_some_and(|place| place.region.holds(offset, length)) {
            return Ok(());
        }
        let what = format!("{length} bytes at {offset:#x} are not in its {index:?} region");
        Err(self.connection.invalid(what))
    }

    /// A function that answers all ones where its vendor should be is none.
    fn check_alive(&self, doing: &str) -> Result<(), Error> {
        let mut vendor = [0; 2];
        self.read(RegionIndex::Config, 0, &mut vendor)?;
        if vendor == [0xff; 2] {
            let function = self.connection.label().to_owned();
            return Err(Error::Gone { function, doing: doing.to_owned() });
        }
        Ok(())
    }

    /// One read that the server takes at once.
    fn read_chunk(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let doing = || format!("reading {count} bytes at {offset:#x} of its {index:?} region");
        let payload = Payload::new().u64(offset).u32(index.number()).u32(count);
        let reply = self.connection.call(Command::RegionRead, payload, &[], doing)?;
        let read = reply.payload.get(16..).filter(|read| read.len() == data.len());
        let read = read.ok_or_else(|| self.connection.short(doing()))?;
        data.copy_from_slice(read);
        Ok(())
    }

    /// Keeps the eventfd that the end of the server is to signal. True if the server can signal it too.
    fn set_error_trigger(&self, triggers: &[Option<BorrowedFd<'_>>]) -> Result<bool, Error> {
        const DOING: &str = "listening for errors";
        if let Some(trigger) = triggers.first() {
            let copy = trigger.map(|fd| fd.try_clone_to_owned()).transpose();
            let copy = copy.map_err(|source| Error::Io {
                function: self.connection.label().to_owned(),
                doing: DOING.to_owned(),
                source,
            })?;
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = copy;
        }
        // Looked at last: an end before the eventfd was there is told so, and one after it is signalled.
        self.connection.check_alive(DOING)?;
        Ok(self.irqs.get(&IrqKind::Err).is_some_and(|info| info.count > 0))
    }

    /// VFIO_USER_DEVICE_SET_IRQS.
    fn set(
        &self,
        kind: IrqKind,
        flags: u32,
        first: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
        doing: impl Fn() -> String,
    ) -> Result<(), Error> {
        let payload = Payload::new().u32(SET_IRQS).u32(flags).u32(kind.number()).u32(first).u32(count);
        self.connection.call(Command::SetIrqs, payload, fds, doing).map(|_| ())
    }
}

/// Notices the end of the server, also while nothing is asked of it.
fn watch(connection: &Arc<Connection>, error: &ErrorTrigger) -> Result<Watch, Error> {
    let failed = |source| Error::Io {
        function: connection.label().to_owned(),
        doing: "watching its socket".to_owned(),
        source,
    };
    let (ended, trigger) = (Arc::clone(connection), Arc::clone(error));
    let start = |socket| {
        Watch::start(socket, move || {
            ended.end("its server hung up");
            if let Some(fd) = &*trigger.lock().unwrap_or_else(PoisonError::into_inner) {
                // Fails only where it is signalled already.
                let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
            }
        })
    };
    connection.socket().and_then(start).map_err(failed)
}

fn ask_irq(connection: &Connection, kind: IrqKind) -> Result<(IrqKind, IrqInfo), Error> {
    let doing = || format!("asking for its {kind:?} interrupts");
    let payload = Payload::new().u32(16).u32(0).u32(kind.number()).u32(0);
    let reply = connection.call(Command::IrqInfo, payload, &[], doing)?;
    let field = |at| reply.fields().u32(at).ok_or_else(|| connection.short(doing()));
    let flags = field(4)?;
    let info = IrqInfo {
        count: field(12)?,
        maskable: flags & VFIO_IRQ_INFO_MASKABLE != 0,
        automasked: flags & VFIO_IRQ_INFO_AUTOMASKED != 0,
        noresize: flags & VFIO_IRQ_INFO_NORESIZE != 0,
    };
    Ok((kind, info))
}

/// Cuts vectors into runs that one message can carry: all with an eventfd and at most `most`, or all without.
fn runs<'a, 'fd>(
    triggers: &'a [Option<BorrowedFd<'fd>>],
    most: usize,
) -> impl Iterator<Item = &'a [Option<BorrowedFd<'fd>>]> {
    triggers.chunk_by(|one, other| one.is_some() == other.is_some()).flat_map(move |run| {
        run.chunks(if run.first().is_some_and(Option::is_some) { most } else { run.len() })
    })
}

impl PciFunction for UserFunction {
    fn label(&self) -> &str {
        self.connection.label()
    }

    fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.place(index).map(|place| &place.region)
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        data.fill(0xff);
        self.check_bounds(index, offset, data.len())?;
        let size = self.connection.limits().data;
        for (chunk, at) in data.chunks_mut(size).zip((offset..).step_by(size)) {
            if let Err(error) = self.read_chunk(index, at, chunk) {
                data.fill(0xff);
                return Err(error);
            }
        }
        Ok(())
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.check_bounds(index, offset, data.len())?;
        let size = self.connection.limits().data;
        for (chunk, at) in data.chunks(size).zip((offset..).step_by(size)) {
            let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let doing = || format!("writing {count} bytes at {at:#x} of its {index:?} region");
            let payload = Payload::new().u64(at).u32(index.number()).u32(count).bytes(chunk);
            let reply = self.connection.call(Command::RegionWrite, payload, &[], doing)?;
            if reply.fields().u32(12) != Some(count) {
                return Err(self.connection.short(doing()));
            }
        }
        Ok(())
    }

    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error> {
        let place = self.place(index).filter(|place| place.region.can_map(area));
        let source = place
            .and_then(|place| Some((place.file.as_ref()?.as_fd(), place.offset.checked_add(area.offset)?)));
        source.ok_or_else(|| {
            self.connection.invalid(format!("{area:x?} of its {index:?} region cannot be mapped"))
        })
    }

    /// Errors can always be listened for: the end of the server is one.
    fn irq_info(&self, kind: IrqKind) -> IrqInfo {
        let mut info = self.irqs.get(&kind).copied().unwrap_or_default();
        if kind == IrqKind::Err {
            info.count = 1;
        }
        info
    }

    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
        let count = self.irq_info(kind).count;
        let end = u32::try_from(triggers.len()).ok().and_then(|length| first.checked_add(length));
        if end.is_none_or(|end| end > count) {
            let what = format!("it has {count} {kind:?} vectors, not {} from {first}", triggers.len());
            return Err(self.connection.invalid(what));
        }
        if kind == IrqKind::Err && !self.set_error_trigger(triggers)? {
            return Ok(());
        }
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut start = first;
        for run in runs(triggers, self.connection.limits().fds) {
            let length = u32::try_from(run.len()).unwrap_or(u32::MAX);
            let doing = || format!("setting {length} {kind:?} vectors from {start}");
            let fds: Vec<_> = run.iter().copied().flatten().collect();
            self.set(kind, flags, start, length, &fds, doing)?;
            start = start.saturating_add(length);
        }
        Ok(())
    }

    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error> {
        if kind == IrqKind::Err && !self.set_error_trigger(&[None])? {
            return Ok(());
        }
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set(kind, flags, 0, 0, &[], || format!("disabling {kind:?}"))
    }

    /// The protocol's eventfd for this is one that the server signals; the kernel's is one that it listens to. So it is
    /// listened to here, and the server is told.
    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let doing = "tying INTx' unmask to an eventfd";
        let start = |fd: BorrowedFd<'_>| {
            let connection = Arc::clone(&self.connection);
            Resampler::start(fd.try_clone_to_owned()?, move || {
                if let Err(error) = unmask(&connection) {
                    tracing::debug!("{error}");
                }
            })
        };
        let new = resample.map(start).transpose().map_err(|source| {
            let function = self.connection.label().to_owned();
            Error::Io { function, doing: doing.to_owned(), source }
        })?;
        let old = std::mem::replace(&mut *self.resampler.lock().unwrap_or_else(PoisonError::into_inner), new);
        drop(old);
        Ok(())
    }

    fn mask_intx(&self, masked: bool) -> Result<(), Error> {
        if !masked {
            return unmask(&self.connection);
        }
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
        self.set(IrqKind::Intx, flags, 0, 1, &[], || "masking INTx".to_owned())
    }

    fn can_reset(&self) -> bool {
        self.resettable
    }

    fn reset(&self) -> Result<(), Error> {
        let doing = || "resetting it".to_owned();
        self.connection.call(Command::Reset, Payload::new(), &[], doing)?;
        self.check_alive("reading its vendor after a reset")
    }

    fn address_space(&self) -> Arc<dyn IoAddressSpace> {
        Arc::clone(&self.space) as _
    }
}

fn unmask(connection: &Connection) -> Result<(), Error> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    let payload = Payload::new().u32(SET_IRQS).u32(flags).u32(IrqKind::Intx.number()).u32(0).u32(1);
    connection.call(Command::SetIrqs, payload, &[], || "unmasking INTx".to_owned()).map(|_| ())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn vectors_are_cut_where_a_message_ends() {
        let file = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let some = Some(file.as_fd());
        let triggers = [some, some, some, None, None, some];
        let lengths = |most| runs(&triggers, most).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(2), [2, 1, 2, 1]);
        assert_eq!(lengths(1), [1, 1, 1, 2, 1]);
        assert_eq!(runs(&[], 1).count(), 0);
    }
}
