//! The box's own address by DHCP, as a whole file asks for it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use netconfig::blocking::with_network;
use netconfig::dhcp::DhcpTool;
use netconfig::{DhcpRange, LinkSettings, Nat, Nats};
use throughway::apply::{History, Host, Ledger, Outcome, Transaction, originals};
use throughway::config::{Document, load};
use throughway::host::HostState;
use throughway::plan::{HostPlan, whole};

use crate::namespace::{alone, ip};
use crate::nat::{bridge_with, has, kernel_has_nat, nat};
use crate::witness::realize;

/// busybox as the box's client, with what a distribution has as its script.
fn host(state: &Path) -> Host {
    let mut host = Host::at(state);
    let (client, script) = (state.join("udhcpc"), state.join("script"));
    let write = |path: &Path, text: &str| {
        std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    };
    if !client.exists() {
        write(&script, "[ \"$1\" != bound ] || ip address add \"$ip/$mask\" dev \"$interface\"");
        write(&client, &format!("exec busybox udhcpc -s {} \"$@\"", script.display()));
    }
    host.dhcp = host.dhcp.with_client(DhcpTool::Udhcpc, client);
    host
}

fn plan(text: &str, host: &Host, ledger: &Ledger, history: &History) -> anyhow::Result<HostPlan> {
    let config = load(&Document { name: "box.yaml".into(), text: text.into() }).unwrap();
    let now = HostState::read_all(host, ledger)?;
    whole(&config, &now, &originals(&history.records()?)).map_err(|refusals| anyhow::anyhow!("{refusals:?}"))
}

/// Applies a file; the steps that it came to.
fn apply(text: &str, state: &Path) -> Vec<String> {
    let (host, ledger, history) = (host(state), Ledger::at(state), History::at(state));
    let lock = ledger.lock().unwrap();
    let todo = plan(text, &host, &ledger, &history).unwrap();
    let steps: Vec<String> = todo.steps.iter().map(|planned| planned.step.to_string()).collect();
    let record = history.begin("a change".into(), Some(text.into()), steps.clone()).unwrap();
    let left = || plan(text, &host, &ledger, &history);
    let transaction =
        Transaction { history: &history, ledger: &ledger, host: &host, hear: &|_| {}, left: &left };
    assert_eq!(
        transaction.run(record, &todo, lock, Some(Duration::from_secs(1))).unwrap(),
        Outcome::Committed
    );
    steps
}

fn link(name: &str) -> LinkSettings {
    with_network(async |network| network.settings().await).unwrap().remove(name).unwrap()
}

#[test]
fn an_address_comes_with_the_key_and_goes_with_it() {
    alone("dhcp::an_address_comes_with_the_key_and_goes_with_it", || {
        if !kernel_has_nat() || !has("dnsmasq") {
            return;
        }
        let (server, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let nats = Nats::new(server.path());
        realize("nat0", Some(&bridge_with(&["10.77.0.1/24"], 0xa0)));
        let range = DhcpRange { first: "10.77.0.50".parse().unwrap(), last: "10.77.0.60".parse().unwrap() };
        nats.realize("nat0", Some(&Nat { dhcp: Some(range), ..nat(0) })).unwrap();
        ip("link add c0 type veth peer name c1");
        ip("link set c1 master nat0 up");

        let asks = "version: 1\nnetworks:\n  br9: {type: bridge, dhcp4: true, addresses: [10.5.0.1/24], ports: {c0: {}}}\n";
        let steps = apply(asks, state.path());
        assert_eq!(steps.last().unwrap(), "br9: dhcp4 off -> on");
        let start = Instant::now();
        while link("br9").addresses.len() < 2 {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", link("br9"));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(link("br9").addresses.iter().any(|own| own.to_string().starts_with("10.77.0.")));
        assert_eq!(apply(asks, state.path()), [""; 0], "what it gave is no difference");

        let without = "version: 1\nnetworks:\n  br9: {type: bridge, ports: {c0: {}}}\n";
        let steps = apply(without, state.path());
        assert_eq!(steps[0], "br9: dhcp4 -> off");
        assert!(link("br9").addresses.is_empty(), "{:?}", link("br9"));
        assert!(host(state.path()).dhcp.links().unwrap().is_empty());

        apply("version: 1\n", state.path());
        assert!(
            with_network(async |network| Ok(network.settings().await?.contains_key("br9")))
                .is_ok_and(|there| !there)
        );
        nats.realize("nat0", None).unwrap();
    });
}
