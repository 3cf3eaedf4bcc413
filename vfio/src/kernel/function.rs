//! One function that the kernel serves.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};

use super::cdev::Cdev;
use super::failure::{dead, failed};
use super::ioctl::{self, SetIrqs};
use super::iommu::{Backend, Iommu};
use super::space::Member;
use crate::function::{Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex};

/// By what the kernel is told what to do with a function. Dropped, the function leaves its address space.
pub(super) enum Handle {
    /// Its character device.
    Cdev(Cdev),
    /// A file that its group gave.
    Member(Member),
}

/// A region with the offset at which the device's file shows it.
struct Place {
    region: Region,
    offset: u64,
}

/// One function, opened through VFIO.
pub struct KernelFunction {
    label: String,
    handle: Handle,
    places: Vec<Place>,
    resettable: bool,
    iommu: Arc<Iommu>,
}

impl KernelFunction {
    pub(super) fn new(label: String, handle: Handle, iommu: Arc<Iommu>) -> Result<Self, Error> {
        let mut function = Self { label, handle, places: Vec::new(), resettable: false, iommu };
        let place = |index| {
            let (region, offset) = match &function.handle {
                Handle::Cdev(cdev) => cdev.region(index),
                // One that the device does not have is an error.
                Handle::Member(member) => ioctl::region(member.file(), index).unwrap_or_default(),
            };
            Place { region, offset }
        };
        function.places = (0..9).map(place).collect();
        let flags = ioctl::device_flags(function.fd()).map_err(function.failed("asking what it can do"))?;
        function.resettable = flags & VFIO_DEVICE_FLAGS_RESET != 0;
        match function.check_alive("opening it through VFIO") {
            Err(Error::Gone { function, .. }) => Err(dead(function)),
            checked => checked.map(|()| function),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.handle {
            Handle::Cdev(cdev) => cdev.file(),
            Handle::Member(member) => member.file(),
        }
    }

    fn failed(&self, doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| failed(&self.label, doing, source)
    }

    fn place(&self, index: RegionIndex) -> Option<&Place> {
        let at = usize::try_from(index.number()).ok()?;
        self.places.get(at).filter(|place| place.region.size > 0)
    }

    /// The place of `length` bytes at `offset` in the device's file.
    fn range(&self, index: RegionIndex, offset: u64, length: usize) -> Result<i64, Error> {
        let inside = || {
            let place = self.place(index)?;
            let at = place.offset.checked_add(offset)?;
            place.region.holds(offset, length).then_some(at).and_then(|at| i64::try_from(at).ok())
        };
        inside().ok_or_else(|| Error::Invalid {
            function: self.label.clone(),
            what: format!("{length} bytes at {offset:#x} are not in its {index:?} region"),
        })
    }

    /// A function that answers all ones where its vendor should be is not on the bus.
    fn check_alive(&self, doing: &str) -> Result<(), Error> {
        let mut vendor = [0; 2];
        self.read(RegionIndex::Config, 0, &mut vendor)?;
        if vendor == [0xff; 2] {
            return Err(Error::Gone { function: self.label.clone(), doing: doing.to_owned() });
        }
        Ok(())
    }

    fn set(
        &self,
        kind: IrqKind,
        flags: u32,
        first: u32,
        count: u32,
        fds: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        ioctl::set_irqs(
            self.fd(),
            &SetIrqs { flags, index: kind.number(), start: first, count, eventfds: fds },
        )
    }

    /// All functions that a hot reset would reset too, by their addresses.
    pub fn hot_reset_peers(&self) -> Result<Vec<crate::PciAddress>, Error> {
        let peers =
            ioctl::hot_reset_info(self.fd()).map_err(self.failed("asking what a hot reset would reset"))?;
        Ok(peers
            .iter()
            .map(|peer| crate::PciAddress::from_routing_id(peer.segment.into(), peer.routing_id))
            .collect())
    }

    /// Resets the whole slot or bus. Works only where all its functions are ours.
    fn hot_reset(&self) -> Result<(), Error> {
        let peers = self.hot_reset_peers()?;
        if self.iommu.backend() == Backend::Group {
            // All of them would have to be open here, in groups that may hold more than that.
            let others: Vec<_> =
                peers.iter().map(ToString::to_string).filter(|peer| *peer != self.label).collect();
            let what = format!(
                "it cannot be reset alone, and a hot reset (which would reset {} too) needs the iommufd interface",
                if others.is_empty() { "nothing else".to_owned() } else { others.join(", ") }
            );
            return Err(Error::Invalid { function: self.label.clone(), what });
        }
        ioctl::hot_reset(self.fd(), &[]).map_err(self.failed("resetting its slot or bus"))
    }
}

impl PciFunction for KernelFunction {
    fn label(&self) -> &str {
        &self.label
    }

    fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.place(index).map(|place| &place.region)
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        data.fill(0xff);
        let at = self.range(index, offset, data.len())?;
        // SAFETY: the buffer is valid for its length.
        let count = unsafe { libc::pread(self.fd().as_raw_fd(), data.as_mut_ptr().cast(), data.len(), at) };
        let doing = || format!("reading {} bytes at {offset:#x} of its {index:?} region", data.len());
        match usize::try_from(count) {
            Ok(count) if count == data.len() => Ok(()),
            Ok(_) => Err(self.failed(doing())(io::ErrorKind::UnexpectedEof.into())),
            Err(_) => {
                let error = self.failed(doing())(io::Error::last_os_error());
                data.fill(0xff);
                Err(error)
            }
        }
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error> {
        let at = self.range(index, offset, data.len())?;
        // SAFETY: the buffer is valid for its length.
        let count = unsafe { libc::pwrite(self.fd().as_raw_fd(), data.as_ptr().cast(), data.len(), at) };
        let doing = || format!("writing {} bytes at {offset:#x} of its {index:?} region", data.len());
        match usize::try_from(count) {
            Ok(count) if count == data.len() => Ok(()),
            Ok(_) => Err(self.failed(doing())(io::ErrorKind::WriteZero.into())),
            Err(_) => Err(self.failed(doing())(io::Error::last_os_error())),
        }
    }

    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error> {
        let place = self.place(index).filter(|place| place.region.can_map(area));
        let at = place.and_then(|place| place.offset.checked_add(area.offset));
        let at = at.ok_or_else(|| Error::Invalid {
            function: self.label.clone(),
            what: format!("{area:x?} of its {index:?} region cannot be mapped"),
        })?;
        Ok((self.fd(), at))
    }

    fn irq_info(&self, kind: IrqKind) -> IrqInfo {
        let told = match &self.handle {
            Handle::Cdev(cdev) => cdev.irq_info(kind.number()),
            Handle::Member(member) => ioctl::irq_info(member.file(), kind.number()),
        };
        let Ok((flags, count)) = told else { return IrqInfo::default() };
        IrqInfo {
            count,
            maskable: flags & VFIO_IRQ_INFO_MASKABLE != 0,
            automasked: flags & VFIO_IRQ_INFO_AUTOMASKED != 0,
            noresize: flags & VFIO_IRQ_INFO_NORESIZE != 0,
        }
    }

    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
        let count = u32::try_from(triggers.len()).unwrap_or(u32::MAX);
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let doing = || {
            format!("setting {kind:?} vectors {first} to {}", first.saturating_add(count).saturating_sub(1))
        };
        self.set(kind, flags, first, count, triggers).map_err(|error| self.failed(doing())(error))
    }

    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set(kind, flags, 0, 0, &[]).map_err(self.failed(format!("disabling {kind:?}")))
    }

    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        self.set(IrqKind::Intx, flags, 0, 1, &[resample])
            .map_err(self.failed("tying INTx' unmask to an eventfd"))
    }

    fn mask_intx(&self, masked: bool) -> Result<(), Error> {
        let action = if masked { VFIO_IRQ_SET_ACTION_MASK } else { VFIO_IRQ_SET_ACTION_UNMASK };
        self.set(IrqKind::Intx, VFIO_IRQ_SET_DATA_NONE | action, 0, 1, &[]).map_err(self.failed(if masked {
            "masking INTx"
        } else {
            "unmasking INTx"
        }))
    }

    fn can_reset(&self) -> bool {
        self.resettable
    }

    fn reset(&self) -> Result<(), Error> {
        if self.resettable {
            ioctl::reset(self.fd()).map_err(self.failed("resetting it"))?;
        } else {
            self.hot_reset()?;
        }
        self.check_alive("reading its vendor after a reset")
    }

    fn address_space(&self) -> Arc<dyn IoAddressSpace> {
        Arc::clone(&self.iommu) as _
    }
}
