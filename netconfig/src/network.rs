//! A connection to the kernel's links (rtnetlink).

use std::io;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rtnetlink::sys::AsyncSocket;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use tokio::task::JoinHandle;

use crate::MacAddress;
use crate::link::{self, Link};
use crate::refusal::Refusal;
use crate::vf::{self, Report, Request, VfAttributes, VfState};

/// How long the kernel may take over a request. It answers at once, but for drivers that reset a VF first.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a port may take to find its link, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A link could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket is to be had.
    #[error("Opening a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused.
    #[error("{link}: {doing}: {refusal}")]
    Refused {
        /// The link's name.
        link: String,
        /// What was being done.
        doing: String,
        /// The errno, and the kernel's words.
        refusal: Refusal,
    },
    /// This process may not change links.
    #[error("{link}: {doing} needs root (CAP_NET_ADMIN), which this process does not have")]
    NotPermitted {
        /// The link's name.
        link: String,
        /// What was being done.
        doing: String,
    },
    /// No answer came, or one that cannot be read.
    #[error("{link}: {doing}: the kernel gave no answer that could be read, within {} seconds", ANSWER.as_secs())]
    NoAnswer {
        /// The link's name.
        link: String,
        /// What was being done.
        doing: String,
    },
    /// No such link.
    #[error("{0}: there is no such network interface")]
    Absent(String),
    /// What it is is not ours to make or remove.
    #[error("{link}: {doing} is not done: it is {}, which Throughway neither makes nor removes", match .kind.as_str() {
        "" => "a card's interface".to_owned(),
        kind => format!("of kind {kind}"),
    })]
    Foreign {
        /// The link's name.
        link: String,
        /// What was asked for.
        doing: String,
        /// The kernel's name for its kind; empty for a card's interface.
        kind: String,
    },
    /// No such VF.
    #[error("{link}: there is no VF {vf}: {}", match .count {
        0 => "it has no virtual functions".to_owned(),
        1 => "it has VF 0 only".to_owned(),
        count => format!("it has VFs 0 to {}", count - 1),
    })]
    NoVf {
        /// The PF's name.
        link: String,
        /// The index.
        vf: u32,
        /// How many there are.
        count: usize,
    },
}

/// The host's links. Its task ends with it.
pub struct Network {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Network {
    /// Opens a socket in the network namespace of this thread; must be called within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        // Without it the kernel's errors are numbers only; kernels before 4.12 do not have it.
        if let Err(error) = connection.socket_mut().socket_mut().set_ext_ack(true) {
            tracing::debug!("Asking for the kernel's words: {error}");
        }
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A link by its name.
    pub async fn link(&self, name: &str) -> Result<Link, Error> {
        self.message(name, &[]).await.map(|message| Link::of(&message))
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let mut answers = std::pin::pin!(self.handle.link().get().execute());
        let mut links = Vec::new();
        while let Some(answer) = self.answer("all links", "reading them", answers.next()).await? {
            links.push(Link::of(&answer.map_err(|error| refused("all links", "reading them", error))?));
        }
        Ok(links)
    }

    /// Administratively up or down.
    pub async fn set_up(&self, name: &str, up: bool) -> Result<(), Error> {
        let index = self.link(name).await?.index;
        let doing = if up { "bringing it up" } else { "taking it down" };
        self.change(name, doing, link::up_message(index, up)).await
    }

    /// Another MAC address. Many drivers want the link down for it.
    pub async fn set_mac(&self, name: &str, mac: MacAddress) -> Result<(), Error> {
        let index = self.link(name).await?.index;
        let message = link::message(index, LinkAttribute::Address(mac.0.into()));
        self.change(name, &format!("setting its MAC address to {mac}"), message).await
    }

    /// Another largest packet, in bytes.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        let index = self.link(name).await?.index;
        self.change(name, &format!("setting its MTU to {mtu}"), link::message(index, LinkAttribute::Mtu(mtu)))
            .await
    }

    async fn change(&self, name: &str, doing: &str, message: LinkMessage) -> Result<(), Error> {
        self.answer(name, doing, self.handle.link().set(message).execute())
            .await?
            .map_err(|error| refused(name, doing, error))
    }

    /// Waits for an answer. A connection that broke gives none, or says that all went well.
    pub(crate) async fn answer<T>(
        &self,
        name: &str,
        doing: &str,
        request: impl Future<Output = T>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(ANSWER, request).await {
            Ok(answer) if !self.task.is_finished() => Ok(answer),
            _ => Err(Error::NoAnswer { link: name.to_owned(), doing: doing.to_owned() }),
        }
    }

