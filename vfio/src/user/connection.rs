//! One connection to a server: a command goes out, its reply comes in.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::wire::{Command, Fields, HEADER, Header, Payload};
use crate::function::Error;

/// The most descriptors that are sent or taken at once.
const MOST_FDS: usize = 16;
/// What a reply may have beside the data of a read: a region's description with its capabilities.
const SLACK: usize = 1 << 16;

/// What the server takes in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) fds: usize,
    /// Bytes of one read or write.
    pub(super) data: usize,
}

/// What came back.
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields(&self.payload)
    }
}

/// A connection that has agreed on a version. Commands of several threads go one after the other.
pub(super) struct Connection {
    label: String,
    patience: Duration,
    limits: Limits,
    gone: AtomicBool,
    channel: Mutex<Channel>,
}

struct Channel {
    stream: UnixStream,
    next: u16,
}

/// Why there is no reply.
enum Failure {
    /// The server answered so.
    Refused(io::Error),
    /// There is no more to be had of it.
    Over(String),
}

impl Connection {
    /// Connects, and agrees on version 0.1 at most. The server has `patience` for each answer.
    pub(super) fn open(path: &Path, patience: Duration) -> Result<Self, Error> {
        let label = path.display().to_string();
        let failed = |source| Error::Io {
            function: label.clone(),
            doing: "connecting to its vfio-user server".to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let mut connection = Self {
            label,
            patience,
            limits: Limits { fds: 1, data: 1 << 20 },
            gone: AtomicBool::new(false),
            channel: Mutex::new(Channel { stream, next: 0 }),
        };
        connection.limits = connection.agree()?;
        Ok(connection)
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn agree(&self) -> Result<Limits, Error> {
        let capabilities = format!(
            "{{\"capabilities\":{{\"max_msg_fds\":{MOST_FDS},\"max_data_xfer_size\":{},\"migration\":{{\"pgsize\":4096}}}}}}\0",
            self.limits.data
        );
        let payload = Payload::new().u16(0).u16(1).bytes(capabilities.as_bytes());
        let reply = self.call(Command::Version, payload, &[], || "agreeing on a protocol version".into())?;
        let (major, minor) = (reply.fields().u16(0), reply.fields().u16(2));
        if major != Some(0) || minor.is_none_or(|minor| minor > 1) {
            let what = format!("it speaks vfio-user {major:?}.{minor:?}; 0.0 and 0.1 are known here");
            return Err(self.invalid(what));
        }
        Ok(limits(reply.payload.get(4..).unwrap_or(&[])))
    }

    /// Sends a command with `fds` and waits for its reply.
    pub(super) fn call(
        &self,
        command: Command,
        payload: Payload,
        fds: &[BorrowedFd<'_>],
        doing: impl Fn() -> String,
    ) -> Result<Reply, Error> {
        let gone = |doing| Error::Gone { function: self.label.clone(), doing };
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if self.gone.load(Ordering::Acquire) {
            return Err(gone(doing()));
        }
        let deadline = Instant::now() + self.patience;
        let most = HEADER + self.limits.data + SLACK;
        match channel.call(command, payload.as_slice(), fds, most, deadline) {
            Ok(reply) => Ok(reply),
            Err(Failure::Refused(source)) => {
                Err(Error::Io { function: self.label.clone(), doing: doing(), source })
            }
            Err(Failure::Over(why)) => {
                self.end(&why);
                // What is still on its way belongs to nobody.
                let _ = channel.stream.shutdown(std::net::Shutdown::Both);
                Err(gone(format!("{}: {why}", doing())))
            }
        }
    }

    /// From now on the function is gone.
    pub(super) fn end(&self, why: &str) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            tracing::warn!("{}: {why}; the function is gone", self.label);
        }
    }

    /// Another descriptor of the socket, to watch it by.
    pub(super) fn socket(&self) -> io::Result<UnixStream> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).stream.try_clone()
    }

    /// [`Error::Gone`] once the server has ended.
    pub(super) fn check_alive(&self, doing: &str) -> Result<(), Error> {
        if self.gone.load(Ordering::Acquire) {
            return Err(Error::Gone { function: self.label.clone(), doing: doing.to_owned() });
        }
        Ok(())
    }

    /// A reply that says less than it must.
    pub(super) fn short(&self, doing: impl Into<String>) -> Error {
        let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the server's reply is too short");
        Error::Io { function: self.label.clone(), doing: doing.into(), source }
    }

    pub(super) fn invalid(&self, what: impl Into<String>) -> Error {
        Error::Invalid { function: self.label.clone(), what: what.into() }
    }
}

