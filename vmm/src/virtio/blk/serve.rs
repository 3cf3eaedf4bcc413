//! The thread of one queue.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;

use super::super::{ActiveQueue, Broken, Chain, Interrupts, Memory, Stop, Wake};
use super::Disk;
use super::flight::{Flight, Landed, is_full};
use super::request::{Range, Request, Status};
use crate::memory::GuestRam;

/// Copied at once between guest memory and image.
const CHUNK: usize = 256 << 10;
/// After this long a request that found no space is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// The header in front of what is written.
const HEADER: u64 = 16;

/// What serves one queue.
pub(super) struct Server {
    pub(super) disk: Arc<Disk>,
    pub(super) memory: Arc<GuestRam>,
    pub(super) interrupts: Arc<Interrupts>,
    /// The driver does not flush, and so each write is durable.
    pub(super) write_through: bool,
    pub(super) features: u64,
}

/// Why a request was not done.
enum Undone {
    /// The image said no.
    Failed(io::Error),
    /// The thread is to end; the request is not answered.
    Stopped,
}

/// How it stands after all that could be done was done.
enum Turned {
    /// For the driver, or the host.
    Waits,
    /// The thread is to end.
    Stopped,
}

/// Why a queue is served no more.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("Handing requests to the host's kernel: {0}")]
    Ring(#[from] io::Error),
}

impl Server {
    pub(super) fn run(self, stop: &Stop, mut queue: ActiveQueue) {
        match self.flight() {
            Some(flight) => self.run_together(stop, &mut queue, flight),
            None => self.run_one_by_one(stop, &mut queue),
        }
    }

    /// What keeps several requests under way, where the image and the host can.
    fn flight(&self) -> Option<Flight> {
        let plain = self.disk.image.plain();
        let flight = match plain {
            Some(plain) => Flight::new(plain.alignment).map_err(|error| {
                format!("io_uring not in use ({error}), requests are done one by one on each queue")
            }),
            None => Err("requests are done one by one on each queue".to_owned()),
        };
        let how = flight.as_ref().map_or_else(Clone::clone, |_| "io_uring in use".to_owned());
        self.disk.how.get_or_init(|| {
            tracing::info!("{}: {how}", self.interrupts.label());
            how
        });
        flight.ok()
    }

    fn run_one_by_one(&self, stop: &Stop, queue: &mut ActiveQueue) {
        let mut buffer = Vec::new();
        loop {
            match stop.wait(&[(queue.kick.fd(), PollFlags::IN)]) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            queue.kick.take();
            if let Err(broken) = self.drain(stop, queue, &mut buffer) {
                return self.interrupts.fail(broken);
            }
            // A disk at rest holds no memory.
            buffer = Vec::new();
        }
    }

