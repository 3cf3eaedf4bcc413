//! Links made and removed.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;

use crate::Network;
use crate::difference::kind_in_words;
use crate::network::{Error, refused};
use crate::refusal::Refusal;
use crate::settings::LinkKind;
use crate::snapshot::{Found, Snapshot, own_data};

impl Network {
    pub(super) async fn create(&self, name: &str, kind: &LinkKind, now: &Snapshot) -> Result<(), Error> {
        let doing = format!("making it a {}", kind_in_words(kind));
        // The kernel would put a number there.
        if name.contains('%') {
            let refusal = Refusal::from(std::io::Error::from(Errno::INVAL));
            return Err(refused(name, &doing, refusal.because("a name cannot have a percent sign")));
        }
        let Some(data) = own_data(None, kind) else { return self.create_tap(name, kind).await };
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        if let LinkKind::Vlan { base, .. } | LinkKind::Macvtap { base, .. } = kind {
            message.attributes.push(LinkAttribute::Link(now.need(base)?.index));
        }
        message.attributes.push(LinkAttribute::LinkInfo(data));
        let result = self.ask(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).await;
        result.map_err(|refusal| refused(name, &doing, refusal))
    }

    async fn create_tap(&self, name: &str, kind: &LinkKind) -> Result<(), Error> {
        match kind {
            LinkKind::Tap { multi_queue, vnet_hdr } => {
                let result = crate::tap::make(name, *multi_queue, *vnet_hdr);
                result.map(drop).map_err(|error| refused(name, "making it a tap", error))
            }
            _ => Err(Error::Absent(name.to_owned())),
        }
    }

    pub(super) async fn remove(&self, name: &str, found: &Found) -> Result<(), Error> {
        if let LinkKind::Foreign(kind) = &found.settings.kind {
            let doing = "removing it".to_owned();
            return Err(Error::Foreign { link: name.to_owned(), doing, kind: kind.clone() });
        }
        let mut message = LinkMessage::default();
        message.header.index = found.index;
        match self.ask(Message::DelLink(message), 0).await {
            // Gone by itself, as a VLAN is with the link below it.
            Err(refusal) if refusal.is(Errno::NODEV) => Ok(()),
            result => result.map_err(|refusal| refused(name, "removing it", refusal)),
        }
    }
}
