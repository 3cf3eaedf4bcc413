//! HTTP by hand: one request a connection, by the socket of the host, where one is root.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::appliance::{Appliance, Daemon};
use crate::machine::{PATIENCE, wait_until};

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads one to the end of the connection.
    pub(crate) fn read(mut from: impl Read) -> Self {
        let mut bytes = Vec::new();
        // One that was refused early may be cut off behind its answer.
        let _ = from.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Of a problem: its status and what it says.
    pub(crate) fn problem(&self) -> (u16, String) {
        assert!(self.head.contains("application/problem+json"), "{}\n{}", self.head, self.text());
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        (self.status, problem["detail"].as_str().unwrap().to_owned())
    }

    /// It was done.
    pub(crate) fn good(self) -> Self {
        assert!((200..300).contains(&self.status), "{}\n{}", self.head, self.text());
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| -> bool {
            line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        self.head.lines().find(|line| of(line)).and_then(|line| Some(line.split_once(':')?.1.trim()))
    }
}

/// A box whose admin interface is served.
pub(crate) struct Served {
    pub(crate) appliance: Appliance,
    pub(crate) daemon: Daemon,
}

impl Served {
    /// In a network namespace of its own, with the socket of the host alone.
    pub(crate) fn new(text: &str) -> Self {
        let appliance = Appliance::new(&format!("{text}management: {{listen: []}}\n"));
        let daemon = appliance.daemon_alone(&["--web"]);
        Self::wait(appliance, daemon)
    }

    /// Served by HTTPS, too, at a port that was free.
    pub(crate) fn by_https(text: &str) -> (Self, u16) {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!("management: {{listen: [\"https://127.0.0.1:{port}\"]}}\n");
        let appliance = Appliance::new(&format!("{text}{listen}"));
        let daemon = appliance.daemon(&["--web"]);
        (Self::wait(appliance, daemon), port)
    }

    /// Until it answers, and has its file.
    pub(crate) fn wait(appliance: Appliance, daemon: Daemon) -> Self {
        let served = Self { appliance, daemon };
        wait_until("it answers", || {
            let Ok(stream) = UnixStream::connect(served.socket()) else { return false };
            drop(stream);
            let changes = served.get("/api/v1/changes");
            changes.status == 200 && changes.json().as_array().is_some_and(|all| !all.is_empty())
        });
        wait_until("its first change is done", || {
            served.get("/api/v1/overview").good().json()["change"].is_null()
        });
        served
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.appliance.path("run").join("api.sock")
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Any request, with these lines of its head.
    pub(crate) fn ask(&self, method: &str, path: &str, lines: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // What is refused is not read to its end.
        let _ = stream.write_all(body);
        Answer::read(stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str) -> Answer {
        self.ask("POST", path, &[], b"")
    }

    pub(crate) fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &["Content-Type: application/json"], body.to_string().as_bytes())
    }

    pub(crate) fn post_yaml(&self, path: &str, text: &str) -> Answer {
        self.ask("POST", path, &["Content-Type: application/yaml"], text.as_bytes())
    }

    /// The file's tag.
    pub(crate) fn tag(&self) -> String {
        let config = self.get("/api/v1/config").good();
        let tag = config.json()["tag"].as_str().unwrap().to_owned();
        assert_eq!(config.header("etag"), Some(&*format!("\"{tag}\"")));
        tag
    }

    pub(crate) fn save(&self, text: &str, tag: &str) -> Answer {
        let tag = format!("If-Match: \"{tag}\"");
        self.ask("PUT", "/api/v1/config", &["Content-Type: application/yaml", &tag], text.as_bytes())
    }

    pub(crate) fn apply(&self) -> Answer {
        self.post_json("/api/v1/changes", &serde_json::json!({"tag": self.tag()}))
    }

    /// What became of a change.
    pub(crate) fn change(&self, id: u64) -> Value {
        self.get(&format!("/api/v1/changes/{id}")).good().json()
    }

    pub(crate) fn wait_for_change(&self, id: u64, state: &str) {
        wait_until(&format!("change {id} is {state}"), || self.change(id)["state"] == state);
    }

    pub(crate) fn state_of(&self, guest: &str) -> String {
        let guest = self.get(&format!("/api/v1/guests/{guest}")).good().json();
        guest["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn wait_for_state(&self, guest: &str, state: &str) {
        wait_until(&format!("guest {guest} is {state}"), || self.state_of(guest) == state);
    }

    /// What the audit log says, newest first: what, more of it, and why not.
    pub(crate) fn audit(&self) -> Vec<(String, String, Option<String>)> {
        let entries = self.get("/api/v1/audit").good().json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let one = |entry: &Value| {
            (text(&entry["what"]), text(&entry["detail"]), entry["refused"].as_str().map(str::to_owned))
        };
        entries.as_array().unwrap().iter().map(one).collect()
    }

    /// The process that serves.
    pub(crate) fn web(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.daemon_pid());
        let children = std::fs::read_to_string(children).unwrap();
        let is_web = |pid: &&str| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"web")
        };
        children.split_whitespace().find(is_web).expect("it has a child that serves").parse().unwrap()
    }

    /// The daemon itself, not who has put it into a namespace (who is it by then).
    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.pid()
    }
}

/// Waits a moment where only the absence of something can be seen.
pub(crate) fn a_while() {
    std::thread::sleep(Duration::from_secs(3));
}
