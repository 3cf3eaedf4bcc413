//! The console (virtio 1.2, 5.3): port 0, which Linux has as `hvc0`. Its far ends are descriptors, as COM1's are.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::PollFlags;
use rustix::fs::FileType;

use super::{
    ActivateError, Activation, ActiveQueue, Broken, Chain, Class, Interrupts, Memory, Stop, VirtioDevice,
    Wake, Worker, feature,
};
use crate::memory::GuestRam;

/// Port 0's queues.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// Passed on at once: what a pipe takes without waiting where `poll` says that it takes something (PIPE_BUF).
const PIECE: usize = 4096;

/// Both far ends.
struct Ends {
    input: Option<File>,
    output: File,
    /// The input has ended.
    ended: AtomicBool,
    /// Bytes that `output` surely takes once it is writable.
    piece: usize,
    received: AtomicU64,
    sent: AtomicU64,
}

/// The device.
pub struct Console(Arc<Ends>);

impl Console {
    /// A console whose guest reads `input` (nothing ever, where there is none) and writes `output`: terminals, files, pipes
    /// or sockets alike.
    ///
    /// # Errors
    /// What the kernel says of `output`.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&output)?.st_mode);
        // A terminal may be writable for one byte and have a writer of more wait.
        let piece = if matches!(kind, FileType::Fifo | FileType::RegularFile) { PIECE } else { 1 };
        Ok(Self(Arc::new(Ends {
            input: input.map(File::from),
            output: File::from(output),
            ended: AtomicBool::new(false),
            piece,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        })))
    }
}

impl VirtioDevice for Console {
    fn class(&self) -> Class {
        Class::Console
    }

    fn features(&self) -> u64 {
        feature::OF_RINGS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let mut queue = |index| activation.take_queue(index).ok_or(ActivateError::Queue(index));
        let (receive, transmit) = (queue(RECEIVE)?, queue(TRANSMIT)?);
        let Activation { memory, interrupts, .. } = activation;
        let port =
            Port { ends: Arc::clone(&self.0), receive, transmit, starving: false, memory, sending: None };
        let worker = Worker::spawn("virtio-console", move |stop| port.serve(&stop, &interrupts));
        Ok(vec![worker.map_err(ActivateError::host("Starting the thread of a virtio-console"))?])
    }

    fn reset(&mut self) {}

    fn report(&self) -> Option<String> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(format!("bytes received {}, sent {}", count(&self.0.received), count(&self.0.sent)))
    }
}

/// What one thread serves.
struct Port {
    ends: Arc<Ends>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// The guest has given nothing to read into; its next ring is waited for instead of input.
    starving: bool,
    memory: Arc<GuestRam>,
    /// A request on its way out, and how much of it is.
    sending: Option<(Chain, u64)>,
}

impl Port {
    fn serve(mut self, stop: &Stop, interrupts: &Interrupts) {
        let ends = Arc::clone(&self.ends);
        loop {
            let input = ends.input.as_ref().filter(|_| !ends.ended.load(Ordering::Relaxed));
            let (input, output): (BorrowedFd<'_>, BorrowedFd<'_>) = match (input, self.starving) {
                (Some(input), false) => (input.as_fd(), ends.output.as_fd()),
                _ => (self.receive.kick.fd(), ends.output.as_fd()),
            };
            // Output that is full is waited for, and no more is taken meanwhile.
            let out = match self.sending {
                Some(_) => (output, PollFlags::OUT),
                None => (self.transmit.kick.fd(), PollFlags::IN),
            };
            let ready = match stop.wait(&[(input, PollFlags::IN), out]) {
                Ok(Wake::Ready(ready)) => ready,
                Ok(Wake::Stop) => return,
                Err(error) => return interrupts.fail(error),
            };
            let is = |index: usize| ready.get(index) == Some(&true);
            let done = match (is(0), is(1)) {
                (true, out) => self.give().and_then(|()| if out { self.send() } else { Ok(()) }),
                (false, true) => self.send(),
                _ => Ok(()),
            };
            if let Err(broken) = done {
                return interrupts.fail(broken);
            }
        }
    }

