//! The socket device (virtio 1.2, 5.10), served by vhost-vsock in the kernel: programs of host and guest talk by context ID
//! and port (vsock(7)).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::vhost::VhostBackend;
use rustix::event::PollFlags;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::vhost::{Calls, Signals, Tables, failed, set_ring};
use super::{
    ActivateError, Activation, ActiveQueue, Class, Interrupts, Stop, VirtioDevice, Wake, Worker, feature,
};

mod ioctls {
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(VHOST_VSOCK_SET_GUEST_CID, 0xaf, 0x60, u64);
    ioctl_iow_nr!(VHOST_VSOCK_SET_RUNNING, 0xaf, 0x61, libc::c_int);
}
use ioctls::{VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING};

/// Receives, sends; events are the third queue, and the kernel has none to tell.
const QUEUES: [u16; 2] = [0, 1];
const QUEUE_SIZE: u16 = 128;
/// VIRTIO_VSOCK_F_SEQPACKET.
const SEQPACKET: u64 = 1 << 1;

/// The device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another guest, or another program, has this context ID.
    #[error("The vsock CID {0} is in use by another guest; give each guest a `cid` of its own")]
    InUse(u32),
    /// A call on vhost-vsock failed.
    #[error("Setting vhost-vsock up ({doing}): {source}")]
    Host {
        /// The step.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
}

/// The device.
pub struct Vsock {
    cid: u32,
    fd: Arc<File>,
    offered: u64,
    owned: bool,
    running: Option<Calls>,
    tables: Arc<Tables>,
}

