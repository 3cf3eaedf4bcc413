//! The link itself: its controller, its kind's own settings, MAC address, MTU, up.

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;

use super::Work;
use super::database::default_membership;
use crate::difference::kind_in_words;
use crate::link::{message, up_message};
use crate::network::Error;
use crate::refusal::Refusal;
use crate::settings::LinkKind;
use crate::snapshot::{filters_vlans, own_data};

impl Work<'_> {
    /// All of it; what was lately seen is of afterwards.
    pub(super) async fn link(&mut self) -> Result<(), Error> {
        self.leave().await?;
        self.own_settings().await?;
        self.mac().await?;
        self.join().await?;
        self.mtu().await?;
        let (index, up) = (self.found()?.index, self.wanted.up);
        if self.found()?.settings.up != up {
            let doing = if up { "bringing it up" } else { "taking it down" };
            self.set(doing, up_message(index, up)).await?;
            self.look_again().await?;
        }
        Ok(())
    }

    async fn set(&self, doing: &str, message: LinkMessage) -> Result<(), Error> {
        let result = self.network.ask(Message::SetLink(message), 0).await;
        result.map_err(|refusal| self.refused(doing, refusal))
    }

    /// Out of a controller that it is not to have.
    async fn leave(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        match &found.settings.controller {
            Some(now) if self.wanted.controller.as_ref() != Some(now) => {
                let doing = format!("taking it out of {now}");
                self.set(&doing, message(found.index, LinkAttribute::Controller(0))).await?;
                self.look_again().await
            }
            _ => Ok(()),
        }
    }

    async fn own_settings(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        let (now, wanted) = (&found.settings.kind, &self.wanted.kind);
        if now == wanted || matches!(wanted, LinkKind::Foreign(_)) {
            return Ok(());
        }
        let ports = match (now, wanted) {
            (LinkKind::Bond(now), LinkKind::Bond(wanted)) if now.mode != wanted.mode => {
                self.empty_bond().await?
            }
            _ => Vec::new(),
        };
        let mut message = LinkMessage::default();
        message.header.index = self.found()?.index;
        message.attributes.extend(own_data(Some(now), wanted).map(LinkAttribute::LinkInfo));
        let result = self.network.ask(Message::NewLink(message), 0).await;
        let result = result
            .map_err(|refusal| self.refused(&format!("making it a {}", kind_in_words(wanted)), refusal));
        for port in ports {
            self.enslave(&port).await?;
        }
        result?;
        if filters_vlans(now) && !filters_vlans(wanted) {
            self.default_vlans().await?;
        }
        self.look_again().await
    }

    /// Who is in no VLAN when a bridge stops to filter them gets the one that the kernel gives to fresh ports: else nothing would
    /// pass once somebody has it filter again.
    async fn default_vlans(&self) -> Result<(), Error> {
        let bridge = (self.name, self.found()?);
        for (name, found) in self.now.ports(self.name).chain([bridge]) {
            if found.settings.vlans.is_empty() {
                let request = default_membership(found.index, name == self.name);
                let result = self.network.ask(Message::SetLink(request), 0).await;
                result.map_err(|refusal| self.refused(&format!("putting {name} into VLAN 1"), refusal))?;
            }
        }
        Ok(())
    }

    /// A bond changes its mode only down and without ports: these are its ports.
    async fn empty_bond(&self) -> Result<Vec<String>, Error> {
        let mut ports = Vec::new();
        for (port, found) in self.now.ports(self.name) {
            let released = message(found.index, LinkAttribute::Controller(0));
            self.set(&format!("taking {port} out of it for another mode"), released).await?;
            ports.push(port.to_owned());
        }
        let index = self.found()?.index;
        self.set("taking it down for another mode", up_message(index, false)).await?;
        Ok(ports)
    }

    /// Makes `port` a port of this bond again.
    async fn enslave(&self, port: &str) -> Result<(), Error> {
        let (bond, found) = (self.found()?.index, self.now.need(port)?);
        let doing = format!("putting {port} back into it");
        self.set(&doing, up_message(found.index, false)).await?;
        self.set(&doing, message(found.index, LinkAttribute::Controller(bond))).await?;
        self.set(&doing, up_message(found.index, found.settings.up)).await
    }

    async fn mac(&mut self) -> Result<(), Error> {
        let found = self.found()?;
        let Some(mac) = self.own_mac().filter(|mac| found.settings.mac_address != Some(*mac)) else {
            return Ok(());
        };
        let (index, up) = (found.index, found.settings.up);
        let doing = format!("setting its MAC address to {mac}");
        let request = message(index, LinkAttribute::Address(mac.0.into()));
        match self.network.ask(Message::SetLink(request.clone()), 0).await {
            // Some drivers take another address only while down.
            Err(refusal) if refusal.is(Errno::BUSY) && up => {
                self.set(&doing, up_message(index, false)).await?;
                let result = self.set(&doing, request).await;
                self.set(&doing, up_message(index, true)).await?;
                result?;
            }
            result => result.map_err(|refusal| self.refused(&doing, refusal))?,
        }
        self.look_again().await
    }

    async fn join(&mut self) -> Result<(), Error> {
        let Some(controller) = &self.wanted.controller else { return Ok(()) };
        let found = self.found()?;
        if found.settings.controller.as_ref() == Some(controller) {
            return Ok(());
        }
        let above = self.now.need(controller)?;
        let doing = format!("making it a port of {controller}");
        match &above.settings.kind {
            LinkKind::Bridge(_) => {}
            LinkKind::Bond(_) => self.set(&doing, up_message(found.index, false)).await?,
            // Another kind may take ports too (a vrf, a team); the kernel knows.
            LinkKind::Foreign(kind) if !kind.is_empty() => {}
            _ => {
                let refusal = Refusal::from(std::io::Error::from(Errno::OPNOTSUPP));
                return Err(self.refused(&doing, refusal.because("only bridges and bonds have ports")));
            }
        }
        self.set(&doing, message(found.index, LinkAttribute::Controller(above.index))).await?;
        self.look_again().await
    }

    async fn mtu(&mut self) -> Result<(), Error> {
        let (found, mtu) = (self.found()?, self.wanted.mtu);
        if found.settings.mtu == mtu {
            return Ok(());
        }
        let request = message(found.index, LinkAttribute::Mtu(mtu));
        self.set(&format!("setting its MTU to {mtu}"), request).await?;
        self.look_again().await
    }
}
