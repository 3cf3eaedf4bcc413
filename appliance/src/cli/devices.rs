//! `throughway devices`.

use std::path::Path;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use vfio::Sysfs;
use vfio::in_use::{Usage, Use};
use vfio::inventory::{Function, Inventory, Names};

use super::Exit;
use super::check::print;

#[derive(Args)]
pub(super) struct Arguments {
    /// All that is known of each function, as JSON.
    #[arg(long)]
    json: bool,
    /// Bridges too; they are left out otherwise.
    #[arg(long)]
    all: bool,
}

/// One function as `--json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry<'a> {
    name: String,
    kind: Option<&'static str>,
    #[serde(flatten)]
    function: &'a Function,
    uses: Vec<Use>,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    let sysfs = Sysfs::default();
    let inventory = Inventory::scan(&sysfs);
    let (usage, names) = (Usage::read(&sysfs, Path::new("/proc")), Names::load());
    let wanted = inventory.functions.values().filter(|function| arguments.all || !function.is_bridge());
    let entries = wanted.map(|function| Entry {
        name: names.describe(function),
        kind: names.class(function.class),
        function,
        uses: usage.of(function),
    });
    if arguments.json {
        let entries: Vec<_> = entries.collect();
        print(&serde_json::to_string_pretty(&entries).unwrap_or_default());
        return Exit::Success;
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["ADDRESS", "DEVICE", "DRIVER", "GROUP", "RESET", "VFS", "USED BY THE HOST"]);
    let mut rows = 0;
    for entry in entries {
        table.add_row(row(&entry));
        rows += 1;
    }
    if rows == 0 {
        print("This host has no PCI functions to give away.");
    } else {
        print(&table.trim_fmt());
    }
    if !inventory.iommu.is_on() {
        print(
            "\nNo IOMMU is in use: nothing can be given to a guest. Switch VT-d or AMD-Vi on in the firmware, and on Intel \
             boot with intel_iommu=on.",
        );
    }
    Exit::Success
}

fn row(entry: &Entry<'_>) -> [String; 7] {
    let function = entry.function;
    let dash = || "-".to_owned();
    let vfs = match (&function.sriov, function.physical_function, function.vf_index) {
        (Some(sriov), _, _) => format!("{} of {}", sriov.num_vfs, sriov.total_vfs),
        (None, Some(pf), Some(index)) => format!("VF {index} of {pf}"),
        _ => dash(),
    };
    let uses: Vec<String> = entry.uses.iter().map(ToString::to_string).collect();
    [
        function.address.to_string(),
        entry.name.clone(),
        function.driver.clone().unwrap_or_else(dash),
        function.iommu_group.map_or_else(dash, |group| group.to_string()),
        if function.reset_methods.is_empty() { dash() } else { function.reset_methods.join(" ") },
        vfs,
        if uses.is_empty() { dash() } else { uses.join("; ") },
    ]
}
