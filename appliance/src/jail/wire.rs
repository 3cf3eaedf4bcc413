//! Messages between a guest's keeper and its machine: JSON, with descriptors beside it, in packets of a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a packet.
const PIECE: usize = 32 << 10;
/// Descriptors of a packet: the kernel takes 253 (`SCM_MAX_FD`).
const FILES: usize = 64;
/// No message is longer: a specification names each processor of each vCPU.
const LONGEST: usize = 16 << 20;
/// And none has more descriptors.
const MOST_FILES: usize = 4096;

/// One end.
#[derive(Debug)]
pub struct Wire(OwnedFd);

/// Descriptors of a message, each by its place.
#[derive(Debug, Default)]
pub struct Files(Vec<Option<OwnedFd>>);

/// The place of a descriptor among those of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place(usize);

/// Goes first.
#[derive(Serialize, Deserialize)]
struct Length {
    bytes: usize,
    files: usize,
}

impl Files {
    /// Adds one.
    pub fn put(&mut self, file: impl Into<OwnedFd>) -> Place {
        self.0.push(Some(file.into()));
        Place(self.0.len().saturating_sub(1))
    }

    /// Takes one out, once.
    ///
    /// # Errors
    /// It is not there.
    pub fn take(&mut self, place: Place) -> io::Result<OwnedFd> {
        let file = self.0.get_mut(place.0).and_then(Option::take);
        file.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a descriptor is missing"))
    }
}

impl Wire {
    /// Both ends.
    ///
    /// # Errors
    /// What the system says.
    pub fn pair() -> io::Result<(Self, Self)> {
        let kind = SocketType::SEQPACKET;
        let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Of a descriptor that is such an end.
    pub fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The same end once more.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Whether nobody has the other end any more.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_hung_up(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut socket, Some(&Timespec::default()))?;
        let [socket] = socket;
        Ok(socket.revents().contains(PollFlags::HUP))
    }

    /// Sends a message. The descriptors are closed here.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn send(&self, message: &impl Serialize, files: Files) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let files: Vec<OwnedFd> = files.0.into_iter().flatten().collect();
        self.packet(&serde_json::to_vec(&Length { bytes: bytes.len(), files: files.len() })?, &[])?;
        let mut chunks = files.chunks(FILES);
        for piece in bytes.chunks(PIECE) {
            self.packet(piece, chunks.next().unwrap_or_default())?;
        }
        for left in chunks {
            self.packet(&[], left)?;
        }
        Ok(())
    }

    fn packet(&self, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        // A packet of no bytes would look like the end.
        let bytes = if bytes.is_empty() { b" " } else { bytes };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Waits for a message; none at the end.
    ///
    /// # Errors
    /// What came is no message.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Files)>> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let mut files = Vec::new();
        let mut first = Vec::new();
        if self.take(&mut first, &mut files)? == 0 {
            return Ok(None);
        }
        let length: Length = serde_json::from_slice(&first)?;
        if length.bytes > LONGEST || length.files > MOST_FILES || !files.is_empty() {
            return Err(broken());
        }
        let mut bytes = Vec::with_capacity(length.bytes);
        while bytes.len() < length.bytes {
            if self.take(&mut bytes, &mut files)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        while files.len() < length.files {
            let before = files.len();
            self.take(&mut Vec::new(), &mut files)?;
            if files.len() == before {
                return Err(broken());
            }
        }
        if bytes.len() != length.bytes || files.len() != length.files {
            return Err(broken());
        }
        let files = Files(files.into_iter().map(Some).collect());
        Ok(Some((serde_json::from_slice(&bytes)?, files)))
    }

    /// One packet more: how long it was.
    fn take(&self, bytes: &mut Vec<u8>, files: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut piece = vec![0; PIECE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let count = loop {
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut piece)];
            match recvmsg(&self.0, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                // The other end is gone and has not read all; what it had said before comes after this, and then the end.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(errno) => return Err(errno.into()),
                // What came beside it found no room here.
                Ok(received) if received.flags.contains(ReturnFlags::CTRUNC) => {
                    return Err(Errno::MFILE.into());
                }
                Ok(received) => {
                    for message in beside.drain() {
                        if let RecvAncillaryMessage::ScmRights(came) = message {
                            files.extend(came);
                        }
                    }
                    break received.bytes;
                }
            }
        };
        bytes.extend(piece.iter().take(count));
        Ok(count)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn long_messages_and_many_files_arrive_whole() {
        let (one, other) = Wire::pair().unwrap();
        let text = "x".repeat(3 * PIECE + 1);
        let mut files = Files::default();
        let places: Vec<Place> = (0..150_u8)
            .map(|number| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[number]).unwrap();
                files.put(file)
            })
            .collect();
        let sent = (text, places);
        let receiver = std::thread::spawn(move || other.receive::<(String, Vec<Place>)>().unwrap().unwrap());
        one.send(&sent, files).unwrap();
        let (came, mut files) = receiver.join().unwrap();
        assert_eq!(came, sent);
        for (number, place) in (0..).zip(came.1) {
            let mut file = File::from(files.take(place).unwrap());
            file.rewind().unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, [number]);
            assert!(files.take(place).is_err(), "once");
        }
    }

    #[test]
    fn last_words_are_heard_also_from_one_that_did_not_listen() {
        let (one, other) = Wire::pair().unwrap();
        one.send(&1, Files::default()).unwrap();
        other.send(&2, Files::default()).unwrap();
        assert!(!one.is_hung_up().unwrap());
        drop(other);
        assert!(one.is_hung_up().unwrap());
        assert_eq!(one.receive::<u8>().unwrap().map(|(said, _)| said), Some(2));
        assert!(one.receive::<u8>().unwrap().is_none());
    }

    #[test]
    fn the_end_and_nonsense_are_told_apart() {
        let (one, other) = Wire::pair().unwrap();
        one.packet(b"nonsense", &[]).unwrap();
        assert!(other.receive::<u8>().is_err());
        one.packet(br#"{"bytes":99999999999,"files":0}"#, &[]).unwrap();
        assert!(other.receive::<u8>().is_err());
        one.packet(br#"{"bytes":5,"files":0}"#, &[]).unwrap();
        drop(one);
        assert_eq!(other.receive::<u8>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(other.receive::<u8>().unwrap().is_none());
    }
}
