//! One client of the control socket: what it sent and is not yet a request, and what it has not yet taken.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use rustix::process::Uid;

use super::protocol::LONGEST_LINE;
use super::recent::Recent;

/// Half a line, or an answer that nobody takes, is waited for this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// While more than this waits to be taken, no further request is looked at.
const ENOUGH: usize = 64 << 10;
/// Read or sent at once.
const PIECE: usize = 4096;

/// What the connection is for now.
pub(super) enum Mode {
    /// Requests, and messages.
    Requests,
    /// COM1: the next byte to send is that of `place`; what comes in is typed by `writes`.
    Console { place: u64, writes: bool },
}

pub(super) struct Connection {
    socket: OwnedFd,
    /// Tells it from others at the same place in the server's list.
    pub(super) serial: u64,
    pub(super) mode: Mode,
    input: Vec<u8>,
    /// What came beside it.
    file: Option<OwnedFd>,
    output: Vec<u8>,
    sent: usize,
    /// The other side sends no more.
    input_ended: bool,
    /// To be closed when all is sent.
    closing: bool,
    /// A request of its is being done.
    pub(super) busy: bool,
    /// What epoll was told.
    pub(super) interest: EventFlags,
    /// When something was last asked.
    pub(super) heard: Instant,
    stuck: Option<Instant>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, serial: u64, hello: &[u8]) -> Self {
        Self {
            socket,
            serial,
            mode: Mode::Requests,
            input: Vec::new(),
            file: None,
            output: hello.to_vec(),
            sent: 0,
            input_ended: false,
            closing: false,
            busy: false,
            interest: EventFlags::empty(),
            heard: Instant::now(),
            stuck: None,
        }
    }

    /// What is to be sent has room for an answer.
    fn has_room(&self) -> bool {
        self.output.len().saturating_sub(self.sent) <= ENOUGH
    }

    pub(super) fn is_writer(&self) -> bool {
        matches!(self.mode, Mode::Console { writes: true, .. })
    }

    /// Something can be read. The answer is what was typed: at most `room` bytes, which must not be 0 for a writer.
    pub(super) fn readable(&mut self, room: usize) -> Vec<u8> {
        let most = if self.is_writer() { room.min(PIECE) } else { PIECE };
        let mut bytes = vec![0; most];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags);
        // Of several the kernel hands over one, and closes the others.
        let file = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        self.file = file.or(self.file.take());
        let count = match received.map(|received| received.bytes) {
            Ok(0) => {
                self.input_ended = true;
                return Vec::new();
            }
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Vec::new(),
            Err(_) => {
                (self.input_ended, self.closing) = (true, true);
                return Vec::new();
            }
        };
        bytes.truncate(count);
        match self.mode {
            Mode::Requests => {
                if self.input.is_empty() {
                    self.stuck.get_or_insert_with(Instant::now);
                }
                self.input.extend(bytes);
                Vec::new()
            }
            Mode::Console { writes: true, .. } => bytes,
            Mode::Console { .. } => Vec::new(),
        }
    }

    /// For one whose input is not read now.
    pub(super) fn look_for_its_end(&mut self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
            (self.input_ended, self.closing) = (true, true);
        }
    }

    /// The next whole line, without its line feed; none while an answer is owed or not taken.
    pub(super) fn line(&mut self) -> Option<Line> {
        if !matches!(self.mode, Mode::Requests) || self.busy || self.closing || !self.has_room() {
            return None;
        }
        let Some(end) = self.input.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
            return (self.input.len() >= LONGEST_LINE).then_some(Line::TooLong);
        };
        let rest = self.input.split_off(end.saturating_add(1));
        let mut line = std::mem::replace(&mut self.input, rest);
        line.pop();
        self.heard = Instant::now();
        self.stuck = if self.input.is_empty() { None } else { Some(self.heard) };
        Some(Line::Whole(line))
    }

    /// The file that came with the request.
    pub(super) fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
    }

    /// Sends what is to be sent, and then no more of anything.
    pub(super) fn close_soon(&mut self) {
        self.closing = true;
    }

    /// From now on a console. What was sent behind the request is typed.
    pub(super) fn become_console(&mut self, place: u64, writes: bool) -> Vec<u8> {
        self.mode = Mode::Console { place, writes };
        let typed = std::mem::take(&mut self.input);
        self.stuck = None;
        if writes { typed } else { Vec::new() }
    }

    /// Sends as much as the other side takes.
    pub(super) fn flush(&mut self, recent: &Recent) {
        while let Some(piece) = self.next_piece(recent) {
            match send(&self.socket, &piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.advance(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    // A console that is not read loses what is too old, and nothing else.
                    if matches!(self.mode, Mode::Requests) || !self.output.is_empty() {
                        self.stuck.get_or_insert_with(Instant::now);
                    }
                    return;
                }
                Err(_) => {
                    self.output.clear();
                    (self.sent, self.input_ended, self.closing, self.busy) = (0, true, true, false);
                    return;
                }
            }
        }
        if self.input.is_empty() {
            self.stuck = None;
        }
    }

    fn next_piece(&mut self, recent: &Recent) -> Option<Vec<u8>> {
        if let Some(piece) = self.output.get(self.sent..).filter(|piece| !piece.is_empty()) {
            return Some(piece.iter().take(PIECE).copied().collect());
        }
        let Mode::Console { place, .. } = &mut self.mode else { return None };
        if self.closing {
            return None;
        }
        let (from, piece) = recent.read(*place, PIECE);
        *place = from;
        Some(piece).filter(|piece| !piece.is_empty())
    }

    fn advance(&mut self, count: usize) {
        if self.output.is_empty() {
            if let Mode::Console { place, .. } = &mut self.mode {
                *place = place.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            }
            return;
        }
        self.sent = self.sent.saturating_add(count);
        if self.sent >= self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
        self.stuck = None;
    }

    /// What to wait for. `may_type`: the guest has room for what is typed.
    pub(super) fn wanted(&self, recent: &Recent, may_type: bool) -> EventFlags {
        let mut wanted = EventFlags::empty();
        let reads = match self.mode {
            Mode::Requests => !self.busy && self.has_room() && self.input.len() < LONGEST_LINE,
            Mode::Console { writes, .. } => !writes || may_type,
        };
        if !self.input_ended && !self.closing {
            wanted |= if reads { EventFlags::IN } else { EventFlags::RDHUP };
        }
        let more = match self.mode {
            Mode::Requests => false,
            Mode::Console { place, .. } => recent.place(false) > place,
        };
        if !self.output.is_empty() || more && !self.closing {
            wanted |= EventFlags::OUT;
        }
        wanted
    }

    /// Nothing more will come of it.
    pub(super) fn is_over(&self) -> bool {
        let nothing_to_send = self.output.is_empty();
        match self.mode {
            Mode::Requests => {
                nothing_to_send
                    && !self.busy
                    && (self.closing || self.input_ended && !self.input.contains(&b'\n'))
            }
            Mode::Console { .. } => nothing_to_send && (self.closing || self.input_ended),
        }
    }

    /// When it has been waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stuck.filter(|_| !self.busy).and_then(|since| since.checked_add(PATIENCE))
    }
}

/// What came out of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// No line feed within what a line may have.
    TooLong,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether the process at the other end is root's, or of the user that runs this one.
pub(super) fn may_control(socket: &OwnedFd) -> io::Result<bool> {
    // rustix takes a process number of 0 for an error; seen from among other process numbers, it is 0.
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or(0);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `length` bytes, which is how long the structure is.
    let asked =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut peer).cast(), &raw mut length) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(crate::own::belongs_to(Uid::from_raw(peer.uid)))
}