    /// There is input, or there are buffers for it.
    fn give(&mut self) -> Result<(), Broken> {
        let ram = Arc::clone(&self.memory);
        let memory = ram.memory();
        self.receive.kick.take();
        self.receive.ring.disable_kicks(memory)?;
        let chain = loop {
            if let Some(chain) = self.receive.ring.pop(memory)? {
                break chain;
            }
            if !self.receive.ring.enable_kicks(memory)? {
                self.starving = true;
                return Ok(());
            }
        };
        let was_starving = std::mem::replace(&mut self.starving, false);
        let room = usize::try_from(chain.writable_length()).unwrap_or(PIECE).min(PIECE);
        // After a ring nobody knows whether there is input; without input the buffer stays for later.
        let input = self.ends.input.as_ref().filter(|_| !self.ends.ended.load(Ordering::Relaxed));
        let (Some(mut input), false) = (input, was_starving) else {
            self.receive.ring.unpop();
            return Ok(());
        };
        let mut bytes = vec![0; room];
        let count = match input.read(&mut bytes) {
            Ok(0) if room > 0 => {
                self.ends.ended.store(true, Ordering::Relaxed);
                0
            }
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => {
                // EIO: the other end of a pty is closed.
                tracing::debug!("Reading the console's input: {error}");
                self.ends.ended.store(true, Ordering::Relaxed);
                0
            }
        };
        if count == 0 && room > 0 {
            self.receive.ring.unpop();
            return Ok(());
        }
        let written = chain.write(memory, 0, bytes.get(..count).unwrap_or_default());
        self.ends.received.fetch_add(u64::try_from(written).unwrap_or(0), Ordering::Relaxed);
        self.receive.ring.complete(memory, chain.head, u32::try_from(written).unwrap_or(0))?;
        if self.receive.ring.needs_interrupt(memory)? {
            self.receive.interrupt.signal();
        }
        Ok(())
    }

    /// The guest has something to say, or the output takes more of it: one piece.
    fn send(&mut self) -> Result<(), Broken> {
        let ram = Arc::clone(&self.memory);
        let memory = ram.memory();
        if self.sending.is_none() {
            self.transmit.kick.take();
            self.sending = self.next(memory)?;
            // Whether the output takes something is asked first.
            return Ok(());
        }
        let Some((chain, done)) = self.sending.take() else { return Ok(()) };
        let mut bytes = vec![0; self.ends.piece];
        let count = chain.read(memory, done, &mut bytes);
        let done = match (&self.ends.output).write(bytes.get(..count).unwrap_or_default()) {
            Ok(written) => {
                let written = u64::try_from(written).unwrap_or(0);
                self.ends.sent.fetch_add(written, Ordering::Relaxed);
                done.saturating_add(written)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                done
            }
            Err(error) => {
                // Where nobody takes it any more, the guest goes on unheard.
                tracing::debug!("Writing to the console: {error}");
                chain.readable_length()
            }
        };
        if done < chain.readable_length() && count > 0 {
            self.sending = Some((chain, done));
            return Ok(());
        }
        self.finish(memory, &chain)?;
        self.sending = self.next(memory)?;
        Ok(())
    }

    fn finish(&mut self, memory: &Memory, chain: &Chain) -> Result<(), Broken> {
        self.transmit.ring.complete(memory, chain.head, 0)?;
        if self.transmit.ring.needs_interrupt(memory)? {
            self.transmit.interrupt.signal();
        }
        Ok(())
    }

    /// What the guest wants said next; rings are wanted only when there is nothing.
    fn next(&mut self, memory: &Memory) -> Result<Option<(Chain, u64)>, Broken> {
        loop {
            self.transmit.ring.disable_kicks(memory)?;
            if let Some(chain) = self.transmit.ring.pop(memory)? {
                return Ok(Some((chain, 0)));
            }
            if !self.transmit.ring.enable_kicks(memory)? {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests;