    /// Serves what is in the ring.
    fn drain(&self, stop: &Stop, queue: &mut ActiveQueue, buffer: &mut Vec<u8>) -> Result<(), Broken> {
        let memory = self.memory.memory();
        loop {
            queue.ring.disable_kicks(memory)?;
            while let Some(chain) = queue.ring.pop(memory)? {
                let status = match Request::read(&chain, memory, &self.disk, self.features)? {
                    Err(status) => status,
                    Ok(request) => match self.one(stop, &request, &chain, memory, buffer) {
                        Some(status) => status,
                        None => return Ok(()),
                    },
                };
                self.answer(queue, &chain, status)?;
                // Told one by one: a driver that waits for a flush waits for nothing else.
                if queue.ring.needs_interrupt(memory)? {
                    queue.interrupt.signal();
                }
                if stop.is_raised() {
                    return Ok(());
                }
            }
            if !queue.ring.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }

    fn run_together(&self, stop: &Stop, queue: &mut ActiveQueue, mut flight: Flight) {
        loop {
            let fds = [(queue.kick.fd(), PollFlags::IN), (flight.done().fd(), PollFlags::IN)];
            // A pause waits for what the kernel still does.
            let ready = if flight.is_under_way() { stop.wait_at_work(&fds) } else { stop.wait(&fds) };
            match ready {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return self.give_up(flight),
                Err(error) => return self.interrupts.fail(error),
            }
            queue.kick.take();
            flight.done().take();
            match self.turns(stop, queue, &mut flight) {
                Ok(Turned::Waits) => {}
                Ok(Turned::Stopped) => return self.give_up(flight),
                Err(broken) => {
                    self.give_up(flight);
                    return self.interrupts.fail(broken);
                }
            }
        }
    }

    /// Answers what has landed and begins what has come, until neither is there.
    fn turns(&self, stop: &Stop, queue: &mut ActiveQueue, flight: &mut Flight) -> Result<Turned, Why> {
        let Some(plain) = self.disk.image.plain() else { return Ok(Turned::Stopped) };
        let memory = self.memory.memory();
        let mut buffer = Vec::new();
        loop {
            let mut landed = false;
            while let Some(step) = flight.land(plain.file, memory) {
                landed = true;
                self.landed(queue, flight, step, plain.file)?;
            }
            if landed && queue.ring.needs_interrupt(memory)? {
                queue.interrupt.signal();
            }
            queue.ring.disable_kicks(memory)?;
            let mut come = false;
            while flight.has_room()
                && let Some(chain) = queue.ring.pop(memory)?
            {
                come = true;
                if !self.begin(stop, queue, flight, chain, &mut buffer)? {
                    return Ok(Turned::Stopped);
                }
            }
            let some = flight.submit()?;
            // Who has no room comes here again when something has landed.
            let more = !some && flight.has_room() && queue.ring.enable_kicks(memory)?;
            if stop.is_raised() {
                return Ok(Turned::Stopped);
            }
            if more || some || come {
                continue;
            }
            // What landed while it was handed over need not wake this thread again.
            flight.done().take();
            if !flight.has_landed() {
                return Ok(Turned::Waits);
            }
        }
    }

    /// Begins a request, or does it whole. False when the thread is to end.
    fn begin(
        &self,
        stop: &Stop,
        queue: &mut ActiveQueue,
        flight: &mut Flight,
        chain: Chain,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        let memory = self.memory.memory();
        let (chain, status) = match Request::read(&chain, memory, &self.disk, self.features)? {
            Err(status) => (chain, status),
            Ok(Request::Flush) if self.disk.lost.load(Ordering::Acquire) => (chain, Status::IoError),
            Ok(request) => {
                let Some(plain) = self.disk.image.plain() else { return Ok(false) };
                let Err((chain, request)) = flight.begin(plain.file, chain, request, memory) else {
                    return Ok(true);
                };
                let Some(status) = self.one(stop, &request, &chain, memory, buffer) else { return Ok(false) };
                (chain, status)
            }
        };
        self.answer(queue, &chain, status)?;
        if queue.ring.needs_interrupt(memory)? {
            queue.interrupt.signal();
        }
        Ok(true)
    }

    /// Answers a request that has landed, or begins its next step.
    fn landed(
        &self,
        queue: &mut ActiveQueue,
        flight: &mut Flight,
        landed: Landed,
        file: BorrowedFd<'_>,
    ) -> Result<(), Broken> {
        let (mut task, result) = match landed {
            Landed::Full(task) => {
                if !task.waits {
                    self.wait_begins();
                }
                flight.hold(task, AGAIN);
                return Ok(());
            }
            Landed::Ended(task, result) => (task, result),
        };
        if task.waits {
            self.wait_ends(result.is_ok());
            task.waits = false;
        }
        let status = match result {
            Err(error) => {
                if task.syncs {
                    self.disk.lost.store(true, Ordering::Release);
                }
                self.failed(&task.request, &error);
                Status::IoError
            }
            Ok(()) if self.write_through && !task.syncs && matches!(task.request, Request::Write(_)) => {
                flight.sync(file, task, self.memory.memory());
                return Ok(());
            }
            Ok(()) if task.syncs && self.disk.lost.load(Ordering::Acquire) => Status::IoError,
            Ok(()) => Status::Ok,
        };
        self.answer(queue, &task.chain, status)
    }

    /// Lets go of what was not answered; waits for the kernel to do so.
    fn give_up(&self, flight: Flight) {
        for _ in 0..flight.waiting() {
            self.wait_ends(false);
        }
    }

    /// Does one request whole; `None` at the end of the thread.
    fn one(
        &self,
        stop: &Stop,
        request: &Request,
        chain: &Chain,
        memory: &Memory,
        buffer: &mut Vec<u8>,
    ) -> Option<Status> {
        let attempt = || self.disk.execute(request, chain, memory, buffer, self.write_through);
        match self.until_there_is_space(stop, attempt) {
            Ok(()) => Some(Status::Ok),
            Err(Undone::Stopped) => None,
            Err(Undone::Failed(error)) => {
                self.failed(request, &error);
                Some(Status::IoError)
            }
        }
    }

    fn failed(&self, request: &Request, error: &io::Error) {
        let label = self.interrupts.label();
        let path = &self.disk.path;
        match request {
            Request::Flush => tracing::error!(
                "{label}: making {path} durable failed: {error}; the guest is told so from now on: look at the host's storage, \
                 then start the guest anew"
            ),
            _ => tracing::warn!("{label}: {request:?} of {path} failed: {error}"),
        }
    }

    /// Writes the status of a request and hands it back.
    fn answer(&self, queue: &mut ActiveQueue, chain: &Chain, status: Status) -> Result<(), Broken> {
        let memory = self.memory.memory();
        self.disk.served.fetch_add(1, Ordering::Relaxed);
        if status != Status::Ok {
            self.disk.failed.fetch_add(1, Ordering::Relaxed);
        }
        let last = chain.writable_length().saturating_sub(1);
        chain.write(memory, last, &[status as u8]);
        let written = if status == Status::Ok { last.saturating_add(1) } else { 1 };
        queue.ring.complete(memory, chain.head, u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Tries until the host has space for it.
    fn until_there_is_space(
        &self,
        stop: &Stop,
        mut attempt: impl FnMut() -> io::Result<()>,
    ) -> Result<(), Undone> {
        let mut waits = false;
        let result = loop {
            match attempt() {
                Err(error) if is_full(&error) && !stop.is_raised() => {
                    if !waits {
                        waits = true;
                        self.wait_begins();
                    }
                    thread::sleep(AGAIN);
                    stop.may_rest();
                }
                Err(error) if is_full(&error) => break Err(Undone::Stopped),
                Err(error) => break Err(Undone::Failed(error)),
                Ok(()) => break Ok(()),
            }
        };
        if waits {
            self.wait_ends(result.is_ok());
        }
        result
    }

    fn wait_begins(&self) {
        if self.disk.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(
                "{}: the host has no space left for {}; the guest's disk waits until there is: free some there, and it goes \
                 on by itself",
                self.interrupts.label(),
                self.disk.path
            );
        }
    }

    fn wait_ends(&self, well: bool) {
        if self.disk.waiting.fetch_sub(1, Ordering::Relaxed) == 1 && well {
            tracing::warn!(
                "{}: there is space on the host again; the guest's disk goes on",
                self.interrupts.label()
            );
        }
    }
}

impl Disk {
    /// Does a request, however long it takes.
    pub(super) fn execute(
        &self,
        request: &Request,
        chain: &Chain,
        memory: &Memory,
        buffer: &mut Vec<u8>,
        write_through: bool,
    ) -> io::Result<()> {
        let image = &*self.image;
        let through = || if write_through { self.flush() } else { Ok(()) };
        match request {
            Request::Read(range) => pieces(*range, buffer, |piece, done, at| {
                image.read_at(piece, at)?;
                all_of(chain.write(memory, done, piece), piece)
            }),
            Request::Write(range) => {
                pieces(*range, buffer, |piece, done, at| {
                    all_of(chain.read(memory, HEADER.saturating_add(done), piece), piece)?;
                    image.write_at(piece, at)
                })?;
                through()
            }
            Request::Flush => self.flush(),
            Request::GetId => all_of(chain.write(memory, 0, &self.serial), &self.serial),
            Request::Discard(ranges) => {
                ranges.iter().try_for_each(|range| image.discard(range.offset, range.length))?;
                through()
            }
            Request::WriteZeroes(ranges) => {
                ranges
                    .iter()
                    .try_for_each(|(range, unmap)| image.write_zeroes(range.offset, range.length, *unmap))?;
                through()
            }
        }
    }

    /// The kernel tells a failed write-back once: after that a later one would pass for durable what is lost.
    fn flush(&self) -> io::Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("something written before could not be made durable"));
        }
        let result = self.image.flush();
        if result.as_ref().is_err_and(|error| !is_full(error)) {
            self.lost.store(true, Ordering::Release);
        }
        result
    }
}

fn all_of(count: usize, bytes: &[u8]) -> io::Result<()> {
    if count == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Goes through `range` in pieces: each with how much was done before, and where on the disk it is.
fn pieces(
    range: Range,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&mut [u8], u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let longest = usize::try_from(range.length).unwrap_or(usize::MAX).min(CHUNK);
    if buffer.len() < longest {
        buffer.resize(longest, 0);
    }
    let mut done = 0;
    while done < range.length {
        let count = usize::try_from(range.length - done).unwrap_or(usize::MAX).min(CHUNK);
        each(buffer.get_mut(..count).unwrap_or_default(), done, range.offset.saturating_add(done))?;
        done = done.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(())
}