    /// The VFs of a PF, by index.
    pub async fn vfs(&self, pf: &str) -> Result<Vec<VfState>, Error> {
        // Without their statistics the VFs of a whole bus fit into the 64 KiB that an answer may have.
        Ok(vf::of_link(&self.message(pf, &[LinkExtentMask::Vf, LinkExtentMask::SkipStats]).await?))
    }

    /// One VF of a PF.
    pub async fn vf(&self, pf: &str, id: u32) -> Result<VfState, Error> {
        let vfs = self.vfs(pf).await?;
        let count = vfs.len();
        vfs.into_iter().find(|vf| vf.id == id).ok_or_else(|| Error::NoVf {
            link: pf.to_owned(),
            vf: id,
            count,
        })
    }

    /// Sets attributes of a VF, each for itself, reads them back, and says of each what became of it.
    pub async fn set_vf(&self, pf: &str, id: u32, wanted: &VfAttributes) -> Result<Vec<Report>, Error> {
        let before = self.vf(pf, id).await?;
        self.send(pf, id, vf::requests(id, wanted, &before)).await
    }

    /// Puts a VF back to what was read of it before; what is so already is left alone.
    pub async fn restore_vf(&self, pf: &str, before: &VfState) -> Result<Vec<Report>, Error> {
        let now = self.vf(pf, before.id).await?;
        self.send(pf, before.id, vf::restore_requests(before, &now)).await
    }

    async fn send(&self, pf: &str, id: u32, requests: Vec<Request>) -> Result<Vec<Report>, Error> {
        let index = self.link(pf).await?.index;
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            let result = self.request(pf, index, &request).await?;
            if let Err(refusal) = &result
                && lacks_rights(refusal)
            {
                return Err(Error::NotPermitted { link: pf.to_owned(), doing: format!("changing VF {id}") });
            }
            results.push((request, result));
        }
        let after = self.vf(pf, id).await?;
        let reports = results.into_iter().flat_map(|(request, result)| {
            let after = &after;
            request.attributes.into_iter().map(move |(attribute, requested)| match &result {
                Ok(()) => Report::accepted(attribute, requested, after),
                Err(error) => Report::refused(attribute, requested, after, error),
            })
        });
        Ok(reports.collect())
    }

    /// One request; a second time where the want of a link may have been the reason of a refusal.
    async fn request(&self, pf: &str, index: u32, request: &Request) -> Result<Result<(), Refusal>, Error> {
        let send = async || {
            let result = self.handle.link().set(request.message(index)).execute();
            self.answer(pf, "changing a VF", result).await.map(|result| result.map_err(Refusal::from))
        };
        match send().await? {
            // igb and ixgbe take rates only while the port has a link, and lose it for seconds when VFs are made.
            Err(refusal) if refusal.is(Errno::INVAL) && request.is_of_rates() => {
                if self.has_carrier_within(pf, PATIENCE).await? {
                    return send().await;
                }
                Ok(Err(refusal.because("the port has no link, and some drivers take rates only with one")))
            }
            result => Ok(result),
        }
    }

    async fn has_carrier_within(&self, name: &str, patience: Duration) -> Result<bool, Error> {
        let end = Instant::now() + patience;
        loop {
            // IFF_LOWER_UP, not the operational state, which the kernel changes with a delay.
            if self.message(name, &[]).await?.header.flags.contains(LinkFlags::LowerUp) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A link, with what `more` asks for (RTEXT_FILTER_VF and its like).
    async fn message(&self, name: &str, more: &[LinkExtentMask]) -> Result<LinkMessage, Error> {
        let request = self.handle.link().get().match_name(name);
        let request = request.set_filter_mask(AddressFamily::Unspec, more.to_vec());
        let mut answers = std::pin::pin!(request.execute());
        match self.answer(name, "reading it", answers.next()).await? {
            Some(Ok(message)) => Ok(message),
            Some(Err(error)) => match Refusal::from(error) {
                refusal if refusal.is(Errno::NODEV) => Err(Error::Absent(name.to_owned())),
                // A name that is too long for any link.
                refusal if refusal.is(Errno::RANGE) => Err(Error::Absent(name.to_owned())),
                refusal => Err(refused(name, "reading it", refusal)),
            },
            None => Err(Error::NoAnswer { link: name.to_owned(), doing: "reading it".to_owned() }),
        }
    }
}

pub(crate) fn refused(link: &str, doing: &str, refusal: impl Into<Refusal>) -> Error {
    let (link, doing, refusal) = (link.to_owned(), doing.to_owned(), refusal.into());
    if lacks_rights(&refusal) {
        Error::NotPermitted { link, doing }
    } else {
        Error::Refused { link, doing, refusal }
    }
}

/// It was refused for want of rights, not by a driver that says EPERM of its own.
fn lacks_rights(refusal: &Refusal) -> bool {
    let privileged =
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    refusal.is(Errno::PERM) && !privileged()
}
