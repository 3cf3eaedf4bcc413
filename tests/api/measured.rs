//! What is measured, as Prometheus has it: its own tool finds nothing to complain of, and a server of it comes by HTTPS with the
//! token of a viewer.
//!
//! Needs Debian's `prometheus`: in the folder of `THROUGHWAY_PROMETHEUS`, which `cargo verify --only api` sets, or installed.
//! Without it each test says so and passes; with `REQUIRE=api` (or `all`) it fails.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::appliance::{file, guest};
use crate::client::{Answer, Served};
use crate::machine::{PATIENCE, available, wait_until};
use crate::network::{self, is_usable};

/// Where its programs are.
fn programs() -> Option<PathBuf> {
    let folder = std::env::var_os("THROUGHWAY_PROMETHEUS").map_or_else(|| "/usr/bin".into(), PathBuf::from);
    if ["prometheus", "promtool"].iter().all(|name| folder.join(name).exists()) {
        return Some(folder);
    }
    let required = std::env::var("REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|suite| matches!(suite.trim(), "api" | "all"));
    let why = format!("{} has no prometheus and promtool (Debian's package prometheus)", folder.display());
    assert!(!required, "the suite api is required, and {why}");
    eprintln!("skipped: {why}");
    None
}

#[test]
fn promtool_has_nothing_to_complain_of() {
    let Some(programs) = programs().filter(|_| available()) else { return };
    let served = Served::new(&file(&[guest("a", "obey", "autostart: true"), guest("b", "obey", "")]));
    served.wait_for_state("a", "running");
    let page = served.get("/metrics").good();
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(page.text().contains("throughway_guest_kvm_events_total{guest=\"a\""), "{}", page.text());
    let (status, said) = complaints(&programs, &page.text());
    assert!(status && said.is_empty(), "{said}\n{}", page.text());

    // It would say so otherwise.
    let (status, said) = complaints(&programs, "# TYPE wrong counter\nwrong 1\n");
    assert!(!status && said.contains("_total"), "{said}");
}

/// Whether promtool is content with a page, and what it says.
fn complaints(programs: &Path, page: &str) -> (bool, String) {
    let mut command = Command::new(programs.join("promtool"));
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = command.spawn().unwrap();
    tool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), said)
}

#[test]
fn a_prometheus_with_a_viewers_token_has_a_guests_series_and_one_without_has_none() {
    let Some(programs) = programs().filter(|_| available()) else { return };
    let (served, port) = Served::by_https(&file(&[guest("a", "obey", "autostart: true")]));
    served.wait_for_state("a", "running");
    is_usable(&served, port);
    let token = token(&served, port);
    let prometheus = Prometheus::start(&programs, &served, port, &token);

    prometheus.wait_for("throughway_guest_up{guest=\"a\",job=\"viewer\"}", "1");
    prometheus.wait_for("up{job=\"viewer\"}", "1");
    prometheus.wait_for("up{job=\"stranger\"}", "0");
    assert_eq!(prometheus.query("throughway_guest_up{job=\"stranger\"}"), json!([]));
    let processor = prometheus.query("throughway_guest_cpu_seconds_total{guest=\"a\"}");
    assert_eq!(processor[0]["metric"]["instance"], format!("127.0.0.1:{port}"), "{processor}");
    let version = prometheus.query("throughway_build_info");
    assert_eq!(version[0]["metric"]["version"], env!("CARGO_PKG_VERSION"), "{version}");

    // What becomes of the guest is seen, too.
    assert_eq!(served.post("/api/v1/guests/a/kill").status, 204);
    prometheus.wait_for("throughway_guest_up{guest=\"a\",job=\"viewer\"}", "0");
}

/// A viewer's token: root makes the viewer, who makes the token.
fn token(served: &Served, port: u16) -> String {
    let password = "a long password";
    let viewer = json!({"name": "watcher", "role": "viewer", "assign-devices": false, "password": password});
    assert_eq!(served.post_json("/api/v1/users", &viewer).status, 201);
    let login = json!({"name": "watcher", "password": password});
    let session = network::post(served, port, "/api/v1/login", "", &login).good();
    let cookie = session.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let csrf = session.json()["csrf"].as_str().unwrap().to_owned();
    let lines = format!("Cookie: {cookie}\r\nX-CSRF-Token: {csrf}\r\n");
    let new = json!({"name": "prometheus", "role": "viewer", "days": 1});
    let made = network::post(served, port, "/api/v1/tokens", &lines, &new).good();
    made.json()["secret"].as_str().unwrap().to_owned()
}

/// A server of it, on an address of loopback that nobody else has, with folders of its own.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    fn start(programs: &Path, served: &Served, port: u16, token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("ca.pem"), pem(&fs::read(network::certificate(served)).unwrap())).unwrap();
        let job = |name: &str, more: &str| {
            format!(
                "- {{job_name: {name}, scheme: https, tls_config: {{ca_file: ca.pem, server_name: localhost}}, \
                 static_configs: [{{targets: ['127.0.0.1:{port}']}}]{more}}}\n"
            )
        };
        let text = format!(
            "global: {{scrape_interval: 5s, scrape_timeout: 5s}}\nscrape_configs:\n{}{}",
            job("viewer", &format!(", authorization: {{credentials: '{token}'}}")),
            job("stranger", "")
        );
        fs::write(at("prometheus.yml"), text).unwrap();
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, 64 + (high & 63), low, 250), 9090));
        let mut command = Command::new(programs.join("prometheus"));
        command.arg(format!("--config.file={}", at("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", at("data").display()));
        command.arg(format!("--web.listen-address={address}")).env_clear().current_dir(folder.path());
        let log = File::create(at("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, address, folder }
    }

    /// What it answers to a query now; none where it does not answer.
    fn ask(&self, query: &str) -> Option<Value> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET /api/v1/query?query={escaped} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let answer = Answer::read(stream);
        // It says 503 while it reads what it has on disk.
        (answer.status == 200).then(|| answer.json()["data"]["result"].clone())
    }

    fn query(&self, query: &str) -> Value {
        self.ask(query).unwrap_or_else(|| panic!("{query} was not answered: {}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until a query has one series, of this value.
    fn wait_for(&self, query: &str, value: &str) {
        let process = format!("/proc/{}/exe", self.child.id());
        wait_until(&format!("{query} is {value}"), || {
            assert!(fs::read_link(&process).is_ok(), "it has ended: {}", self.log());
            let result = self.ask(query).unwrap_or_default();
            result.as_array().is_some_and(|all| all.len() == 1) && result[0]["value"][1] == value
        });
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// A certificate as text (RFC 7468).
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let number =
            three.iter().chain([&0, &0]).take(3).fold(0_usize, |all, byte| all << 8 | usize::from(*byte));
        let digit =
            |at: usize| if at > three.len() { '=' } else { char::from(DIGITS[number >> (18 - 6 * at) & 63]) };
        text.extend((0..4).map(digit));
        if text.len() % 65 == 64 {
            text.push('\n');
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", text.trim_end())
}
