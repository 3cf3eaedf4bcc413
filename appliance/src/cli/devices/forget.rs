//! `throughway devices forget`.

use std::collections::BTreeSet;

use anyhow::anyhow;
use clap::Args;
use vfio::PciAddress;

use super::adopt::{agreed, by_hand, read, rewrite};
use crate::apply::{self, Claim, History, Host, Ledger, Seen, State, Undo, originals};
use crate::cli::StateDir;
use crate::cli::check::{self, print};
use crate::cli::exit::Exit;
use crate::cli::failure::{Failure, ended};
use crate::config::{Config, Document, load};
use crate::host::HostState;
use crate::plan;

#[derive(Args)]
pub(super) struct Arguments {
    /// A name from the file's `devices`.
    name: String,
    /// The appliance file, which is changed in place.
    #[arg(short, long)]
    file: String,
    /// Do it without asking.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    ended(forget(arguments))
}

fn forget(arguments: &Arguments) -> Result<Exit, Failure> {
    let (document, config) = check::load(&arguments.file).map_err(Failure::Input)?;
    let state = &arguments.state.state_dir;
    let (place, ledger, history) = (Host::at(state), Ledger::at(state), History::at(state));
    let host = read(&arguments.state, &config)?;
    let (mut seen, records) = (place.sightings.read()?, history.records()?);
    let (claims, originals) = (ledger.claims()?, originals(&records));
    let name = &arguments.name;
    let proposal = propose(&document, &config, &host, &seen, &claims, &originals, name)
        .map_err(|message| Failure::Refused(anyhow!(message)))?;
    print(&proposal.shown);
    agreed(&format!("Forget `{name}`?"), arguments.yes)?;

    let _lock = ledger.lock()?;
    for claim in &proposal.claims {
        if claim.undo.is_empty() { ledger.forget(&claim.holder.vm)? } else { ledger.write(claim)? }
    }
    if !proposal.released.is_empty() {
        let current = apply::current(&records);
        let text = current.and_then(|current| current.text.clone());
        let mut record = history.begin(format!("forget {name}"), text, Vec::new())?;
        record.file = current.and_then(|current| current.file.clone());
        (record.released, record.state) = (proposal.released, State::Committed);
        history.write(&record)?;
    }
    if seen.0.remove(name).is_some() {
        place.sightings.write(&seen)?;
    }
    if let Some(text) = &proposal.text {
        rewrite(&arguments.file, &document, text)?;
    }
    let what = if proposal.text.is_some() { "" } else { "what was noted of " };
    print(&format!("Forgotten: {what}`{name}`."));
    Ok(Exit::Success)
}

/// What forgetting comes to.
#[derive(Debug, Default)]
pub(super) struct Proposal {
    /// As a person reads it.
    pub(super) shown: String,
    /// Claims of guests that ended, without what can never be put back.
    pub(super) claims: Vec<Claim>,
    /// What changes of the host noted of it, which is not put back any more.
    pub(super) released: Vec<String>,
    /// The file without the name; none where it stays.
    pub(super) text: Option<String>,
}

pub(super) fn propose(
    document: &Document,
    config: &Config,
    host: &HostState,
    seen: &Seen,
    claims: &[Claim],
    originals: &[Undo],
    name: &str,
) -> Result<Proposal, String> {
    let (device, sighting) = (config.devices.get(name), seen.0.get(name));
    if device.is_none() && sighting.is_none() {
        return Err(format!("{} has no device `{name}`, and none of that name was ever seen", document.name));
    }
    if let Ok(address) = plan::find(config, host, name) {
        return Err(format!("`{name}` is there: {address}; only what is gone can be forgotten"));
    }
    let at = sighting
        .map(|sighting| sighting.address)
        .or_else(|| device?.matches.address.as_deref()?.parse().ok());
    let mut gone: BTreeSet<PciAddress> =
        at.into_iter().chain(sighting.iter().flat_map(|sighting| sighting.vfs.iter().copied())).collect();
    // Numbers move: what another name means now is not what this one was.
    for other in config.devices.keys().filter(|other| *other != name) {
        if let Ok(address) = plan::find(config, host, other) {
            gone.remove(&address);
        }
    }
    if let Some((address, holder)) = gone.iter().find_map(|address| Some((address, host.held.get(address)?)))
    {
        return Err(format!(
            "{address}, which `{name}` was, is in use by guest `{}` (process {}): stop that guest first",
            holder.vm, holder.pid
        ));
    }
    let mut proposal = Proposal::default();
    let mut say = |text: String| {
        proposal.shown.push_str(&text);
        proposal.shown.push('\n');
    };
    match at {
        Some(at) => say(format!("`{name}` was {at}, and is there no more.")),
        None => say(format!("`{name}` is not there, and was never seen.")),
    }
    for claim in claims {
        let kept: Vec<Undo> = claim.undo.iter().filter(|undo| !is_of(undo, &gone)).cloned().collect();
        if kept.len() < claim.undo.len() {
            let vm = &claim.holder.vm;
            say(format!("Guest `{vm}` had it when it ended: that it is to be put back is forgotten."));
            proposal.claims.push(Claim { holder: claim.holder.clone(), undo: kept });
        }
    }
    for undo in originals.iter().filter(|undo| is_of(undo, &gone)) {
        say(format!("Not put back any more: {undo}"));
        proposal.released.push(undo.object());
    }
    if device.is_some() {
        let references = plan::references(config, name);
        if references.is_empty() {
            say(format!("{}: `devices.{name}` is taken out.", document.name));
            proposal.text = Some(without(document, config, name)?);
        } else {
            say(format!("{}: `devices.{name}` stays: {} uses it.", document.name, references.join(", ")));
        }
    }
    proposal.shown.truncate(proposal.shown.trim_end().len());
    Ok(proposal)
}

/// An undo is about one of these functions.
fn is_of(undo: &Undo, gone: &BTreeSet<PciAddress>) -> bool {
    match undo {
        Undo::Driver { address, .. } => gone.contains(address),
        Undo::Sriov { pf, .. } | Undo::Vf { pf, .. } => gone.contains(pf),
        Undo::Link { .. }
        | Undo::Nat { .. }
        | Undo::Dhcp { .. }
        | Undo::Forward { .. }
        | Undo::Hugepages { .. }
        | Undo::Routes { .. } => false,
    }
}

/// The file without the name, checked by reading it again.
fn without(document: &Document, config: &Config, name: &str) -> Result<String, String> {
    let alone = config.devices.len() == 1;
    let path: &[&str] = if alone { &["devices"] } else { &["devices", name] };
    let text = document.without(path).ok_or_else(|| by_hand(document, &path.join(".")))?;
    let now = Document { text, ..document.clone() };
    let mut meant = config.clone();
    meant.devices.remove(name);
    match load(&now) {
        Ok(read) if read == meant => Ok(now.text),
        _ => Err(by_hand(document, &path.join("."))),
    }
}
