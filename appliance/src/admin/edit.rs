//! Small changes of a text, as the forms of the pages make them. Nothing is written: the text goes back to whoever asked.

use vfio::PciAddress;
use vfio::inventory::Function;
use web::Problem;
use web::wire::{Defined, Edit};

use super::{Admin, Parts};
use crate::config::{self, Config, Named};
use crate::host::HostState;
use crate::plan;

/// The class of network controllers (PCI Code and ID Assignment, 1).
const NETWORK: u32 = 2;

impl Admin {
    /// What a text says of a guest, and what there is for one.
    pub(super) async fn defined(&self, text: String, guest: String) -> Result<Defined, Problem> {
        self.beside(move |parts| Ok(parts.document(text).defined(&guest))).await
    }

    pub(super) async fn edit(&self, text: String, edit: Edit) -> Result<String, Problem> {
        self.reading(move |parts| {
            let document = parts.document(text);
            let changed = match &edit {
                Edit::PutGuest { name, guest } => document.with_guest(name, guest),
                Edit::RemoveGuest { name } => document.without_guest(name),
                Edit::GiveDevice { address, guest } => {
                    if document.defined(guest).guest.is_none() {
                        return Err(Problem::not_found(format!("The file has no guest `{guest}`")));
                    }
                    let seen = Seen::read(parts, &document)?;
                    let function = seen.function(address)?;
                    match seen.card(function) {
                        Some((pf, vf, present)) => document.with_vf(guest, &seen.named(pf), vf, present),
                        None => document.with_device(guest, &seen.named(function)),
                    }
                }
                Edit::SetVfs { address, count } => {
                    let seen = Seen::read(parts, &document)?;
                    document.with_vfs(&seen.named(seen.function(address)?), *count)
                }
            };
            changed.ok_or_else(|| {
                let why = "The file is written in a way that this form does not understand (anchors, tags, or an error of \
                           YAML); change its text by hand";
                Problem::refused(why, Vec::new())
            })
        })
        .await
    }
}

/// A text and the host, as both are now.
struct Seen {
    config: Config,
    host: HostState,
}

impl Seen {
    fn read(parts: &Parts, document: &config::Document) -> Result<Self, Problem> {
        let (_, host) = parts.read()?;
        let (config, problems) = config::load_all(document);
        let config = config.ok_or_else(|| {
            Problem::refused("The file has errors: put them right first", super::told::diagnostics(problems))
        })?;
        Ok(Self { config, host })
    }

    fn function(&self, address: &str) -> Result<&Function, Problem> {
        let malformed = || Problem::malformed(format!("`{address}` is no PCI address, such as 0000:41:00.0"));
        let address: PciAddress = address.parse().map_err(|_| malformed())?;
        let function = self.host.inventory.functions.get(&address);
        function.ok_or_else(|| Problem::not_found(format!("There is no PCI function {address}")))
    }

    /// By its name in the text, or by a new one.
    fn named(&self, function: &Function) -> Named {
        let mut names = self.config.devices.keys();
        let is_it = |name: &&String| {
            plan::find(&self.config, &self.host, name).is_ok_and(|found| found == function.address)
        };
        if let Some(name) = names.find(is_it) {
            return Named { name: name.clone(), matches: Vec::new(), whole_group: false };
        }
        Named {
            name: new_name(&self.config, function),
            matches: matches(function),
            whole_group: shares(&self.host, function),
        }
    }

    /// Of a VF of a network card: its PF, its index, and how many there are. As a card of a guest's it keeps its MAC address.
    fn card(&self, function: &Function) -> Option<(&Function, u16, u16)> {
        let pf = self.host.inventory.functions.get(&function.physical_function?)?;
        (pf.class >> 16 == NETWORK).then_some(())?;
        Some((pf, function.vf_index?, pf.sriov.as_ref()?.num_vfs))
    }
}

/// Where it is plugged in and what it is: that stays when cards are added, and tells when another one is there.
fn matches(function: &Function) -> Vec<(&'static str, String)> {
    let id = format!("{:04x}:{:04x}", function.vendor, function.device);
    match &function.path {
        Some(path) => vec![("path", path.clone()), ("id", id)],
        None => vec![("address", function.address.to_string()), ("id", id)],
    }
}

/// Its link's name, or one made from its address; another one where that is taken.
fn new_name(config: &Config, function: &Function) -> String {
    let address = function.address.to_string();
    let address = address.strip_prefix("0000:").unwrap_or(&address);
    let plain = format!("pci-{}", address.replace([':', '.'], "-"));
    let wanted = function.interfaces.first().cloned().unwrap_or(plain);
    let free = |name: &String| !config.devices.contains_key(name);
    let numbered = (2..1000).map(|number| format!("{wanted}-{number}"));
    std::iter::once(wanted.clone()).chain(numbered).find(free).unwrap_or(wanted)
}

/// Whether other functions of its group go along.
fn shares(host: &HostState, function: &Function) -> bool {
    let Some(group) = function.iommu_group else { return false };
    let others = host.inventory.functions.values();
    let mut others =
        others.filter(|other| other.iommu_group == Some(group) && other.address != function.address);
    others.any(|other| !other.is_bridge())
}
