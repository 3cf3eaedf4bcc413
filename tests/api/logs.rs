//! Logs, as they go on.

use std::io::Write;

use serde_json::Value;

use crate::appliance::{file, guest};
use crate::client::Served;
use crate::machine::{Heard, available, wait_until};

/// Listens to a log, from a place on where one is given.
fn follow(served: &Served, path: &str, place: Option<&str>) -> Heard {
    let mut stream = served.connect();
    let place = place.map(|place| format!("Last-Event-ID: {place}\r\n")).unwrap_or_default();
    let head = format!("GET /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\n{place}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let heard = Heard::listen(stream);
    assert!(heard.wait_for("text/event-stream", 0).is_some(), "{}", heard.text());
    heard
}

/// All lines that came, the place of the last event, and whether something was missed.
fn lines(heard: &Heard) -> (Vec<String>, String, bool) {
    let text = heard.text();
    let (mut lines, mut place, mut missed) = (Vec::new(), String::new(), false);
    for event in text.split("\n\n").filter(|event| event.contains("event: lines")) {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        // One that is still on its way is not looked at.
        let Some(news) = field("data").and_then(|data| serde_json::from_str::<Value>(data).ok()) else {
            continue;
        };
        let more = news["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned());
        lines.extend(more);
        missed |= news["missed"] == true;
        assert_eq!(field("id"), news["place"].as_str(), "{event}");
        place = news["place"].as_str().unwrap().to_owned();
    }
    (lines, place, missed)
}

#[test]
fn lines_of_the_daemon_come_as_they_are_written_and_none_twice() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "")]));
    let has = |heard: &Heard, word: &str| lines(heard).0.iter().any(|line| line.contains(word));
    let before = served.get("/api/v1/log?lines=50").good().json();
    let first = follow(&served, "log/events?lines=50", None);
    let told = || lines(&first).0.into_iter().map(Value::from).collect::<Vec<_>>();
    wait_until("what was written before is told", || told().starts_with(before["lines"].as_array().unwrap()));
    assert!(!has(&first, "Guest `a` runs"));
    assert_eq!(served.post("/api/v1/guests/a/start").status, 204);
    wait_until("the guest's start is told", || has(&first, "Guest `a` runs"));
    let (told, place, missed) = lines(&first);
    assert!(!missed && !place.is_empty());

    // Somebody who has lost his connection goes on where he was.
    assert_eq!(served.post("/api/v1/guests/a/kill").status, 204);
    let second = follow(&served, "log/events?lines=50", Some(&place));
    wait_until("its end is told", || has(&second, "Guest `a` has ended"));
    let (more, _, missed) = lines(&second);
    assert!(!missed && more.iter().all(|line| !told.contains(line)), "{told:?}\n{more:?}");
    // Of what is no place of this log, it is said that something is missing.
    let third = follow(&served, "log/events?lines=50", Some("1-1"));
    wait_until("it is said", || lines(&third).2);

    let long = format!("Last-Event-ID: {}", "1".repeat(65));
    assert_eq!(served.ask("GET", "/api/v1/log/events", &[&long], b"").problem().0, 400);
    assert_eq!(served.get("/api/v1/log/events?lines=0").problem().0, 400);
    assert_eq!(served.get("/api/v1/guests/b/log/events").problem().0, 404);
}

#[test]
fn lines_of_a_guests_console_come_as_it_says_them() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "autostart: true")]));
    served.wait_for_state("a", "running");
    let path = served.appliance.path("logs").join("a.console.log");
    let written = || std::fs::read_to_string(&path).unwrap_or_default();
    let heard = follow(&served, "guests/a/log/events?console=true", None);
    wait_until("it has said something", || written().contains('\n'));
    wait_until("and that is told", || !lines(&heard).0.is_empty());
    // After its reset it says it again, which comes by the same connection.
    let before = lines(&heard).0.len();
    assert_eq!(served.post("/api/v1/guests/a/reset").status, 204);
    wait_until("what it says then is told", || lines(&heard).0.len() > before);
    wait_until("all of it is", || {
        let whole: Vec<String> = written().lines().map(str::to_owned).collect();
        let (told, _, missed) = lines(&heard);
        !missed && whole.starts_with(&told) && whole.len() <= told.len() + 1
    });
}

#[test]
fn so_many_may_follow_a_log_and_no_more() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let mut followers: Vec<Heard> = (0..32).map(|_| follow(&served, "log/events", None)).collect();
    let (status, detail) = served.get("/api/v1/log/events").problem();
    assert_eq!(status, 503, "{detail}");
    assert_eq!(served.get("/api/v1/overview").good().json()["guests"], serde_json::json!([]));
    followers.clear();
}
