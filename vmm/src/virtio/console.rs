//! The console (virtio 1.2, 5.3): port 0, which Linux has as `hvc0`. What it says goes where COM1's goes, too.

mod keyboard;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::PollFlags;
use rustix::fs::FileType;

use super::{
    ActivateError, Activation, ActiveQueue, Broken, Chain, Class, Interrupts, Memory, Stop, VirtioDevice,
    Wake, Worker, feature,
};
use crate::legacy::ConsoleOutput;
use crate::memory::GuestRam;
use crate::vm::Signal;

pub use keyboard::Keyboard;

/// Port 0's queues.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// Passed on at once: what a pipe takes without waiting where `poll` says that it takes something (PIPE_BUF).
const PIECE: usize = 4096;

/// Both far ends.
struct Ends {
    keyboard: Arc<Keyboard>,
    output: Arc<ConsoleOutput>,
    /// Bytes that the output's reader surely takes once it is writable.
    piece: usize,
    /// Always raised: waited for where there is no reader.
    always: Signal,
    received: AtomicU64,
    sent: AtomicU64,
}

/// The device.
pub struct Console(Arc<Ends>);

impl Console {
    /// A console whose guest reads what is typed at `keyboard` and writes to `output`.
    ///
    /// # Errors
    /// The host has no descriptor left, or cannot say what the output's reader is.
    pub fn new(keyboard: Arc<Keyboard>, output: Arc<ConsoleOutput>) -> io::Result<Self> {
        let kind = |file| Ok::<_, io::Error>(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode));
        // A terminal may be writable for one byte and have a writer of more wait.
        let piece = match output.reader().map(kind).transpose()? {
            None | Some(FileType::Fifo | FileType::RegularFile) => PIECE,
            Some(_) => 1,
        };
        let always = Signal::new()?;
        always.raise();
        let (received, sent) = Default::default();
        Ok(Self(Arc::new(Ends { keyboard, output, piece, always, received, sent })))
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
            let input = if self.starving { self.receive.kick.fd() } else { ends.keyboard.some().fd() };
            let output = ends.output.reader().map_or(ends.always.fd(), AsFd::as_fd);
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
        self.starving = false;
        let room = usize::try_from(chain.writable_length()).unwrap_or(PIECE).min(PIECE);
        let bytes = self.ends.keyboard.take(room);
        if bytes.is_empty() && room > 0 {
            // Nobody types; the buffer stays for later.
            self.receive.ring.unpop();
            return Ok(());
        }
        let written = chain.write(memory, 0, &bytes);
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
        let taken = self.ends.output.offer(bytes.get(..count).unwrap_or_default());
        let taken = u64::try_from(taken).unwrap_or(0);
        self.ends.sent.fetch_add(taken, Ordering::Relaxed);
        let done = done.saturating_add(taken);
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
