//! Links over a socket that waits for each answer, on the thread that asks: for a guest's start, which looks at all links once
//! and makes one. A runtime, and six lists each time, cost several times as much (docs/decisions/0492).
//!
//! What is told or done otherwise than expected is left to [`Network`](crate::Network), which finds out more, and says it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, recv};

use crate::network::{Error, refused};
use crate::settings::LinkKind;
use crate::snapshot::{SkimmedLinks, skim};
use crate::{Link, LinkSettings, tap};

/// How long the kernel may take over an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of the largest answer that is taken; the kernel tells several links in one of these, and more than that only of a card
/// with VFs by the hundred.
const LARGEST: usize = 32 << 10;
/// No more answers to one request.
const MOST: usize = 4096;

/// A connection to the kernel's links.
pub struct Direct {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// All links, as one list has them.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// What each is set to, without addresses, gateways, VLANs and told addresses.
    pub settings: BTreeMap<String, LinkSettings>,
    /// What each is now.
    pub links: Vec<Link>,
    /// One of them at least has VFs.
    pub has_vfs: bool,
}

impl Direct {
    /// Opens a socket in the network namespace of this thread.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))
            .map_err(|errno| Error::Socket(errno.into()))?;
        Ok(Self { socket, buffer: vec![0; LARGEST], sequence: 0 })
    }

    /// All links of this namespace. None where they change while they are told, or are more than this is made for.
    pub fn look(&mut self) -> Result<Option<Look>, Error> {
        let mut request = LinkMessage::default();
        let mask = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
        request.attributes.push(LinkAttribute::ExtMask(mask));
        let answers = self.ask(Message::GetLink(request), NLM_F_DUMP);
        let answers = answers.map_err(|error| refused("all links", "reading them", error))?;
        let Some(Answers { links: messages, whole: true, refusal: None }) = answers else { return Ok(None) };
        let SkimmedLinks { settings, has_vfs } = skim(&messages);
        Ok(Some(Look { settings, links: messages.iter().map(Link::of).collect(), has_vfs }))
    }

    /// Whether it is sure that there is no link of that name.
    pub fn is_free(&mut self, name: &str) -> Result<bool, Error> {
        let answers = self.get(name).map_err(|error| refused(name, "reading it", error))?;
        Ok(answers.is_some_and(|answers| answers.refusal == Some(Errno::NODEV.raw_os_error())))
    }

    /// Makes a tap that is a port of a bridge, looks whether it is as `wanted`, and gives its first queue. None where it is not so,
    /// or where more is wanted than a tap on a bridge; [`Network::realize`](crate::Network::realize) then goes on with what is
    /// there by now.
    pub fn make_port(&mut self, name: &str, wanted: &LinkSettings) -> Result<Option<OwnedFd>, Error> {
        let LinkKind::Tap { multi_queue, vnet_hdr } = wanted.kind else { return Ok(None) };
        let plain = wanted.addresses.is_empty() && wanted.gateways.is_empty();
        let Some(bridge) = wanted.controller.as_deref().filter(|_| {
            plain && wanted.vlans.is_empty() && wanted.forwarded.is_empty() && wanted.mac_address.is_none()
        }) else {
            return Ok(None);
        };
        // The kernel would put a number there.
        if name.contains('%') {
            return Ok(None);
        }
        let failed = |error| refused(name, "making it a tap", error);
        let Some(above) = self.get(bridge).map_err(failed)?.and_then(|found| found.links.into_iter().next())
        else {
            return Ok(None);
        };
        let queue = tap::make(name, multi_queue, vnet_hdr).map_err(failed)?;
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        request.attributes.push(LinkAttribute::Mtu(wanted.mtu));
        request.attributes.push(LinkAttribute::Controller(above.header.index));
        if wanted.up {
            request.header.flags = LinkFlags::Up;
            request.header.change_mask = LinkFlags::Up;
        }
        let done = self.ask(Message::SetLink(request), NLM_F_ACK).map_err(failed)?;
        if done.is_none_or(|answers| answers.refusal.is_some()) {
            return Ok(None);
        }
        let Some(found) = self.get(name).map_err(failed)?.and_then(|found| found.links.into_iter().next())
        else {
            return Ok(None);
        };
        let settings = skim(&[above, found]).settings.remove(name);
        let is_so = settings.is_some_and(|made| LinkSettings { mac_address: None, ..made } == *wanted);
        Ok(is_so.then_some(queue))
    }

    /// The link of a name, or no link.
    fn get(&mut self, name: &str) -> io::Result<Option<Answers>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.ask(Message::GetLink(request), 0)
    }

    /// A request, and what was answered up to its end. None where an answer was too large.
    fn ask(&mut self, request: Message, flags: u16) -> io::Result<Option<Answers>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Answers { whole: true, ..Answers::default() };
        for _ in 0..MOST {
            let (_, length) = recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC)?;
            let Some(mut rest) = self.buffer.get(..length).filter(|rest| !rest.is_empty()) else {
                return Ok(None);
            };
            while !rest.is_empty() {
                let answer = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX);
                rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
                if answer.header.sequence_number == self.sequence && answers.take(answer, flags) {
                    return Ok(Some(answers));
                }
            }
        }
        Ok(None)
    }
}

/// To one request.
#[derive(Default)]
struct Answers {
    links: Vec<LinkMessage>,
    /// They are of one moment.
    whole: bool,
    /// The errno that came, where one did.
    refusal: Option<i32>,
}

impl Answers {
    /// Whether that was the last one.
    fn take(&mut self, answer: NetlinkMessage<Message>, flags: u16) -> bool {
        self.whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(Message::NewLink(link)) => {
                self.links.push(link);
                flags & NLM_F_DUMP == 0
            }
            NetlinkPayload::Error(error) => {
                self.refusal = error.code.map(|code| code.get().saturating_neg());
                true
            }
            NetlinkPayload::Done(_) => true,
            _ => false,
        }
    }
}
