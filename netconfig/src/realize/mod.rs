//! Makes a link so, whatever it is now: what differs is changed, in an order that the kernel takes.
//!
//! Link first (made, out of its controller, own settings, MAC address, into its controller, MTU, up), then what hangs on it
//! (forwarding database, VLANs), then what the kernel drops when a link goes down (addresses, routes): these are read again
//! before they are compared.

mod create;
mod database;
mod link;
mod reach;

pub(crate) use reach::again;

use crate::network::Error;
use crate::refusal::Refusal;
use crate::settings::{LinkKind, LinkSettings, MacvtapMode};
use crate::snapshot::{Found, Snapshot};
use crate::{MacAddress, Network};

/// One link on its way.
struct Work<'a> {
    network: &'a Network,
    name: &'a str,
    wanted: &'a LinkSettings,
    /// All links when the work began.
    before: Snapshot,
    /// All links, lately.
    now: Snapshot,
}

impl Network {
    /// Makes a link as `wanted`, or away with it: the same call with what [`Network::settings`] had of it undoes that.
    ///
    /// A link of another kind in its place is replaced; one that Throughway does not make is neither made nor removed.
    /// What fails leaves what was done before it.
    pub async fn realize(&self, name: &str, wanted: Option<&LinkSettings>) -> Result<(), Error> {
        let mut now = self.snapshot().await?;
        let Some(wanted) = wanted else {
            return match now.get(name) {
                Some(found) => self.remove(name, found).await,
                None => Ok(()),
            };
        };
        if let Some(found) = now.get(name).filter(|found| !can_become(&found.settings.kind, &wanted.kind)) {
            if matches!(wanted.kind, LinkKind::Foreign(_)) {
                return Err(Error::Absent(name.to_owned()));
            }
            self.remove(name, found).await?;
            now = self.snapshot().await?;
        }
        if now.get(name).is_none() {
            self.create(name, &wanted.kind, &now).await?;
            now = self.snapshot().await?;
        }
        let mut work = Work { network: self, name, wanted, before: now.clone(), now };
        work.link().await?;
        work.database().await?;
        work.vlans().await?;
        work.reach().await
    }
}

/// A link of kind `now` is made one of kind `wanted` by changing it.
fn can_become(now: &LinkKind, wanted: &LinkKind) -> bool {
    let passthru = |mode: &MacvtapMode| *mode == MacvtapMode::Passthru;
    match (now, wanted) {
        (LinkKind::Bridge(_), LinkKind::Bridge(_))
        | (LinkKind::Bond(_), LinkKind::Bond(_))
        | (LinkKind::Foreign(_), LinkKind::Foreign(_)) => true,
        (LinkKind::Macvtap { base: now, mode }, LinkKind::Macvtap { base, mode: wanted }) => {
            now == base && (mode == wanted || !passthru(mode) && !passthru(wanted))
        }
        (now, wanted) => now == wanted,
    }
}

impl Work<'_> {
    /// The link as it was lately.
    fn found(&self) -> Result<&Found, Error> {
        self.now.need(self.name)
    }

    async fn look_again(&mut self) -> Result<(), Error> {
        self.now = self.network.snapshot().await?;
        Ok(())
    }

    fn refused(&self, doing: &str, refusal: impl Into<Refusal>) -> Error {
        crate::network::refused(self.name, doing, refusal)
    }

    /// The MAC address that the link is to have of its own; the ports of a bond all have the bond's.
    fn own_mac(&self) -> Option<MacAddress> {
        let controller = self.wanted.controller.as_deref().and_then(|name| self.now.get(name));
        let of_bond = controller.is_some_and(|found| matches!(found.settings.kind, LinkKind::Bond(_)));
        self.wanted.mac_address.filter(|_| !of_bond)
    }
}
