//! Requests of one queue that are under way together, on an io_uring: data go between the host's file and guest memory
//! without a copy. For disks whose bytes lie in a file as they are; all other requests are done one by one.
//!
//! ```text
//!   popped --read, write--> transfer --(short: the rest again)--> [sync] --> answered
//!             flush ------------------------------------------------^
//!          no space: held, nothing more is popped, all held ones again at the timer's next turn
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::super::{Buffer, Chain, Memory};
use super::request::{Range, Request};
use crate::vm::vector::Signal;

/// Requests under way at most; with the timer, all fit the ring's submission queue.
const MOST: usize = 127;
/// Entries of the ring.
const ENTRIES: u32 = 128;
/// What is no slot's number: the timer.
const TIMER: u64 = u64::MAX;
/// The header in front of what is written.
const HEADER: u64 = 16;

/// One request.
pub(super) struct Task {
    pub(super) chain: Chain,
    pub(super) request: Request,
    /// Bytes of it that were transferred.
    done: u64,
    /// Data are there, and are being made durable.
    pub(super) syncs: bool,
    /// It waits for space on the host, or has waited for it.
    pub(super) waits: bool,
    /// What the kernel reads while it is under way.
    vectors: Vec<libc::iovec>,
}

/// What became of a step.
pub(super) enum Landed {
    /// All of it is done, or this is why not.
    Ended(Task, io::Result<()>),
    /// The host has no space for it: it is [held](Flight::hold) or given up.
    Full(Task),
}

/// The ring and what is under way on it.
pub(super) struct Flight {
    ring: IoUring,
    done: Signal,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    under_way: usize,
    held: Vec<Task>,
    timer: Option<Box<types::Timespec>>,
    alignment: usize,
}

impl Flight {
    /// A ring of its own.
    ///
    /// # Errors
    /// The host has no io_uring, or does not let this process have one.
    pub(super) fn new(alignment: usize) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(ENTRIES)?;
        let done = Signal::new()?;
        ring.submitter().register_eventfd(done.eventfd().as_raw_fd())?;
        let mut tasks = Vec::new();
        tasks.resize_with(MOST, || None);
        Ok(Self {
            ring,
            done,
            tasks,
            free: (0..MOST).collect(),
            under_way: 0,
            held: Vec::new(),
            timer: None,
            alignment,
        })
    }

    /// Readable when something has landed since it was taken.
    pub(super) fn done(&self) -> &Signal {
        &self.done
    }

    /// Whether another request may be begun.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.held.is_empty()
    }

    /// Whether the kernel is at work on guest memory.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// How many requests wait for space on the host.
    pub(super) fn waiting(&self) -> usize {
        self.held.iter().chain(self.tasks.iter().flatten()).filter(|task| task.waits).count()
    }

    /// Begins a request; those that are not for the ring come back.
    pub(super) fn begin(
        &mut self,
        file: BorrowedFd<'_>,
        chain: Chain,
        request: Request,
        memory: &Memory,
    ) -> Result<(), (Chain, Request)> {
        let suits = match &request {
            Request::Read(range) | Request::Write(range) => {
                range.length > 0 && self.is_aligned(&chain, &request, *range, memory)
            }
            Request::Flush => true,
            _ => false,
        };
        if !suits || !self.has_room() {
            return Err((chain, request));
        }
        let syncs = request == Request::Flush;
        self.launch(file, Task { chain, request, done: 0, syncs, waits: false, vectors: Vec::new() }, memory);
        Ok(())
    }

    /// Begins to make durable what a request has written.
    pub(super) fn sync(&mut self, file: BorrowedFd<'_>, task: Task, memory: &Memory) {
        self.launch(file, Task { syncs: true, ..task }, memory);
    }

    /// Keeps a request until the host has space again.
    pub(super) fn hold(&mut self, mut task: Task, again: Duration) {
        task.waits = true;
        self.held.push(task);
        if self.timer.is_none() {
            let timer = self.timer.insert(Box::new(types::Timespec::from(again)));
            let entry = opcode::Timeout::new(&raw const **timer).build().user_data(TIMER);
            self.push(&entry);
        }
    }

    /// The next step that has landed.
    pub(super) fn land(&mut self, file: BorrowedFd<'_>, memory: &Memory) -> Option<Landed> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() == TIMER {
                self.timer = None;
                for task in std::mem::take(&mut self.held) {
                    self.launch(file, task, memory);
                }
                continue;
            }
            let Some(slot) = usize::try_from(entry.user_data()).ok() else { continue };
            let Some(task) = self.tasks.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            self.under_way = self.under_way.saturating_sub(1);
            if let Some(landed) = self.landed(file, task, entry.result(), memory) {
                return Some(landed);
            }
        }
    }

    /// Whether something has landed that [`land`](Self::land) has not given out.
    pub(super) fn has_landed(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Hands to the kernel what was begun; true if there was something, which may have landed by now.
    ///
    /// # Errors
    /// What `io_uring_enter` says, but that it is to be called again.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        let some = !self.ring.submission().is_empty();
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has no memory for it now.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(some)
    }

    /// What a request that landed with `result` needs next; `None` when that is under way already.
    fn landed(
        &mut self,
        file: BorrowedFd<'_>,
        mut task: Task,
        result: i32,
        memory: &Memory,
    ) -> Option<Landed> {
        let error = io::Error::from_raw_os_error(result.saturating_neg());
        match result {
            _ if result == -libc::EAGAIN || result == -libc::EINTR => {
                self.launch(file, task, memory);
                return None;
            }
            // A sync that finds no space has lost what was written before: that is an end.
            ..0 if is_full(&error) && !task.syncs => return Some(Landed::Full(task)),
            ..0 => return Some(Landed::Ended(task, Err(error))),
            _ if task.syncs => return Some(Landed::Ended(task, Ok(()))),
            _ => {}
        }
        let length = task.request.length();
        task.done = task.done.saturating_add(u64::try_from(result).unwrap_or_default());
        if result > 0 && task.done < length {
            self.launch(file, task, memory);
            return None;
        }
        let ended = match &task.request {
            // Behind the end of the file are zeroes.
            Request::Read(_) if task.done < length => zeroes(&task.chain, memory, task.done, length),
            Request::Write(_) if task.done < length => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        };
        Some(Landed::Ended(task, ended))
    }

    /// Makes out the task's next step and puts it into the ring.
    fn launch(&mut self, file: BorrowedFd<'_>, mut task: Task, memory: &Memory) {
        let fd = types::Fd(file.as_raw_fd());
        let slot = self.free.pop().unwrap_or(MOST);
        let data = u64::try_from(slot).unwrap_or(TIMER);
        let rest = match &task.request {
            Request::Read(range) | Request::Write(range) if !task.syncs => Some(Range {
                offset: range.offset.saturating_add(task.done),
                length: range.length.saturating_sub(task.done),
            }),
            _ => None,
        };
        let entry = match rest {
            None => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Some(rest) => {
                let buffers = buffers(&task.chain, &task.request, task.done, rest.length);
                task.vectors = buffers.filter_map(|buffer| vector(buffer, memory)).collect();
                let count = u32::try_from(task.vectors.len()).unwrap_or_default();
                let vectors = task.vectors.as_ptr();
                if matches!(task.request, Request::Read(_)) {
                    opcode::Readv::new(fd, vectors, count).offset(rest.offset).build()
                } else {
                    opcode::Writev::new(fd, vectors, count).offset(rest.offset).build()
                }
            }
        };
        // A task comes from `begin`, which looks for room, or had a slot until now.
        let Some(place) = self.tasks.get_mut(slot) else { return };
        *place = Some(task);
        self.under_way = self.under_way.saturating_add(1);
        self.push(&entry.user_data(data));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry refers to is a file that the disk keeps open, vectors that stay in their task, the timer in
        // its box, and guest memory, which whoever has this `Flight` holds on to: all until the entry has landed, which
        // `drop` waits for.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // Of each slot there is one entry at most, and of the timer.
        debug_assert!(pushed.is_ok());
    }

    fn is_aligned(&self, chain: &Chain, request: &Request, range: Range, memory: &Memory) -> bool {
        let is_multiple = |vector: libc::iovec| {
            vector.iov_base.addr().is_multiple_of(self.alignment)
                && vector.iov_len.is_multiple_of(self.alignment)
        };
        self.alignment == 1
            || buffers(chain, request, 0, range.length)
                .all(|buffer| vector(buffer, memory).is_some_and(is_multiple))
    }
}

