//! Plans of whole files, on recorded shapes of real machines: `current.yaml` and `desired.yaml` come to `plan.txt`. And what is
//! explained of functions in recorded trees of sysfs: `trees/NAME.tree` comes to `trees/NAME.txt`.
//!
//! `GOLDEN=overwrite` takes what comes out now for right; look at the difference before it is kept.

mod large;
mod trees;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};
use throughway::apply::Undo;
use throughway::config::{Document, load_all, together};
use throughway::host::HostState;
use throughway::plan::{Step, whole};
use vfio::inventory::Inventory;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// The machine with 500 functions.
static LARGE: LazyLock<Value> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    serde_json::to_value(large::host(root.path(), large::VFS)).unwrap()
});

/// `over` wins; maps are merged key by key.
fn merged(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match base.remove(&key) {
                    Some(old) => merged(old, value),
                    None => value,
                };
                base.insert(key, merged);
            }
            Value::Object(base)
        }
        (_, over) => over,
    }
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // As JSON: YAML's own way of writing enums is by tags.
    let value: serde_yaml::Value =
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::to_value(value).unwrap()
}

/// The host of a case, and how things were before Throughway first changed them.
fn host(case: &Path) -> (HostState, Vec<Undo>) {
    let mut current = read(&case.join("current.yaml"));
    let map = current.as_object_mut().unwrap();
    let originals = map.remove("originals").map(|list| Vec::deserialize(list).unwrap()).unwrap_or_default();
    let base = match map.remove("base") {
        Some(name) if name == "large" => LARGE.clone(),
        Some(name) => read(&Path::new(ROOT).join("hosts").join(format!("{}.yaml", name.as_str().unwrap()))),
        None => Value::Object(Map::new()),
    };
    let mut host = HostState::deserialize(merged(base, current))
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    for (address, function) in &mut host.inventory.functions {
        function.address = *address;
    }
    // Groups are what their members say.
    let Inventory { functions, iommu, .. } = host.inventory;
    host.inventory = Inventory::of(functions, iommu);
    (host, originals)
}

/// What a file comes to on a host, as a person reads it.
fn outcome(case: &Path) -> String {
    let (host, originals) = host(case);
    let text = fs::read_to_string(case.join("desired.yaml")).unwrap();
    let document = Document { name: "desired.yaml".into(), text };
    let (config, problems) = load_all(&document);
    let planned = config.map(|config| whole(&config, &host, &originals));
    let refusals = match planned {
        Some(Ok(plan)) if problems.is_empty() => return format!("{plan}\n"),
        Some(Err(refusals)) => refusals,
        _ => Vec::new(),
    };
    let refused = refusals
        .into_iter()
        .map(|refusal| document.at_path(&refusal.path, refusal.message, refusal.help))
        .collect();
    together(problems, refused).iter().map(|problem| problem.render()).collect()
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(ROOT)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("desired.yaml").exists())
        .collect();
    cases.sort();
    cases
}

#[test]
fn every_case_comes_to_its_plan() {
    let mut wrong = BTreeMap::new();
    for case in cases() {
        if let Some(difference) = compared(&case.join("plan.txt"), &outcome(&case)) {
            wrong.insert(case, difference);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How what is kept in a file differs from what was found, once it was overwritten where that is asked for.
fn compared(path: &Path, found: &str) -> Option<String> {
    if std::env::var("GOLDEN").is_ok_and(|value| value == "overwrite") {
        fs::write(path, found).unwrap();
    }
    let kept = fs::read_to_string(path).unwrap_or_default();
    (kept != found).then(|| format!("kept:\n{kept}\nfound:\n{found}"))
}

#[test]
fn sixty_four_guests_get_256_vfs() {
    let root = tempfile::tempdir().unwrap();
    let host = large::host(root.path(), [32; 8]);
    let config =
        throughway::config::load(&Document { name: "box.yaml".into(), text: large::file() }).unwrap();
    let plan = whole(&config, &host, &[]).unwrap();
    let count =
        |what: &str| plan.steps.iter().filter(|planned| planned.step.to_string().contains(what)).count();
    assert_eq!(
        (count("driver -> vfio-pci"), count("max-tx-rate 0 -> 1000"), count("num-vfs")),
        (256, 256, 0)
    );
    // Of the file's guests, none shares a VF with another.
    let lent: std::collections::BTreeSet<String> = plan
        .steps
        .iter()
        .filter(|planned| matches!(planned.step, Step::Lend(_)))
        .map(|planned| planned.step.to_string())
        .collect();
    assert_eq!(lent.len(), 256);
}

#[test]
fn there_are_enough_of_them() {
    assert!(cases().len() >= 60, "{}", cases().len());
    // Each shape of machine has some.
    for host in ["bare", "dual", "gpu", "igb", "large", "seven", "six", "switch"] {
        let of_it = cases()
            .iter()
            .filter(|case| case.file_name().unwrap().to_str().unwrap().starts_with(host))
            .count();
        assert!(of_it >= 3, "{host}: {of_it}");
    }
}
