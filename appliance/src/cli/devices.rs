//! `throughway devices`.

mod adopt;
mod forget;
#[cfg(test)]
mod renamed;
mod table;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Args, Subcommand};
use serde::Serialize;
use vfio::Sysfs;
use vfio::in_use::{Usage, Use};
use vfio::inventory::{Function, Inventory, Modules, Names, serials};

pub(super) use table::arranged;

use super::Exit;
use super::check::print;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// All that is known of each function, as JSON.
    #[arg(long)]
    json: bool,
    /// By where they are plugged in: below their bridges and root ports, VFs below their PFs.
    #[arg(long, conflicts_with = "json")]
    tree: bool,
    /// Bridges too, and root ports with nothing below them; they are left out otherwise.
    #[arg(long)]
    all: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Re-point a name of the file to the device that is there now, once both are shown.
    Adopt(adopt::Arguments),
    /// Forget a device that is there no more: what is noted of it, and its name in the file where nothing refers to it.
    Forget(forget::Arguments),
}

/// One function, with what is not in its config space.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry<'a> {
    name: String,
    kind: Option<&'static str>,
    #[serde(flatten)]
    function: &'a Function,
    uses: Vec<Use>,
    /// As `match.serial` has them; read where all is asked for.
    serials: BTreeSet<String>,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    match &arguments.action {
        Some(Action::Adopt(arguments)) => return adopt::main(arguments),
        Some(Action::Forget(arguments)) => return forget::main(arguments),
        None => {}
    }
    let sysfs = Sysfs::default();
    let mut inventory = Inventory::scan(&sysfs);
    let modules = if arguments.json { Modules::load() } else { Modules::default() };
    inventory.look_closely(&sysfs, &modules, None);
    let (usage, names) = (Usage::read(&sysfs, Path::new("/proc")), Names::load());
    // A tree hangs on its bridges.
    let bridges = arguments.all || arguments.tree;
    let wanted = inventory.functions.values().filter(|function| bridges || !function.is_bridge());
    let entries: Vec<_> = wanted
        .map(|function| Entry {
            name: names.describe(function),
            kind: names.class(function.class),
            function,
            uses: usage.of(function),
            serials: match function.physical_function {
                None if arguments.json => serials(&sysfs, function.address),
                _ => BTreeSet::new(),
            },
        })
        .collect();
    if arguments.json {
        print(&serde_json::to_string_pretty(&entries).unwrap_or_default());
        return Exit::Success;
    }
    let text =
        if arguments.tree { tree::text(&entries, arguments.all, None) } else { table::text(&entries, None) };
    print(text.as_deref().unwrap_or("This host has no PCI functions to give away."));
    if !inventory.iommu.is_on() {
        print(
            "\nNo IOMMU is in use: nothing can be given to a guest. Switch VT-d or AMD-Vi on in the firmware, and on Intel \
             boot with intel_iommu=on.",
        );
    }
    Exit::Success
}

impl Entry<'_> {
    fn driver(&self) -> &str {
        self.function.driver.as_deref().unwrap_or("-")
    }

    fn group(&self) -> String {
        self.function.iommu_group.map_or_else(|| "-".to_owned(), |group| group.to_string())
    }

    /// `2 of 7 VFs`, of a function that offers some.
    fn vfs(&self) -> Option<String> {
        let able = self.function.sriov.as_ref()?;
        Some(format!("{} of {} VFs", able.num_vfs, able.total_vfs))
    }

    /// What it is to people: its name with what of the host is on it, `more`, its VFs, and what the host uses it for.
    fn words(&self, more: Option<String>) -> String {
        let below: Vec<&str> =
            self.function.interfaces.iter().chain(&self.function.block_devices).map(String::as_str).collect();
        let below = if below.is_empty() { String::new() } else { format!(" ({})", below.join(", ")) };
        let uses = self.uses.iter().map(|used| format!("in use: {used}"));
        let words = [format!("{}{below}", self.name)].into_iter().chain(more).chain(self.vfs()).chain(uses);
        words.collect::<Vec<_>>().join("; ")
    }
}
