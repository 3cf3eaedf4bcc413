//! Changes of the host: planned, applied, confirmed or not, put back, told as they happen.

use std::io::{Read, Write};

use crate::appliance::file;
use crate::client::Served;
use crate::machine::{Heard, available};

fn text(mtu: u32, confirm: u32) -> String {
    format!(
        "version: 1\nmanagement: {{listen: [], interface: br0, confirm-timeout: {confirm}s}}\nnetworks:\n  br0: {{type: bridge, mtu: {mtu}}}\n"
    )
}

#[test]
fn a_change_of_the_way_in_is_confirmed_or_put_back() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let mut events = served.connect();
    events.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let events = Heard::listen(events);
    assert!(events.wait_for("text/event-stream", 0).is_some());

    let planned = served.post_yaml("/api/v1/config/plan", &text(1400, 60)).good().json();
    assert!(planned["steps"][0]["text"].as_str().unwrap().starts_with("br0: make bridge"), "{planned}");
    served.save(&text(1400, 60), &served.tag()).good();
    let begun = served.apply();
    assert_eq!(begun.status, 202, "{}", begun.text());
    let first = begun.json()["change"].as_u64().unwrap();
    // A bridge that is not there yet carries nobody, or it has to be confirmed: either is fine here.
    crate::machine::wait_until("it is done", || served.change(first)["state"] != "applying");
    if served.change(first)["state"] == "waiting" {
        assert_eq!(served.post(&format!("/api/v1/changes/{first}/confirm")).status, 204);
    }
    served.wait_for_change(first, "committed");
    assert_eq!(served.change(first)["by"], "uid 0");

    // Confirmed.
    served.save(&text(1300, 60), &served.tag()).good();
    let second = served.apply().good().json()["change"].as_u64().unwrap();
    served.wait_for_change(second, "waiting");
    assert!(served.change(second)["until"].as_u64().is_some());
    assert_eq!(served.get("/api/v1/overview").good().json()["change"]["id"], second);
    let (status, detail) = served.apply().problem();
    assert_eq!(status, 409, "{detail}");
    assert_eq!(served.post("/api/v1/changes/rollback").problem().0, 409);
    assert_eq!(served.post(&format!("/api/v1/changes/{second}/confirm")).status, 204);
    served.wait_for_change(second, "committed");
    assert_eq!(served.post(&format!("/api/v1/changes/{second}/confirm")).problem().0, 409);

    // Not confirmed.
    served.save(&text(1200, 2), &served.tag()).good();
    let third = served.apply().good().json()["change"].as_u64().unwrap();
    served.wait_for_change(third, "reverted");
    assert!(served.change(third)["why"].as_str().unwrap().contains("nobody confirmed"));
    assert_eq!(served.change(second)["holds"], true);

    // Put back.
    crate::machine::wait_until("it can be put back", || {
        let rollback = served.post("/api/v1/changes/rollback");
        assert!(matches!(rollback.status, 202 | 409), "{}", rollback.text());
        rollback.status == 202
    });

    for word in [
        "event: config",
        "event: change",
        "\"state\":\"waiting\"",
        "event: progress",
        "\"state\":\"reverted\"",
    ] {
        assert!(events.wait_for(word, 0).is_some(), "{word}: {}", events.text());
    }
    let audit = served.audit();
    let of = |wanted: &str| audit.iter().find(|(what, _, refused)| what == wanted && refused.is_none());
    assert!(of("apply the file").unwrap().1.contains("+  br0: {type: bridge, mtu: 1200}"), "{audit:?}");
    assert!(of("confirm a change").is_some() && of("put the last change back").is_some());
    assert!(audit.iter().any(|(what, _, refused)| what == "apply the file" && refused.is_some()));
}

#[test]
fn nothing_to_do_is_the_change_that_holds() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    assert_eq!(served.apply().good().json()["change"], 1);
}

#[test]
fn an_end_of_the_daemon_is_the_end_of_who_serves() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let (web, mut stream) = (served.web(), served.connect());
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    served.daemon.signal(rustix::process::Signal::KILL);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    crate::machine::wait_until("it is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{web}/stat")).unwrap_or_default();
        state.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
    });
}

/// Else a service manager would find it left over.
#[test]
fn who_serves_ends_before_the_daemon_where_that_is_told_to() {
    if !available() {
        return;
    }
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let served = Served::new(&file(&[]));
        let web = format!("/proc/{}", served.web());
        assert!(std::path::Path::new(&web).exists());
        let Served { appliance: _kept, daemon } = served;
        daemon.signal(signal);
        daemon.end();
        assert!(!std::path::Path::new(&web).exists(), "{signal:?}");
    }
}
