//! What can be read, who may not, and what there is not.

use serde_json::Value;

use crate::appliance::{file, guest};
use crate::client::Served;
use crate::machine::{available, wait_until};

#[test]
fn every_route_that_reads_answers() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "autostart: true")]));
    served.wait_for_state("a", "running");
    for path in [
        "overview",
        "devices",
        "networks",
        "drift",
        "doctor",
        "log",
        "log?lines=3",
        "audit",
        "audit?limit=1&before=5",
        "guests",
        "guests/a",
        "guests/a/stats",
        "guests/a/log",
        "guests/a/log?console=true&lines=5",
        "config",
        "config/schema",
        "changes",
        "changes/1",
        "images",
        "openapi.json",
    ] {
        let answer = served.get(&format!("/api/v1/{path}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let kind = answer.header("content-type").unwrap();
        assert!(kind.ends_with("json"), "{path}: {kind}");
        assert!(!answer.json().is_null(), "{path}");
    }
    let overview = served.get("/api/v1/overview").good().json();
    assert_eq!(overview["guests"][0]["name"], "a");
    assert_eq!(overview["drift"], serde_json::json!([]), "the host is as the file says");
    let stats = served.get("/api/v1/guests/a/stats").good().json();
    assert!(stats["resident"].as_u64().unwrap() > 1 << 20, "{stats}");
    let guest = served.get("/api/v1/guests/a").good().json();
    assert_eq!((&guest["vcpus"], &guest["memory"]), (&Value::from(1), &Value::from(16 << 20)));
    assert_eq!(served.get("/healthz").good().text(), "ok\n");
    let metrics = served.get("/metrics").good();
    assert!(metrics.text().contains("throughway_guest_up{guest=\"a\"} 1\n"), "{}", metrics.text());
    assert!(metrics.text().contains("throughway_guest_cpu_seconds_total{guest=\"a\"} "));
    // Reading is written down nowhere.
    assert_eq!(served.audit(), []);
}

#[test]
fn what_a_busy_guest_costs_is_told() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("busy", "spin", "autostart: true")]));
    served.wait_for_state("busy", "running");
    // Its machine's time, not that of its keeper, who sleeps.
    wait_until("it has used half a second of a processor", || {
        served.get("/api/v1/guests/busy/stats").good().json()["cpu-ms"].as_u64().unwrap() > 500
    });
}

#[test]
fn what_there_is_not_and_what_is_malformed_is_said_as_a_problem() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    for (method, path, status) in [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/guests/b", 404),
        ("GET", "/api/v1/guests/b/stats", 404),
        ("GET", "/api/v1/guests/%2e%2e%2fb/log", 404),
        ("POST", "/api/v1/guests/b/start", 404),
        ("POST", "/api/v1/guests/b/explode", 404),
        ("GET", "/api/v1/devices/0000:ff:1f.7", 404),
        ("GET", "/api/v1/changes/99", 404),
        ("GET", "/api/v1/changes/x", 404),
        ("POST", "/api/v1/changes/99/confirm", 404),
        ("POST", "/api/v1/overview", 405),
        ("DELETE", "/api/v1/config", 405),
        ("GET", "/api/v1/audit?limit=0", 400),
        ("GET", "/api/v1/audit?other=1", 400),
        ("GET", "/api/v1/log?lines=-1", 400),
        ("PUT", "/api/v1/config", 415),
        ("POST", "/api/v1/changes", 415),
        ("GET", "/api/v1/guests/b/console", 426),
        ("DELETE", "/api/v1/images/a%2fb", 404),
    ] {
        let answer = served.ask(method, path, &[], b"");
        let (found, detail) = answer.problem();
        assert_eq!(found, status, "{method} {path}: {detail}");
    }
    let malformed =
        served.ask("POST", "/api/v1/changes", &["Content-Type: application/json"], b"{\"tag\":1}");
    assert_eq!(malformed.problem().0, 400);
}

#[test]
fn the_description_names_every_route_that_there_is() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let described = served.get("/api/v1/openapi.json").good().json();
    let paths = described["paths"].as_object().unwrap();
    // Events go on for ever; `changes.rs` listens to them.
    for (path, methods) in paths.iter().filter(|(path, _)| !path.ends_with("/events")) {
        for method in methods.as_object().unwrap().keys() {
            let filled = path.replace("{verb}", "reset").replace("{address}", "0000:ff:1f.7");
            let filled = filled.replace("{id}", "99").replace("{name}", "nobody");
            let answer = served.ask(&method.to_uppercase(), &filled, &[], b"");
            let missing = "There is nothing at this address; ";
            assert!(
                answer.status != 405 && !answer.text().contains(missing),
                "{method} {path}: {}",
                answer.text()
            );
        }
    }
    let mut ids: Vec<&str> = paths
        .values()
        .flat_map(|methods| methods.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "two operations have one name");
}
