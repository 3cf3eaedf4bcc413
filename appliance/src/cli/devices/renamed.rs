//! Names of the file re-pointed and forgotten, on hosts whose cards were moved, exchanged and taken out.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vfio::bind::DriverState;

use super::{adopt, forget};
use crate::apply::{Claim, Holder, Seen, Sighting, Undo};
use crate::config::{Config, Document, load};
use crate::host::HostState;

const FILE: &str = r#"version: 1
# What is in the box.
devices:
  # The big one.
  gpu: {match: {path: "00:01.0/00.0", id: '10de:2204', serial: 00-11-22-33-44-55-66-77}}   # on loan

  lan:
    match:
      address: 0000:02:00.0   # moves when cards are added
      permanent-mac: "52:54:00:00:00:01"
    on-mismatch: refuse

  # Unused.
  spare: {match: {address: "0000:05:00.0"}}
sriov: {lan: {num-vfs: 2}}
"#;

fn document() -> Document {
    Document { name: "box.yaml".into(), text: FILE.into() }
}

fn config() -> Config {
    load(&document()).unwrap()
}

/// A graphics card at `gpu`, with its serial number, and a network card at `lan`.
fn host(gpu: &str, serial: &str, lan: &str) -> HostState {
    let bus = |address: &str| address[5..7].to_owned();
    let mut functions = json!({});
    functions[gpu] = json!({"path": format!("00:{}.0/00.0", bus(gpu)), "vendor": 0x10de, "device": 0x2204, "class": 0x030000});
    functions[lan] = json!({"path": format!("00:{}.0/00.0", bus(lan)), "vendor": 0x8086, "device": 0x10c9, "class": 0x020000,
        "interfaces": ["eth1"], "sriov": {"total-vfs": 7, "num-vfs": 0, "vfs": []}});
    let mut serials = json!({});
    serials[gpu] = json!([serial]);
    let state: Value = json!({
        "inventory": {"functions": functions}, "serials": serials, "permanent-macs": {"eth1": "52:54:00:00:00:01"}});
    let mut host: HostState = serde_json::from_value(state).unwrap();
    for (address, function) in &mut host.inventory.functions {
        function.address = *address;
    }
    host
}

fn adopted(host: &HostState, name: &str, to: Option<&str>) -> Result<(String, Option<String>), String> {
    let to = to.map(|to| to.parse().unwrap());
    adopt::propose(&document(), &config(), host, name, to).map(|adoption| (adoption.shown, adoption.text))
}

/// Lines that differ, old and new.
fn changed(text: &str) -> Vec<(&str, &str)> {
    assert_eq!(FILE.lines().count(), text.lines().count());
    FILE.lines().zip(text.lines()).filter(|(old, new)| old != new).collect()
}

const SERIAL: &str = "00-11-22-33-44-55-66-77";

#[test]
fn a_card_in_another_slot_is_known_by_its_serial_number() {
    let (shown, text) = adopted(&host("0000:07:00.0", SERIAL, "0000:02:00.0"), "gpu", None).unwrap();
    assert!(shown.contains("path          00:01.0/00.0             00:07.0/00.0  <- differs"), "{shown}");
    assert!(shown.contains("id            10de:2204                10de:2204\n"), "{shown}");
    assert_eq!(
        changed(&text.unwrap()),
        [(
            r#"  gpu: {match: {path: "00:01.0/00.0", id: '10de:2204', serial: 00-11-22-33-44-55-66-77}}   # on loan"#,
            r#"  gpu: {match: {path: "00:07.0/00.0", id: '10de:2204', serial: 00-11-22-33-44-55-66-77}}   # on loan"#
        )]
    );
}

#[test]
fn another_card_in_the_same_slot_is_taken_for_it() {
    let (shown, text) = adopted(&host("0000:01:00.0", "ff-00", "0000:02:00.0"), "gpu", None).unwrap();
    assert!(shown.contains("serial        00-11-22-33-44-55-66-77  ff-00  <- differs"), "{shown}");
    let text = text.unwrap();
    let (_, new) = changed(&text)[0];
    assert_eq!(
        new,
        r#"  gpu: {match: {path: "00:01.0/00.0", id: '10de:2204', serial: "ff-00"}}   # on loan"#
    );
}

