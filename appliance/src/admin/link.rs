//! The socket between the daemon and the process that serves the admin interface: frames with a length, and descriptors beside
//! them from the daemon to the other side alone.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use web::wire::Event;
use web::{Actor, Answer, Problem, Request};

/// Of a frame that strangers have a part in: a file of 1 MiB, each byte of which may be written as six.
const LONGEST_ASKED: usize = 16 << 20;
/// Of an answer.
const LONGEST_ANSWER: usize = 64 << 20;
/// Descriptors with one frame.
const MOST_DESCRIPTORS: usize = 16;
/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// From the process that serves.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Asking {
    pub(super) id: u64,
    pub(super) by: Actor,
    pub(super) what: What,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    Request(Request),
    Console { guest: String, writes: bool },
    Upload { name: String, length: u64 },
}

/// To the process that serves.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Telling {
    /// The first: with its listeners in order, then the folder that it may write to.
    Hello(Hello),
    /// An answer.
    Answer { id: u64, answer: Result<Given, Problem> },
    /// Something happened.
    Event(Event),
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "one at a time, and not for long")]
pub(super) enum Given {
    Answer(Answer),
    /// With its socket; what came of it already.
    Console {
        first: Vec<u8>,
    },
    /// With its file.
    Upload {
        upload: u64,
    },
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Https,
    Http,
    Local,
}

/// What the process that serves is to know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Hello {
    pub(super) listeners: Vec<Kind>,
    /// Certificate and key, as text.
    pub(super) certificate: Option<(String, String)>,
    /// Names and addresses of the box.
    pub(super) names: Vec<String>,
    /// Names that the file has more.
    pub(super) hosts: Vec<String>,
    /// Who may log in, where the file says where that stands.
    pub(super) users_file: Option<PathBuf>,
}

/// One that is read from.
pub(super) struct Reader {
    stream: Arc<UnixStream>,
    longest: usize,
    /// Descriptors are taken; those that come otherwise are closed by the kernel.
    takes: bool,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// One that is written to.
pub(super) struct Writer(Arc<UnixStream>);

/// Both ways of a connection: as the daemon has it, or the process that serves.
pub(super) fn both(stream: UnixStream, daemon: bool) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    let longest = if daemon { LONGEST_ASKED } else { LONGEST_ANSWER };
    let reader = Reader {
        stream: Arc::clone(&stream),
        longest,
        takes: !daemon,
        bytes: Vec::new(),
        descriptors: VecDeque::new(),
    };
    (reader, Writer(stream))
}

impl Reader {
    /// The next frame, with its descriptors; none at the end.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some((length, count)) = head(&self.bytes) {
                if length > self.longest || count > MOST_DESCRIPTORS {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
                }
                let end = HEAD.saturating_add(length);
                if let Some(body) = self.bytes.get(HEAD..end) {
                    let read = serde_json::from_slice(body);
                    self.bytes.drain(..end);
                    if self.bytes.is_empty() {
                        self.bytes.shrink_to(CHUNK);
                    }
                    let descriptors = self.descriptors.drain(..count.min(self.descriptors.len())).collect();
                    return read.map(|frame| Some((frame, descriptors))).map_err(io::Error::from);
                }
            }
            if self.read().await? == 0 {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { stream, takes, bytes, descriptors, .. } = self;
        stream
            .async_io(Interest::READABLE, || {
                let mut chunk = [0; CHUNK];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
                let mut none = [];
                let mut control =
                    RecvAncillaryBuffer::new(if *takes { &mut space[..] } else { &mut none[..] });
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let got = recvmsg(&**stream, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        descriptors.extend(rights);
                    }
                }
                bytes.extend_from_slice(chunk.get(..got.bytes).unwrap_or_default());
                Ok(got.bytes)
            })
            .await
    }
}

impl Writer {
    /// Writes a frame with descriptors beside it.
    pub(super) async fn write<T: Serialize>(&mut self, frame: &T, beside: &[OwnedFd]) -> io::Result<()> {
        let mut bytes = vec![0; HEAD];
        serde_json::to_writer(&mut bytes, frame)?;
        let too_long = || io::Error::new(io::ErrorKind::InvalidData, "a frame is too long");
        let length = u32::try_from(bytes.len().saturating_sub(HEAD)).map_err(|_| too_long())?;
        let count = u8::try_from(beside.len()).map_err(|_| too_long())?;
        let [a, b, c, d] = length.to_le_bytes();
        for (byte, value) in bytes.iter_mut().zip([a, b, c, d, count]) {
            *byte = value;
        }
        let beside: Vec<_> = beside.iter().map(OwnedFd::as_fd).collect();
        let mut written = 0;
        while let Some(left @ [_, ..]) = bytes.get(written..) {
            let count = self.0.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if written == 0 && !beside.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&beside));
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(sendmsg(&*self.0, &[IoSlice::new(left)], &mut control, flags)?)
            });
            written = written.saturating_add(count.await?);
        }
        Ok(())
    }
}

/// Bytes of a frame before what it says.
const HEAD: usize = 5;

/// Length and number of descriptors.
fn head(bytes: &[u8]) -> Option<(usize, usize)> {
    let [a, b, c, d, count, ..] = *bytes else { return None };
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    Some((length, count.into()))
}

/// Answers that are waited for, by their numbers.
pub(super) type Waiting<T> = BTreeMap<u64, tokio::sync::oneshot::Sender<T>>;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use super::*;

    fn pair() -> ((Reader, Writer), (Reader, Writer)) {
        let (daemon, other) = UnixStream::pair().unwrap();
        (both(daemon, true), both(other, false))
    }

    #[tokio::test]
    async fn frames_arrive_whole_with_their_descriptors() {
        let ((_, mut writer), (mut reader, _)) = pair();
        let (receiver, sender) = rustix::pipe::pipe().unwrap();
        let long = "x".repeat(300_000);
        let write = async {
            writer.write(&"first", &[]).await.unwrap();
            writer.write(&long, &[sender]).await.unwrap();
            writer.write(&"last", &[]).await.unwrap();
            drop(writer);
        };
        let read = async {
            let (first, none) = reader.next::<String>().await.unwrap().unwrap();
            assert_eq!((first.as_str(), none.len()), ("first", 0));
            let (second, mut one) = reader.next::<String>().await.unwrap().unwrap();
            assert_eq!((second.len(), one.len()), (300_000, 1));
            File::from(one.pop().unwrap()).write_all(b"hello").unwrap();
            assert_eq!(reader.next::<String>().await.unwrap().unwrap().0, "last");
        };
        tokio::join!(write, read);
        let mut text = String::new();
        File::from(receiver).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn the_daemon_takes_no_descriptor_and_no_endless_frame() {
        let ((mut reader, _), (_, mut writer)) = pair();
        let (receiver, sender) = rustix::pipe::pipe().unwrap();
        writer.write(&"take this", &[sender]).await.unwrap();
        let (text, descriptors) = reader.next::<String>().await.unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("take this", 0));
        // Closed by the kernel: the pipe is at its end.
        assert_eq!(File::from(receiver).read(&mut [0; 1]).unwrap(), 0);
        let endless = async {
            let head = [0xff, 0xff, 0xff, 0xff, 0];
            writer
                .0
                .async_io(Interest::WRITABLE, || Ok(rustix::io::write(&*writer.0, &head)?))
                .await
                .unwrap();
        };
        endless.await;
        assert_eq!(reader.next::<String>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
