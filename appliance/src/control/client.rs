//! The other end of a control socket.

use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, Uid, pidfd_open};
use vmm::control::{Ended, Greeting, Message, Request, VERSION};

use super::Place;

/// An answer comes at once but for what waits for a device of the guest's.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the host may take for a device that comes or goes.
const HOST_PATIENCE: Duration = Duration::from_secs(300);
/// An answer is never longer: a thousand counters of each of hundreds of vCPUs.
const LONGEST_ANSWER: u64 = 64 << 20;

/// What goes wrong between a client and a guest.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such guest.
    #[error("No guest `{0}` runs; `throughway vm list` shows those that do")]
    NotRunning(String),
    /// Its process was killed.
    #[error(
        "Guest `{0}` does not run: its process is gone without having said goodbye. What it left in {1} is cleaned up; `throughway recover` gives back the devices that it held"
    )]
    Dead(String, String),
    /// Its process is there, and not the socket.
    #[error("Guest `{0}` is starting or ending right now; try again in a moment")]
    Between(String),
    /// It belongs to somebody else.
    #[error("You may not control guest `{vm}`: only root and the user who started it may ({source})")]
    NotAllowed {
        /// The guest.
        vm: String,
        /// What the system says.
        source: io::Error,
    },
    /// It is served by another version.
    #[error(
        "Guest `{vm}` is run by Throughway {version}, whose control socket speaks protocol {theirs}, and this is {VERSION}; use that version's program"
    )]
    Version {
        /// The guest.
        vm: String,
        /// Of Throughway.
        version: String,
        /// Of the protocol.
        theirs: u32,
    },
    /// It said no, in these words.
    #[error("{0}")]
    Refused(String),
    /// It ended before it answered.
    #[error("Guest `{0}` ended meanwhile")]
    Ended(String),
    /// The connection failed.
    #[error("Talking to guest `{vm}`: {source}")]
    Io {
        /// The guest.
        vm: String,
        /// What the system says.
        source: io::Error,
    },
}

/// What came.
#[derive(Debug)]
pub enum Answer {
    /// A message.
    Message(Box<Message>),
    /// The end of the connection.
    Over,
}

/// A connection to a guest.
pub struct Client {
    vm: String,
    stream: BufReader<UnixStream>,
    process: OwnedFd,
    pid: u32,
}

impl Client {
    /// Connects to the guest of this name and hears its greeting.
    ///
    /// # Errors
    /// There is none, or it may not be talked to.
    pub fn connect(place: &Place, vm: &str) -> Result<Self, ClientError> {
        let stream = place.connect().map_err(|error| cannot_connect(place, vm, error))?;
        let failed = |source| ClientError::Io { vm: vm.to_owned(), source };
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
        // Before it has said anything: a number that it has given back would be another's, and then nothing is said.
        let process = match open_process(peer.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(without_keeper(place, vm, &stream));
            }
            process => process.map_err(failed)?,
        };
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
        let mut client = Self { vm: vm.to_owned(), stream: BufReader::new(stream), process, pid };
        match client.hear()? {
            Answer::Message(message) => match *message {
                Message::Hello(Greeting { protocol: VERSION, vm, .. }) => client.vm = vm,
                Message::Hello(Greeting { protocol, vm, version }) => {
                    return Err(ClientError::Version { vm, version, theirs: protocol });
                }
                _ => return Err(client.unexpected()),
            },
            // It was not let in, or the guest ended before it was.
            Answer::Over if !may_control(peer.uid) => {
                let source = io::ErrorKind::PermissionDenied.into();
                return Err(ClientError::NotAllowed { vm: client.vm, source });
            }
            Answer::Over => return Err(ClientError::Between(client.vm)),
        }
        Ok(client)
    }

    /// The guest's name, as it says itself.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The process that runs it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// It says no, or nothing.
    pub fn ask(&mut self, request: &Request) -> Result<Message, ClientError> {
        self.ask_with(request, None)
    }

    /// The same, and hands a file over with it.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_with(
        &mut self,
        request: &Request,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Message, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.failed(error.into()))?;
        line.push(b'\n');
        let sent = match file {
            Some(file) => self.send_with(&line, file),
            None => self.stream.get_mut().write_all(&line),
        };
        match sent {
            // It has hung up, maybe with a word about its end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|error| self.failed(error))?,
        }
        match self.hear()? {
            Answer::Message(message) => match *message {
                Message::Error(refusal) => Err(ClientError::Refused(refusal.message)),
                Message::Ended(_) => Err(ClientError::Ended(self.vm.clone())),
                message => Ok(message),
            },
            Answer::Over => Err(ClientError::Ended(self.vm.clone())),
        }
    }

    /// The file goes with the first byte.
    fn send_with(&mut self, line: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        if !beside.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let stream = self.stream.get_mut();
        let (first, rest) = line.split_at(line.len().min(1));
        sendmsg(&*stream, &[IoSlice::new(first)], &mut beside, SendFlags::NOSIGNAL)?;
        stream.write_all(rest)
    }

    /// The same, for what may take the guest that long.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_within(&mut self, request: &Request, guest: Duration) -> Result<Message, ClientError> {
        // What the host does before and after it takes time as well: binding drivers, resets, pinning memory.
        let patience = guest.saturating_add(HOST_PATIENCE);
        self.stream.get_ref().set_read_timeout(Some(patience)).map_err(|error| self.failed(error))?;
        let answer = self.ask(request);
        self.stream.get_ref().set_read_timeout(Some(PATIENCE)).map_err(|error| self.failed(error))?;
        answer
    }

    /// Waits until the guest has ended, for as long as it takes: how, where it says so. Its process may live on for a moment.
    ///
    /// # Errors
    /// The connection fails.
    pub fn wait_for_end(&mut self) -> Result<Option<Ended>, ClientError> {
        self.stream.get_ref().set_read_timeout(None).map_err(|error| self.failed(error))?;
        loop {
            match self.hear()? {
                Answer::Message(message) => {
                    if let Message::Ended(ended) = *message {
                        return Ok(Some(ended));
                    }
                }
                Answer::Over => return Ok(None),
            }
        }
    }

    /// Waits until its process is gone, and so has given back all that it held.
    ///
    /// # Errors
    /// What `poll` says.
    pub fn wait_for_process(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// For bytes, once it is a console: what came with the last answer, and the socket.
    pub fn into_console(self) -> (Vec<u8>, UnixStream) {
        (self.stream.buffer().to_vec(), self.stream.into_inner())
    }

    fn hear(&mut self) -> Result<Answer, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LONGEST_ANSWER).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(Answer::Over),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Answer::Over),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let why = format!("it has not answered for {} seconds", PATIENCE.as_secs());
                return Err(self.failed(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
            Err(error) => return Err(self.failed(error)),
        }
        match serde_json::from_slice(&line) {
            Ok(message) => Ok(Answer::Message(Box::new(message))),
            Err(_) => Err(self.unexpected()),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::Io { vm: self.vm.clone(), source }
    }

    fn unexpected(&self) -> ClientError {
        self.failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it answers with what this protocol does not have",
        ))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Whether a guest that runs as this user lets this process in.
