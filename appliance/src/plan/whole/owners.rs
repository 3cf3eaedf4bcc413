//! Links that another program keeps as its own files say: two that set the same link undo each other's work.

use netconfig::{LinkKind, LinkSettings, Owner};

use super::Whole;

impl Whole<'_> {
    /// A link that systemd-networkd or NetworkManager keeps is not changed beside them (docs/decisions/0301).
    pub(super) fn nobody_else_keeps(&mut self, name: &str, to: &LinkSettings) {
        let (config, host) = (self.planner.config, self.planner.host);
        let Some(owner) = host.owners.get(name) else { return };
        // NetworkManager lists bridges and taps of others as well; without a connection of its own it leaves them as they are.
        let foreign = matches!(to.kind, LinkKind::Foreign(_));
        if matches!(owner, Owner::NetworkManager { connection: None }) && !foreign {
            return;
        }
        let Some(help) = owner.release(name) else { return };
        // Where the file says so: under its own name, as a port, or as what something stands on.
        let stands_on =
            config.networks.iter().find(|(_, section)| section.base_iface.as_deref() == Some(name));
        let path: Vec<&str> = match (&to.controller, stands_on) {
            _ if config.networks.contains_key(name) => vec!["networks", name],
            (Some(controller), _) if config.networks.contains_key(controller) => {
                vec!["networks", controller, "ports", name]
            }
            (_, Some((above, _))) => vec!["networks", above, "base-iface"],
            _ => vec!["networks"],
        };
        let message = format!("`{name}` is kept by {owner}, which would undo what is changed here");
        self.planner.refuse(&path, message, Some(&help));
    }
}
