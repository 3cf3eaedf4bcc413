//! The KVM virtual machine: memory slots, interrupt routes, and the device by which KVM knows VFIO.

mod irqchip;
mod pins;
mod routes;
mod slots;
mod stats;
pub(crate) mod vector;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_pit_config,
};
use kvm_ioctls::{Cap, DeviceFd, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

pub use irqchip::IrqchipState;
use pins::Pins;
pub use routes::MsiMessage;
use routes::Routes;
pub use slots::MappedSlot;
use slots::Slots;
pub use stats::{Counters, Stats};
pub use vector::Signal;

use crate::layout;

/// KVM refused something. The message says what was being done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/kvm cannot be opened.
    #[error(
        "Opening /dev/kvm: {0}; is KVM enabled in the firmware and the kernel, and are you root or in group kvm?"
    )]
    Open(io::Error),
    /// KVM lacks what this machine needs.
    #[error("This kernel's KVM lacks {0}")]
    Capability(&'static str),
    /// A call failed.
    #[error("{doing}: {source}")]
    Call {
        /// What was being done.
        doing: String,
        /// The errno.
        source: io::Error,
    },
    /// All GSIs or memory slots are in use.
    #[error("No {0} is left in this machine")]
    Exhausted(&'static str),
}

impl Error {
    pub(crate) fn call(doing: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Call { doing, source: io::Error::from_raw_os_error(error.errno()) }
    }
}

/// One virtual machine. Shared by everything that maps memory into it or interrupts it.
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
    slots: Mutex<Slots>,
    routes: Mutex<Routes>,
    pins: Mutex<Pins>,
    vfio: Mutex<Option<DeviceFd>>,
}