fn may_control(guest: Uid) -> bool {
    let own = rustix::process::geteuid();
    own.is_root() || own == guest
}

fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The keeper is gone, and the kernel is ending the machine, which still had the socket. Why there is no connection, in a moment.
fn without_keeper(place: &Place, vm: &str, stream: &UnixStream) -> ClientError {
    // Until its end, or as long as an answer may take.
    let _ = io::copy(&mut stream.take(LONGEST_ANSWER), &mut io::sink());
    // Of the machine's files the socket may be closed before the lock.
    for _ in 0..50 {
        match cannot_connect(place, vm, io::ErrorKind::ConnectionRefused.into()) {
            ClientError::Between(_) => std::thread::sleep(Duration::from_millis(20)),
            known => return known,
        }
    }
    ClientError::Between(vm.to_owned())
}

/// Why there is no connection; what a dead process left is taken away.
fn cannot_connect(place: &Place, vm: &str, source: io::Error) -> ClientError {
    let vm = vm.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound if !place.folder().exists() => ClientError::NotRunning(vm),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => match place.clean() {
            Ok(true) => ClientError::Dead(vm, place.folder().display().to_string()),
            Ok(false) => ClientError::Between(vm),
            Err(source) => ClientError::Io { vm, source },
        },
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed { vm, source },
        _ => ClientError::Io { vm, source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;

    use super::*;
    use crate::control::{RunDir, Served};

    /// A guest that lets one client in, says `words`, and is gone as soon as it is told to.
    fn guest(place: &Place, words: Vec<Message>) -> mpsc::Sender<()> {
        let served = Served::default();
        let listener = UnixListener::from(place.clone().listen(&served).unwrap());
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for word in words {
                stream.write_all(&word.line()).unwrap();
            }
            let _dropped = ended.recv();
            drop((stream, listener, served));
            let _gone = ended.recv();
        });
        end
    }

    #[test]
    fn a_guest_that_ends_before_it_is_asked_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let place = RunDir::at(folder.path()).guest("a");
        let hello = Message::Hello(Greeting { protocol: VERSION, vm: "a".into(), version: "1".into() });
        for last in [None, Some(Message::Ended(Ended::PowerOff))] {
            let guest = guest(&place, [hello.clone()].into_iter().chain(last).collect());
            let mut client = Client::connect(&place, "a").unwrap();
            guest.send(()).unwrap();
            while place.folder().exists() {
                std::thread::yield_now();
            }
            let asked = client.ask(&Request::State).unwrap_err();
            assert!(matches!(&asked, ClientError::Ended(vm) if vm == "a"), "{asked}");
        }
    }

    #[test]
    fn a_guest_that_hangs_up_at_once_is_about_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let place = RunDir::at(folder.path()).guest("a");
        let guest = guest(&place, Vec::new());
        guest.send(()).unwrap();
        let connected = Client::connect(&place, "a").err().unwrap();
        assert!(matches!(&connected, ClientError::Between(vm) if vm == "a"), "{connected}");
    }
}
