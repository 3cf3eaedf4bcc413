//! The socket device (virtio 1.2, 5.10), served by vhost-vsock in the kernel: programs of host and guest talk by context ID
//! and port (vsock(7)).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::PollFlags;
use vhost::VhostBackend;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::net::vhost::{Calls, Tables, failed, set_ring};
use super::{
    ActivateError, Activation, ActiveQueue, Class, Interrupts, QueueInterrupt, Stop, VirtioDevice, Wake,
    Worker, feature,
};
use crate::vm::Signal;

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
            let (call, error) = watch.ring(&queue).map_err(doing)?;
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
        let mut watch = Watch { interrupts, errors: Vec::new(), relays: Vec::new(), queues: Vec::new() };
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

/// What the kernel does not do by itself: interrupts by the pin, and errors.
struct Watch {
    interrupts: Arc<Interrupts>,
    errors: Vec<Arc<Signal>>,
    relays: Vec<(Arc<Signal>, QueueInterrupt)>,
    /// Kept for as long as the kernel has their eventfds.
    queues: Vec<ActiveQueue>,
}

impl Watch {
    /// What vhost is to signal for a ring: that something is used, and that the ring is broken.
    fn ring(&mut self, queue: &ActiveQueue) -> io::Result<(Arc<Signal>, Arc<Signal>)> {
        let error = Arc::new(Signal::new()?);
        self.errors.push(Arc::clone(&error));
        let call = match queue.interrupt.direct() {
            Some(signal) => signal,
            None => {
                let signal = Arc::new(Signal::new()?);
                self.relays.push((Arc::clone(&signal), queue.interrupt.clone()));
                signal
            }
        };
        Ok((call, error))
    }

    fn serve(mut self, stop: &Stop) {
        loop {
            let relays = self.relays.iter().map(|(signal, _)| (signal.fd(), PollFlags::IN));
            let errors = self.errors.iter().map(|signal| (signal.fd(), PollFlags::IN));
            let fds: Vec<_> = errors.chain(relays).collect();
            match stop.wait(&fds) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            drop(fds);
            if self.errors.iter().any(|signal| signal.take()) {
                self.errors.clear();
                self.interrupts.fail("vhost-vsock finds a ring or a packet in it malformed");
            }
            for (signal, interrupt) in &self.relays {
                if signal.take() {
                    interrupt.signal();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
