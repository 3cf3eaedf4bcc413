//! The whole program on a host of its own: a network namespace that each test makes. Needs root.
//!
//! Nobody is locked out by a change (`lockout`), what others change is seen (`drift`), what the program reports is what other tools
//! say (`others`), a link that another program keeps is left to it
//! (`owners`), after a restart all is as it was (`restore`), and the daemon changes the way by the same rules (`reload`).

mod drift;
mod lockout;
#[path = "../netns/namespace.rs"]
#[allow(dead_code, reason = "the suite netns uses the rest of it")]
mod namespace;
mod others;
mod owners;
mod reload;
mod restore;
mod visit;

use std::collections::BTreeMap;

use netconfig::LinkSettings;
use netconfig::blocking::with_network;

/// What every link is set to.
fn settings() -> BTreeMap<String, LinkSettings> {
    with_network(async |network| network.settings().await).unwrap()
}