impl Vm {
    /// Opens /dev/kvm and makes a machine with neither memory nor interrupt controllers.
    pub fn new() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|error| Error::Open(io::Error::from_raw_os_error(error.errno())))?;
        for (cap, name) in [
            (Cap::Irqchip, "the in-kernel irqchip"),
            (Cap::Irqfd, "irqfd"),
            (Cap::IrqRouting, "interrupt routing"),
            (Cap::UserMemory, "user memory slots"),
            (Cap::ImmediateExit, "immediate exit"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(Error::Capability(name));
            }
        }
        let fd = kvm.create_vm().map_err(Error::call("Creating the virtual machine"))?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(Error::call("Placing KVM's identity map"))?;
        fd.set_tss_address(tss).map_err(Error::call("Placing KVM's TSS"))?;
        let most_slots = u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX);
        let vm = Self {
            kvm,
            fd,
            slots: Mutex::new(Slots::new(most_slots)),
            routes: Mutex::new(Routes::new()),
            pins: Mutex::default(),
            vfio: Mutex::new(None),
        };
        Ok(vm)
    }

    /// Makes the in-kernel irqchip (PIC, I/O APIC, local APICs); before any vCPU, and after guest RAM.
    ///
    /// After, because the controllers put themselves on KVM's buses, and whoever changes memory slots next waits until KVM
    /// has let go of the buses as they were before (an SRCU grace period): 4 to 8 ms, where the other way round takes 0.2.
    pub fn create_interrupt_controllers(&self) -> Result<(), Error> {
        self.fd.create_irq_chip().map_err(Error::call("Creating the interrupt controllers"))
    }

    /// Makes the interval timer (PIT); after the interrupt controllers.
    pub fn create_timer(&self) -> Result<(), Error> {
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(Error::call("Creating the interval timer"))
    }

    /// The system handle, for CPUID and capabilities.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The machine's own handle, for vCPUs and ioeventfds.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Shows `size` bytes of this process at `host_address` to the guest at `guest_address`. Page-aligned all three.
    /// The slot ends when the answer is dropped ([`Vm::unmap`] is what its owner calls).
    ///
    /// # Safety
    /// `host_address` must be mapped for `size` bytes until [`unmap`](Self::unmap) has returned.
    pub unsafe fn map(
        &self,
        guest_address: u64,
        host_address: *mut u8,
        size: u64,
        read_only: bool,
    ) -> Result<MappedSlot, Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller promises what `Slots::map` asks.
        unsafe { slots.map(&self.fd, guest_address, host_address, size, read_only) }
    }

    /// Takes a slot back from the guest; afterwards the host memory may be unmapped.
    pub fn unmap(&self, slot: MappedSlot) -> Result<(), Error> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).unmap(&self.fd, slot)
    }

    /// A GSI of one's own for message signalled interrupts, above the I/O APIC's pins.
    pub fn allocate_gsi(&self) -> Result<u32, Error> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).allocate()
    }

    /// Gives a GSI back; its route goes with it.
    pub fn release_gsi(&self, gsi: u32) -> Result<(), Error> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).release(&self.fd, gsi)
    }

    /// Routes a GSI to a message, at once. `None` takes the route away: signals are then lost until the next one.
    pub fn route_msi(&self, gsi: u32, message: Option<MsiMessage>) -> Result<(), Error> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).set(&self.fd, gsi, message)
    }

    /// From now on each signal of `trigger` interrupts by `gsi`, without an exit to us.
    pub fn attach_irqfd(&self, trigger: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd.register_irqfd(trigger, gsi).map_err(Error::call(format!("Attaching an irqfd to GSI {gsi}")))
    }

    /// The same for a level-triggered pin: `trigger` asserts it, and KVM signals `resample` when the guest has
    /// acknowledged it (KVM_IRQFD_FLAG_RESAMPLE).
    pub fn attach_level_irqfd(&self, trigger: &EventFd, resample: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd
            .register_irqfd_with_resample(trigger, resample, gsi)
            .map_err(Error::call(format!("Attaching a resampling irqfd to GSI {gsi}")))
    }

    /// Ends what [`attach_irqfd`](Self::attach_irqfd) or the level one began.
    pub fn detach_irqfd(&self, trigger: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd
            .unregister_irqfd(trigger, gsi)
            .map_err(Error::call(format!("Detaching an irqfd from GSI {gsi}")))
    }

    /// Drives an I/O APIC input by hand.
    pub fn set_line(&self, gsi: u32, asserted: bool) -> Result<(), Error> {
        self.fd.set_irq_line(gsi, asserted).map_err(Error::call(format!("Driving GSI {gsi}")))
    }

    /// Drives an I/O APIC input that devices of ours may share: it is asserted while any `owner` asserts it.
    pub fn set_shared_line(&self, gsi: u32, owner: u64, asserted: bool) -> Result<(), Error> {
        // The lock is held while KVM is told: two owners' calls must not overtake each other.
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.set(gsi, owner, asserted).map_or(Ok(()), |level| self.set_line(gsi, level))
    }

    /// From now on a guest's write of any length to `address` signals `kick`, without an exit to us (ioeventfd).
    pub fn attach_doorbell(&self, kick: &EventFd, address: u64) -> Result<(), Error> {
        self.fd
            .register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(Error::call(format!("Attaching an ioeventfd at guest address {address:#x}")))
    }

    /// Ends what [`attach_doorbell`](Self::attach_doorbell) began.
    pub fn detach_doorbell(&self, kick: &EventFd, address: u64) -> Result<(), Error> {
        self.fd
            .unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(Error::call(format!("Detaching an ioeventfd from guest address {address:#x}")))
    }

    /// What KVM has counted of the machine as a whole.
    pub fn stats(&self) -> io::Result<Counters> {
        Stats::of_vm(&self.fd)?.read()
    }

    /// What the interrupt controllers and the timer hold now.
    pub fn irqchip_state(&self) -> Result<IrqchipState, Error> {
        IrqchipState::capture(&self.fd)
    }

    /// Puts the interrupt controllers and the timer back to what they held.
    pub fn restore_irqchip(&self, state: &IrqchipState) -> Result<(), Error> {
        state.restore(&self.fd)
    }

    /// Sends one message now.
    pub fn signal_msi(&self, message: MsiMessage) -> Result<(), Error> {
        self.fd.signal_msi(message.into()).map(|_| ()).map_err(Error::call("Sending an MSI"))
    }

    /// The KVM VFIO device (KVM_DEV_TYPE_VFIO), made at the first call; each answer is a duplicate.
    ///
    /// Functions are to be opened with it, so that KVM knows of their groups before they can run: non-coherent DMA and
    /// posted interrupts depend on it.
    pub fn vfio_device(&self) -> Result<OwnedFd, Error> {
        let mut held = self.vfio.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
            let made =
                self.fd.create_device(&mut device).map_err(Error::call("Creating the KVM VFIO device"))?;
            *held = Some(made);
        }
        let Some(device) = held.as_ref() else { return Err(Error::Capability("the VFIO device")) };
        // SAFETY: `held` keeps the descriptor open, and this function holds its lock.
        let borrowed = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let failed = |source| Error::Call { doing: "Duplicating the KVM VFIO device".into(), source };
        borrowed.try_clone_to_owned().map_err(failed)
    }
}