impl Drop for Flight {
    /// The kernel writes to guest memory until all has landed.
    fn drop(&mut self) {
        while self.under_way > 0 {
            let submitted = self.ring.submit_and_wait(1);
            let mut landed = 0_usize;
            for entry in self.ring.completion() {
                landed += usize::from(entry.user_data() != TIMER);
            }
            self.under_way = self.under_way.saturating_sub(landed);
            if submitted.is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Request {
    /// Bytes that it transfers.
    fn length(&self) -> u64 {
        match self {
            Self::Read(range) | Self::Write(range) => range.length,
            _ => 0,
        }
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The data of a transfer from its byte `done` on.
fn buffers<'a>(
    chain: &'a Chain,
    request: &Request,
    done: u64,
    length: u64,
) -> impl Iterator<Item = Buffer> + use<'a> {
    let (reads, writes) = match request {
        Request::Read(_) => (None, Some(chain.writable_from(done))),
        _ => (Some(chain.readable_from(HEADER.saturating_add(done))), None),
    };
    let mut left = length;
    reads.into_iter().flatten().chain(writes.into_iter().flatten()).map_while(move |buffer| {
        let count = u32::try_from(left).unwrap_or(u32::MAX).min(buffer.length);
        left -= u64::from(count);
        (count > 0).then_some(Buffer { length: count, ..buffer })
    })
}

fn vector(buffer: Buffer, memory: &Memory) -> Option<libc::iovec> {
    let slice = buffer.slice(memory)?;
    Some(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
}

fn zeroes(chain: &Chain, memory: &Memory, from: u64, to: u64) -> io::Result<()> {
    let (zeroes, mut at) = ([0; 4096], from);
    while at < to {
        let count = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeroes.len());
        let written = chain.write(memory, at, zeroes.get(..count).unwrap_or_default());
        if written != count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(())
}
