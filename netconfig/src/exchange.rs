//! Requests to the kernel and its answers, for messages that rtnetlink has no request of its own for.

use std::io;

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::io::Errno;

use crate::Network;
use crate::network::{Error, refused};
use crate::refusal::Refusal;

/// How often a list is asked for again that changed while it was read.
const ATTEMPTS: u8 = 5;

impl Network {
    /// A whole list; a kernel without that list has an empty one.
    pub(crate) async fn dump<T>(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 1..ATTEMPTS {
            if let (list, true) = self.dump_once(what, request.clone(), &pick).await? {
                return Ok(list);
            }
        }
        Ok(self.dump_once(what, request, &pick).await?.0)
    }

    /// A list, and whether it is of one moment.
    async fn dump_once<T>(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Error> {
        let failed = |refusal: Refusal| refused("all links", &format!("reading {what}"), refusal);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers =
            std::pin::pin!(self.handle().clone().request(message).map_err(|error| failed(error.into()))?);
        let (mut list, mut of_one_moment) = (Vec::new(), true);
        let doing = format!("reading {what}");
        while let Some(answer) = self.answer("all links", &doing, answers.next()).await? {
            of_one_moment &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => list.extend(pick(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    let refusal = Refusal::from(rtnetlink::Error::NetlinkError(error));
                    if !refusal.is(Errno::OPNOTSUPP) {
                        return Err(failed(refusal));
                    }
                }
                _ => {}
            }
        }
        Ok((list, of_one_moment))
    }

    /// One change; `flags` beyond those that every change has.
    pub(crate) async fn ask(&self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = std::pin::pin!(self.handle().clone().request(message)?);
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the kernel gave no answer");
        while let Some(answer) = self.answer("", "", answers.next()).await.map_err(silent)? {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error).into());
            }
        }
        Ok(())
    }
}