#[test]
fn an_address_moves_with_its_card() {
    let (_, text) = adopted(&host("0000:01:00.0", SERIAL, "0000:03:00.0"), "lan", None).unwrap();
    assert_eq!(
        changed(&text.unwrap()),
        [(
            "      address: 0000:02:00.0   # moves when cards are added",
            "      address: \"0000:03:00.0\"   # moves when cards are added"
        )]
    );
}

#[test]
fn what_is_there_needs_no_adopting_and_what_is_unlike_must_be_named() {
    let there = host("0000:01:00.0", SERIAL, "0000:02:00.0");
    let (shown, text) = adopted(&there, "gpu", None).unwrap();
    assert!(shown.ends_with("Nothing is to be done: the name means this device.") && text.is_none());
    let error = adopted(&there, "spare", None).unwrap_err();
    assert!(error.starts_with("Nothing on this host is like `spare`; say which it is with --to"), "{error}");
    let (_, text) = adopted(&there, "spare", Some("0000:02:00.0")).unwrap();
    assert_eq!(changed(&text.unwrap())[0].1, "  spare: {match: {address: \"0000:02:00.0\"}}");
    let error = adopted(&there, "lan", Some("0000:01:00.0")).unwrap_err();
    assert!(error.contains("by its permanent-mac, and this device has none"), "{error}");
    assert!(adopted(&there, "lam", None).unwrap_err().contains("no device `lam`; it has gpu, lan, spare"));
    assert!(adopted(&there, "lan", Some("0000:0f:00.0")).unwrap_err().contains("no such PCI function"));
}

fn seen(name: &str, address: &str) -> Seen {
    let sighting = Sighting {
        address: address.parse().unwrap(),
        vfs: BTreeSet::from(["0000:02:10.0".parse().unwrap()]),
        ..Sighting::default()
    };
    Seen([(name.to_owned(), sighting)].into())
}

fn driver(address: &str) -> Undo {
    let before = DriverState { driver: Some("nouveau".into()), driver_override: None };
    Undo::Driver { address: address.parse().unwrap(), pf: None, before }
}

#[test]
fn what_is_gone_is_forgotten_with_all_that_was_noted_of_it() {
    let host = host("0000:01:00.0", SERIAL, "0000:02:00.0");
    let holder = Holder { vm: "a".into(), pid: 1, started: 0, boot: String::new(), machine: None };
    let claim =
        Claim { holder, undo: vec![driver("0000:05:00.0"), driver("0000:02:10.0"), driver("0000:01:00.0")] };
    let originals = [driver("0000:05:00.0"), driver("0000:01:00.0")];
    let proposal = forget::propose(
        &document(),
        &config(),
        &host,
        &seen("spare", "0000:05:00.0"),
        &[claim],
        &originals,
        "spare",
    )
    .unwrap();
    assert_eq!(proposal.claims[0].undo, [driver("0000:01:00.0")]);
    assert_eq!(proposal.released, ["driver of 0000:05:00.0"]);
    let text = proposal.text.unwrap();
    assert_eq!(text, FILE.replace("  spare: {match: {address: \"0000:05:00.0\"}}\n", ""));
    assert!(
        proposal.shown.starts_with("`spare` was 0000:05:00.0, and is there no more."),
        "{}",
        proposal.shown
    );
}

#[test]
fn what_is_there_or_in_use_is_not_forgotten_and_what_is_referred_to_stays_in_the_file() {
    let forget = |host: &HostState, seen: &Seen, name: &str| {
        forget::propose(&document(), &config(), host, seen, &[], &[], name)
    };
    let mut host = host("0000:01:00.0", SERIAL, "0000:02:00.0");
    let none = Seen::default();
    assert!(forget(&host, &none, "gpu").unwrap_err().contains("is there: 0000:01:00.0"));
    assert!(forget(&host, &none, "other").unwrap_err().contains("none of that name was ever seen"));
    assert!(forget(&host, &seen("other", "0000:09:00.0"), "other").unwrap().text.is_none());

    host.permanent_macs.clear();
    let proposal = forget(&host, &none, "lan").unwrap();
    assert!(
        proposal.text.is_none() && proposal.shown.ends_with("stays: sriov.lan uses it."),
        "{}",
        proposal.shown
    );

    let holder = Holder { vm: "b".into(), pid: 7, started: 0, boot: String::new(), machine: None };
    host.held.insert("0000:05:00.0".parse().unwrap(), holder);
    let error = forget(&host, &none, "spare").unwrap_err();
    assert_eq!(
        error,
        "0000:05:00.0, which `spare` was, is in use by guest `b` (process 7): stop that guest first"
    );
}
