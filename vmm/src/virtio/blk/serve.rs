//! The thread of one queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;

use super::super::{ActiveQueue, Broken, Chain, Interrupts, Memory, Stop, Wake};
use super::Disk;
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

impl Server {
    pub(super) fn run(self, stop: &Stop, mut queue: ActiveQueue) {
        let mut buffer = Vec::new();
        loop {
            match stop.wait(&[(queue.kick.fd(), PollFlags::IN)]) {
                Ok(Wake::Ready(_)) => {}
                Ok(Wake::Stop) => return,
                Err(error) => return self.interrupts.fail(error),
            }
            queue.kick.take();
            if let Err(broken) = self.drain(stop, &mut queue, &mut buffer) {
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
                let Some(written) = self.answer(stop, &chain, memory, buffer)? else { return Ok(()) };
                queue.ring.complete(memory, chain.head, written)?;
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

    /// Does one request and writes its status; the answer is how many bytes were written, `None` at the end of the thread.
    fn answer(
        &self,
        stop: &Stop,
        chain: &Chain,
        memory: &Memory,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<u32>, Broken> {
        let status = match Request::read(chain, memory, &self.disk, self.features)? {
            Err(status) => status,
            Ok(request) => match self.until_there_is_space(stop, || {
                self.disk.execute(&request, chain, memory, buffer, self.write_through)
            }) {
                Ok(()) => Status::Ok,
                Err(Undone::Stopped) => return Ok(None),
                Err(Undone::Failed(error)) => {
                    tracing::warn!("{}: {request:?} failed: {error}", self.interrupts.label());
                    Status::IoError
                }
            },
        };
        self.disk.served.fetch_add(1, Ordering::Relaxed);
        if status != Status::Ok {
            self.disk.failed.fetch_add(1, Ordering::Relaxed);
        }
        let last = chain.writable_length().saturating_sub(1);
        chain.write(memory, last, &[status as u8]);
        let written = if status == Status::Ok { last.saturating_add(1) } else { 1 };
        Ok(Some(u32::try_from(written).unwrap_or(u32::MAX)))
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
                        if self.disk.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
                            let label = self.interrupts.label();
                            tracing::error!(
                                "{label}: the host has no space left for it; the guest's disk waits until there is"
                            );
                        }
                    }
                    thread::sleep(AGAIN);
                }
                Err(error) if is_full(&error) => break Err(Undone::Stopped),
                Err(error) => break Err(Undone::Failed(error)),
                Ok(()) => break Ok(()),
            }
        };
        if waits && self.disk.waiting.fetch_sub(1, Ordering::Relaxed) == 1 && result.is_ok() {
            tracing::warn!(
                "{}: there is space on the host again; the guest's disk goes on",
                self.interrupts.label()
            );
        }
        result
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

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