impl Vsock {
    /// A device by which the host reaches the guest as `cid`, 3 or more; `vhost` is a descriptor of /dev/vhost-vsock.
    ///
    /// # Errors
    /// The context ID is in use, or the descriptor is another one.
    pub fn new(cid: u32, vhost: OwnedFd) -> Result<Self, Error> {
        let fd = Arc::new(File::from(vhost));
        let host = |doing| move |source| Error::Host { doing, source };
        let calls = Calls::new(&fd);
        let offered = calls.get_features().map_err(failed).map_err(host("asking for its features"))?;
        // SAFETY: the descriptor is open, and the kernel reads one 64-bit number.
        if unsafe { ioctl_with_ref(&*fd, VHOST_VSOCK_SET_GUEST_CID(), &u64::from(cid)) } != 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EADDRINUSE) => Error::InUse(cid),
                _ => host("setting the guest's CID")(error),
            });
        }
        Ok(Self { cid, fd, offered, owned: false, running: None, tables: Arc::default() })
    }

    fn run(&self, running: bool) -> io::Result<()> {
        // SAFETY: the descriptor is vhost-vsock's, and the kernel reads one int.
        match unsafe { ioctl_with_ref(&*self.fd, VHOST_VSOCK_SET_RUNNING(), &libc::c_int::from(running)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Features, memory and both rings, and then lets it run.
    fn start(&mut self, activation: &mut Activation, watch: &mut Watch) -> Result<(), ActivateError> {
        let doing = |source| ActivateError::Host { doing: "Setting vhost-vsock up".into(), source };
        self.tables.follow(&activation.memory).map_err(doing)?;
        let calls = Calls::of(&self.fd, &activation.memory);
        if !self.owned {
            calls.set_owner().map_err(failed).map_err(doing)?;
            self.owned = true;
        }
        calls.set_features(activation.features & self.offered).map_err(failed).map_err(doing)?;
        let calls = self.running.insert(calls);
        self.tables.give(&self.fd).map_err(doing)?;
        for (ring, index) in (0..).zip(QUEUES) {
            let queue = activation.take_queue(index).ok_or(ActivateError::Queue(index))?;
            let (call, error) = watch.signals.of_ring(&queue).map_err(doing)?;
            set_ring(calls, ring, &queue, &call, &error).map_err(doing)?;
            watch.queues.push(queue);
        }
        self.run(true).map_err(doing)
    }
}

impl VirtioDevice for Vsock {
    fn class(&self) -> Class {
        Class::Socket
    }

    fn features(&self) -> u64 {
        (SEQPACKET | feature::OF_RINGS) & self.offered
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let config = u64::from(self.cid).to_le_bytes();
        for (slot, byte) in data.iter_mut().zip(config.iter().skip(offset.into())) {
            *slot = *byte;
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let interrupts = Arc::clone(&activation.interrupts);
        let mut watch = Watch { interrupts, signals: Signals::default(), queues: Vec::new() };
        self.start(&mut activation, &mut watch)?;
        let worker = Worker::spawn("virtio-vsock", move |stop| watch.serve(&stop));
        Ok(vec![worker.map_err(ActivateError::host("Starting the thread of a virtio-vsock"))?])
    }

    fn reset(&mut self) {
        if self.running.take().is_some() {
            if let Err(error) = self.run(false) {
                tracing::warn!("Stopping vhost-vsock: {error}");
            }
            self.tables.take(&self.fd);
        }
    }

    fn in_kernel(&self) -> bool {
        true
    }

    fn report(&self) -> Option<String> {
        let state = if self.running.is_some() { "in use" } else { "not started by the guest" };
        Some(format!("vhost-vsock {state}, CID {}", self.cid))
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What the kernel does not do by itself.
struct Watch {
    interrupts: Arc<Interrupts>,
    signals: Signals,
    /// Kept for as long as the kernel has their eventfds.
    queues: Vec<ActiveQueue>,
}

impl Watch {
    fn serve(mut self, stop: &Stop) {
        loop {
            let fds: Vec<_> = self.signals.fds().map(|fd| (fd, PollFlags::IN)).collect();
            match stop.wait(&fds) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            drop(fds);
            if self.signals.take() {
                self.interrupts.fail("vhost-vsock finds a ring or a packet in it malformed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::GuestRam;
    use crate::spec::MemorySpec;
    use crate::virtio::{Ring, RingLayout};
    use crate::vm::Signal;

    #[test]
    fn what_is_no_vhost_vsock_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let error = Vsock::new(3, file.into()).err().unwrap();
        assert!(
            error.to_string().starts_with("Setting vhost-vsock up (asking for its features): "),
            "{error}"
        );
    }

    #[test]
    fn one_cid_goes_to_one_guest() {
        let open = || File::options().read(true).write(true).open("/dev/vhost-vsock");
        let (Ok(first), Ok(second)) = (open(), open()) else {
            eprintln!("skipped: no /dev/vhost-vsock");
            return;
        };
        let vsock = Vsock::new(0x5eed, first.into()).unwrap();
        assert!(matches!(Vsock::new(0x5eed, second.into()), Err(Error::InUse(0x5eed))));
        let mut config = [0; 8];
        vsock.read_config(0, &mut config);
        assert_eq!(u64::from_le_bytes(config), 0x5eed);
        vsock.read_config(4, &mut config);
        assert_eq!(config[..4], [0; 4]);
    }

    /// vhost-vsock where this host has it; else a file that refuses every call, as a kernel may at any step.
    fn device() -> Vsock {
        let opened = File::options().read(true).write(true).open("/dev/vhost-vsock");
        if let Some(vsock) = opened.ok().and_then(|file| Vsock::new(0x5eee, file.into()).ok()) {
            return vsock;
        }
        let fd = Arc::new(tempfile::tempfile().unwrap());
        let offered = SEQPACKET | feature::OF_RINGS;
        Vsock { cid: 0x5eee, fd, offered, owned: false, running: None, tables: Arc::default() }
    }

    proptest! {
        #[test]
        fn its_configuration_is_the_cid_wherever_it_is_read(offset: u16, length in 0_usize..20, written: Vec<u8>) {
            let mut vsock = device();
            vsock.write_config(offset, &written);
            let mut data = vec![0; length];
            vsock.read_config(offset, &mut data);
            let whole = [0xee, 0x5e, 0, 0, 0, 0, 0, 0];
            for (at, byte) in data.iter().enumerate() {
                prop_assert_eq!(*byte, whole.get(usize::from(offset) + at).copied().unwrap_or(0));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Rings anywhere in guest RAM and full of noise, some not enabled, any features: it starts or says why not, and can
        /// be reset and started again.
        #[test]
        fn whatever_a_driver_sets_up_it_starts_or_fails_and_can_be_reset(
            noise in vec(any::<u8>(), 0x4000),
            places in vec((0_u64..0x20_0000, 0_u64..0x20_0000, 0_u64..0x20_0000), 3),
            sizes in vec(0_u32..8, 3),
            enabled in vec(any::<bool>(), 3),
            features: u64,
            times in 1..3,
        ) {
            let Some(vm) = crate::passthrough::testing::vm() else { return Ok(()) };
            let memory = MemorySpec { size: 1 << 20, hugepages: None, prefault: false };
            let ram = Arc::new(GuestRam::new(&memory).unwrap());
            ram.memory().write_slice(&noise, GuestAddress(0x1000)).unwrap();
            let interrupts = Arc::new(Interrupts::new(&vm, "vsock test", 17, 3, 4).unwrap());
            let mut vsock = device();
            for _ in 0..times {
                let queues = (0..).zip(&places).zip(&sizes).zip(&enabled).filter_map(|(((index, place), size), on)| {
                    let (descriptors, available, used) = (place.0 & !15, place.1 & !1, place.2 & !3);
                    let layout = RingLayout { size: 1 << size, descriptors, available, used };
                    let ring = Ring::new(index, layout, false, ram.memory()).ok().filter(|_| *on)?;
                    let kick = Arc::new(Signal::new().unwrap());
                    kick.raise();
                    Some(ActiveQueue { index, ring, kick, interrupt: interrupts.of_queue(index) })
                });
                let queues: Vec<_> = queues.collect();
                let complete = QUEUES.iter().all(|index| queues.iter().any(|queue| queue.index == *index));
                let activation =
                    Activation { memory: Arc::clone(&ram), features, queues, interrupts: Arc::clone(&interrupts) };
                let started = vsock.activate(activation);
                prop_assert!(complete || started.is_err(), "it runs without a queue");
                drop(started);
                vsock.reset();
                prop_assert!(vsock.running.is_none());
            }
        }
    }
}
