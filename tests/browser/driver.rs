//! A browser by the WebDriver protocol (W3C, WebDriver 2): no more of it than a visit needs.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long something on a page may take to come: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
/// The key of an element in an answer, as the standard has it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts one, which takes whoever's certificate, as a person would who has compared its fingerprint.
    pub(crate) fn start(port: u16) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver");
        driver
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut driver = driver.spawn().unwrap();
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("started successfully") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "chromedriver ended before it had started");
        }
        // What else it says is read, so that it never waits for that.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--lang=en-GB",
            "--window-size=1280,900",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={}", browser._profile.path().display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true, "goog:chromeOptions": {"args": arguments}}}});
        let made = browser.ask("POST", "/session", &wanted);
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        browser
    }

    /// One request; its answer's value, or what went wrong.
    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut text = vec![0; length];
        answer.read_exact(&mut text).unwrap();
        let answer: Value = serde_json::from_slice(&text).unwrap();
        let value = answer["value"].clone();
        match value.get("error") {
            Some(error) => Err(format!("{error}: {}", value["message"])),
            None => Ok(value),
        }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn of_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("{}{path}", self.session), body)
    }

    pub(crate) fn go(&self, url: &str) {
        self.of_session("POST", "/url", &json!({"url": url}));
    }

    pub(crate) fn reload(&self) {
        self.of_session("POST", "/refresh", &json!({}));
    }

    /// What is to be read on the page.
    pub(crate) fn text(&self) -> String {
        let script = json!({"script": "return document.body.innerText", "args": []});
        let text = self.try_ask("POST", &format!("{}/execute/sync", self.session), &script);
        text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until this is to be read.
    pub(crate) fn wait_for(&self, text: &str) {
        self.until(&format!("{text:?} is to be read"), || self.text().contains(text));
    }

    /// Waits until this holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: never. {}", self.text());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The element that a CSS selector fits, once it is there.
    fn find(&self, selector: &str) -> String {
        let mut found = None;
        let wanted = json!({"using": "css selector", "value": selector});
        self.until(&format!("{selector} is there"), || {
            let answer = self.try_ask("POST", &format!("{}/element", self.session), &wanted);
            found = answer.ok().and_then(|answer| answer[ELEMENT].as_str().map(str::to_owned));
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn is_there(&self, selector: &str) -> bool {
        let wanted = json!({"using": "css selector", "value": selector});
        self.try_ask("POST", &format!("{}/element", self.session), &wanted).is_ok()
    }

    pub(crate) fn until_there(&self, selector: &str) {
        self.find(selector);
    }

    pub(crate) fn until_gone(&self, selector: &str) {
        self.until(&format!("{selector} is gone"), || !self.is_there(selector));
    }

    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.of_session("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Types letter by letter, as a keyboard does.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.of_session("POST", &format!("/element/{element}/value"), &json!({"text": text}));
    }

    /// Says something else in a field.
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.of_session("POST", &format!("/element/{element}/clear"), &json!({}));
        self.type_into(selector, text);
    }

    /// Puts a text into a field at once, as pasting does.
    pub(crate) fn put(&self, selector: &str, text: &str) {
        self.find(selector);
        let script = "const field = document.querySelector(arguments[0]); field.value = arguments[1]; \
                      field.dispatchEvent(new Event('input', {bubbles: true}));";
        self.of_session("POST", "/execute/sync", &json!({"script": script, "args": [selector, text]}));
    }

    /// What is to be read of the element.
    pub(crate) fn text_of(&self, selector: &str) -> String {
        let element = self.find(selector);
        let text = self.of_session("GET", &format!("/element/{element}/text"), &json!({}));
        text.as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn value(&self, selector: &str) -> String {
        let element = self.find(selector);
        let value = self.of_session("GET", &format!("/element/{element}/property/value"), &json!({}));
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Keeps a picture of the window.
    pub(crate) fn picture(&self, folder: &Path, name: &str) {
        let picture = self.of_session("GET", "/screenshot", &json!({}));
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), base64(picture.as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser {
    /// The browser ends with its session, and the driver when it is told to.
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.try_ask("DELETE", &self.session, &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The bytes of a text in base 64 (RFC 4648).
fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    let group = |four: &[u8]| {
        let bits = four.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}
