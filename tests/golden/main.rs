//! Plans of whole files, on recorded shapes of real machines: `current.yaml` and `desired.yaml` come to `plan.txt`.
//!
//! `GOLDEN=overwrite` takes what comes out now for right; look at the difference before it is kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use throughway::apply::Undo;
use throughway::config::{Document, load_all, together};
use throughway::host::HostState;
use throughway::plan::whole;
use vfio::inventory::Inventory;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

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
    let overwrite = std::env::var("GOLDEN").is_ok_and(|value| value == "overwrite");
    let mut wrong = BTreeMap::new();
    for case in cases() {
        let (path, found) = (case.join("plan.txt"), outcome(&case));
        if overwrite {
            fs::write(&path, &found).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        if kept != found {
            wrong.insert(case, format!("kept:\n{kept}\nfound:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn there_are_enough_of_them() {
    assert!(cases().len() >= 40, "{}", cases().len());
}
