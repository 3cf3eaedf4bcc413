//! Just enough of generic netlink: a family by its name, a request, its answers (Documentation/userspace-api/netlink/intro.rst).

use std::io;
use std::time::Duration;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::refusal::Refusal;

/// How long an answer may take: a card that changes its mode loads other firmware tables first.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sizes of the headers, and the kinds of answers (linux/netlink.h).
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The family that knows the others (linux/genetlink.h).
const CONTROL: u16 = 16;
const CONTROL_VERSION: u8 = 2;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER stand in an attribute's kind.
const KIND: u16 = 0x3fff;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Socket(io::Error),
    /// The kernel does not know the family.
    NoFamily,
    Refused(Refusal),
}

/// Attributes one after another: length, kind, value, each at a multiple of four.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn push_text(&mut self, kind: u16, text: &str) {
        self.push(kind, &[text.as_bytes(), &[0]].concat());
    }

    pub(super) fn push_u16(&mut self, kind: u16, value: u16) {
        self.push(kind, &value.to_ne_bytes());
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        // Names of cards are short; one that is not is refused by the kernel.
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value.iter().take(usize::from(length.saturating_sub(4))));
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn u16(&self, wanted: u16) -> Option<u16> {
        let mut rest = self.0.as_slice();
        loop {
            let (length, after) = rest.split_first_chunk()?;
            let (kind, _) = after.split_first_chunk()?;
            let length = usize::from(u16::from_ne_bytes(*length));
            if u16::from_ne_bytes(*kind) & KIND == wanted {
                return Some(u16::from_ne_bytes(*rest.get(4..length)?.first_chunk()?));
            }
            rest = rest.get(length.max(4).next_multiple_of(4)..)?;
        }
    }
}

/// A socket, and the number of a family.
pub(super) struct Generic {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Generic {
    pub(super) fn open(family: &str) -> Result<Self, Failure> {
        let socket = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Words of refusals; kernels before 4.12 have none.
            let _ = socket.set_ext_ack(true);
            Ok(socket)
        };
        let mut control = Self { socket: socket().map_err(Failure::Socket)?, family: CONTROL, sequence: 0 };
        let mut name = Attributes::default();
        name.push_text(FAMILY_NAME, family);
        let answer = match control.ask(GET_FAMILY, CONTROL_VERSION, &name) {
            Err(Failure::Refused(refusal)) if refusal.is(Errno::NOENT) => return Err(Failure::NoFamily),
            result => result?,
        };
        let number = answer.iter().find_map(|answer| answer.u16(FAMILY_ID)).ok_or(Failure::NoFamily)?;
        Ok(Self { family: number, ..control })
    }

    /// One request; its answers' attributes.
    pub(super) fn ask(
        &mut self,
        command: u8,
        version: u8,
        attributes: &Attributes,
    ) -> Result<Vec<Attributes>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER.saturating_add(GENERIC_HEADER).saturating_add(attributes.0.len());
        let length =
            u32::try_from(length).map_err(|_| Failure::Refused(io::Error::from(Errno::MSGSIZE).into()))?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(self.family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([command, version, 0, 0]);
        message.extend(&attributes.0);
        self.socket.send(&message, 0).map_err(Failure::Socket)?;
        let mut answers = Vec::new();
        loop {
            self.wait()?;
            let (bytes, _) = self.socket.recv_from_full().map_err(Failure::Socket)?;
            if take(&bytes, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    fn wait(&self) -> Result<(), Failure> {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(Failure::Socket(io::Error::from(io::ErrorKind::TimedOut))),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Failure::Socket(error.into())),
            }
        }
    }
}

/// Takes the answers to request `sequence` out of what came; tells whether that was the last.
fn take(bytes: &[u8], sequence: u32, answers: &mut Vec<Attributes>) -> Result<bool, Failure> {
    let mut rest = bytes;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER..length) else { break };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if u32::from_ne_bytes([s0, s1, s2, s3]) != sequence {
            continue;
        }
        match u16::from_ne_bytes([k0, k1]) {
            ERROR => {
                return match body.split_first_chunk() {
                    Some((errno, after)) if i32::from_ne_bytes(*errno) != 0 => {
                        Err(Failure::Refused(Refusal::of_answer(i32::from_ne_bytes(*errno), after)))
                    }
                    _ => Ok(true),
                };
            }
            DONE => return Ok(true),
            _ => answers.extend(body.get(GENERIC_HEADER..).map(|body| Attributes(body.to_vec()))),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_among_others() {
        let mut attributes = Attributes::default();
        attributes.push_text(1, "pci");
        attributes.push_text(2, "0000:65:00.0");
        attributes.push_u16(25, 1);
        assert_eq!((attributes.u16(25), attributes.u16(26)), (Some(1), None));
        assert_eq!(attributes.0.len() % 4, 0);
    }

    proptest! {
        #[test]
        fn no_answer_can_panic(bytes: Vec<u8>, kind: u16, length in 0_u32..80, which in 0_u16..6) {
            let mut answers = Vec::new();
            let _ = take(&bytes, 0, &mut answers);
            let mut message = length.to_ne_bytes().to_vec();
            message.extend(which.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(&bytes);
            let _ = take(&message, 0, &mut answers);
            for answer in answers {
                answer.u16(kind);
            }
            Attributes(bytes).u16(kind);
        }
    }
}
