//! A program that asks over HTTP: one connection a request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Far longer than an answer takes on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where he asks.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Plain HTTP on loopback.
    Address(SocketAddr),
    /// The local socket.
    Socket(PathBuf),
}

/// Somebody who asks, with headers of his own.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) way: Way,
    pub(crate) headers: Vec<(String, String)>,
}

/// What he was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Client {
    pub(crate) fn new(way: Way) -> Self {
        Self { way, headers: Vec::new() }
    }

    /// The same with another header.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        other.headers.push((name.to_owned(), value.to_owned()));
        other
    }

    /// The same, logged in by an answer.
    pub(crate) fn keeping(&self, answer: &Answer) -> Self {
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        self.with("cookie", &cookie).with("x-csrf-token", answer.json()["csrf"].as_str().unwrap())
    }

    /// Asks; none where nobody answers.
    pub(crate) fn try_ask(&self, method: &str, path: &str, kind: &str, body: &str) -> Option<Answer> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text += "Host: localhost\r\n";
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !kind.is_empty() {
            text += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        }
        text += &format!("\r\n{body}");
        let mut said = Vec::new();
        match &self.way {
            Way::Address(address) => {
                let mut stream = TcpStream::connect(address).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(text.as_bytes()).ok()?;
                stream.read_to_end(&mut said).ok()?;
            }
            Way::Socket(path) => {
                let mut stream = UnixStream::connect(path).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(text.as_bytes()).ok()?;
                stream.read_to_end(&mut said).ok()?;
            }
        }
        let said = String::from_utf8(said).ok()?;
        let (head, body) = said.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.try_ask("GET", path, "", "").unwrap_or_else(|| panic!("nobody answers GET {path}"))
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let answer = self.try_ask(method, path, "application/json", &body.to_string());
        answer.unwrap_or_else(|| panic!("nobody answers {method} {path}"))
    }

    pub(crate) fn form(&self, path: &str, body: &str) -> Answer {
        let answer = self.try_ask("POST", path, "application/x-www-form-urlencoded", body);
        answer.unwrap_or_else(|| panic!("nobody answers POST {path}"))
    }
}