/// The limits in a server's capabilities (JSON, ended by a zero); what it does not say is as the protocol has it.
fn limits(json: &[u8]) -> Limits {
    let text = json.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let value: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    let number = |name: &str, default: usize| {
        let number = value.pointer(&format!("/capabilities/{name}")).and_then(serde_json::Value::as_u64);
        number.and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
    };
    Limits {
        fds: number("max_msg_fds", 1).clamp(1, MOST_FDS),
        data: number("max_data_xfer_size", 1 << 20).clamp(8, 1 << 20),
    }
}

impl Channel {
    fn call(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        most: usize,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let header = Header::command(id, command, payload.len())
            .ok_or_else(|| Failure::Refused(io::ErrorKind::InvalidInput.into()))?;
        self.send(header, payload, fds, deadline)?;
        loop {
            let (header, reply) = self.receive(most, deadline)?;
            if header.is_reply() && header.id == id && header.command == command as u16 {
                return match header.refused() {
                    Some(errno) => Err(Failure::Refused(io::Error::from_raw_os_error(errno))),
                    None => Ok(reply),
                };
            }
            if header.is_reply() {
                return Err(Failure::Over("its server answers what was not asked".to_owned()));
            }
            // A command of the server's, for memory that it could not map: all of it can be mapped.
            if header.wants_reply() {
                self.send(Header::refusal(header), &[], &[], deadline)?;
            }
        }
    }

    fn send(
        &self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Failure> {
        let message = [header.to_bytes().as_slice(), payload].concat();
        let mut rest = message.as_slice();
        let mut fds = fds;
        while !rest.is_empty() {
            self.wait(PollFlags::OUT, deadline)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Failure::Refused(io::Error::from_raw_os_error(libc::EMSGSIZE)));
            }
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                // Descriptors travel with the first byte.
                Ok(count) => (rest, fds) = (rest.get(count..).unwrap_or(&[]), &[]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    fn receive(&self, most: usize, deadline: Instant) -> Result<(Header, Reply), Failure> {
        let (mut bytes, mut fds) = ([0; HEADER], Vec::new());
        self.fill(&mut bytes, &mut fds, deadline)?;
        let header = Header::from_bytes(bytes);
        let size = usize::try_from(header.size).ok().filter(|size| (HEADER..=most).contains(size));
        let Some(size) = size else {
            return Err(Failure::Over(format!("its server sends a message of {} bytes", header.size)));
        };
        let mut payload = vec![0; size - HEADER];
        self.fill(&mut payload, &mut fds, deadline)?;
        Ok((header, Reply { payload, fds }))
    }

    /// Receives so many bytes, and the descriptors that come with them.
    fn fill(&self, mut rest: &mut [u8], fds: &mut Vec<OwnedFd>, deadline: Instant) -> Result<(), Failure> {
        while !rest.is_empty() {
            self.wait(PollFlags::IN, deadline)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let count = match recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(rest)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => received.bytes,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(error) => return Err(lost(error)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if count == 0 {
                return Err(Failure::Over("its server hung up".to_owned()));
            }
            rest = std::mem::take(&mut rest).get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
                Ok(0) => return Err(Failure::Over("its server does not answer".to_owned())),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

fn lost(error: Errno) -> Failure {
    match error {
        Errno::PIPE | Errno::CONNRESET => Failure::Over("its server hung up".to_owned()),
        error => Failure::Over(format!("its socket failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_servers_within_reason() {
        let default = Limits { fds: 1, data: 1 << 20 };
        for nothing in [b"".as_slice(), b"\0", b"{", b"[1]\0", b"{\"capabilities\":7}\0", b"\xff\xff"] {
            assert_eq!(limits(nothing), default);
        }
        let said = limits(b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":4096}}\0junk");
        assert_eq!(said, Limits { fds: 8, data: 4096 });
        let wild = limits(b"{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":1e30}}");
        assert_eq!(wild, default);
        assert_eq!(limits(b"{\"capabilities\":{\"max_msg_fds\":4096}}").fds, MOST_FDS);
    }
}
