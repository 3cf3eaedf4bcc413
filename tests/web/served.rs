//! A daemon that serves its admin interface on loopback, and who comes to it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::client::{Client, Way};

pub(crate) const PASSWORD: &str = "correct horse battery";
const PATIENCE: Duration = Duration::from_secs(300);

/// A daemon with folders of its own, and a file with no more than where it listens.
pub(crate) struct Served {
    folder: TempDir,
    address: SocketAddr,
    daemon: Child,
    log: Arc<Mutex<String>>,
}

/// Whether there can be one; says why not.
pub(crate) fn available() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|suite| matches!(suite.trim(), "web" | "all")),
        "the suite web needs root"
    );
    eprintln!("skipped: this is not root");
    false
}

/// An address of loopback that nobody else has: of a port that was free a moment ago, any connection may have made its own.
fn own_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 64 + (high & 63), low, COUNT.fetch_add(1, Ordering::Relaxed)), 8480))
}

/// Looks again and again until it is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: never");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Served {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = own_address();
        let text = format!(
            "version: 1\nmanagement: {{listen: [\"http://{address}\"]}}\nweb: {{hosts: [box.example]}}\n"
        );
        fs::write(folder.path().join("box.yaml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("daemon").arg(folder.path().join("box.yaml"));
        for name in ["run", "state", "log"] {
            command.arg(format!("--{name}-dir")).arg(folder.path().join(name));
        }
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (into, stderr) = (Arc::clone(&log), daemon.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let served = Self { folder, address, daemon, log };
        served.wait_for_it();
        served
    }

    /// Waits until somebody answers.
    pub(crate) fn wait_for_it(&self) {
        let client = self.client();
        wait_until("it answers", || client.try_ask("GET", "/healthz", "", "").is_some());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Somebody from the network.
    pub(crate) fn client(&self) -> Client {
        Client::new(Way::Address(self.address))
    }

    /// Root on the box itself.
    pub(crate) fn root(&self) -> Client {
        Client::new(Way::Socket(self.path("run/api.sock")))
    }

    /// The code that was printed last.
    pub(crate) fn code(&self) -> String {
        let mut code = None;
        wait_until("a code is printed", || {
            let log = self.log();
            code = log
                .lines()
                .rev()
                .find_map(|line| line.split_once("good for an hour: "))
                .map(|(_, code)| code.trim().to_owned());
            code.is_some()
        });
        code.unwrap()
    }

    /// `throughway web code`.
    pub(crate) fn new_code(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        let output = command.args(["web", "code", "--state-dir"]).arg(self.path("state")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The first administrator, logged in.
    pub(crate) fn ada(&self) -> Client {
        let claim = json!({"code": self.code(), "name": "ada", "password": PASSWORD});
        let answer = self.client().send("POST", "/api/v1/claim", &claim);
        assert_eq!(answer.status, 200, "{answer:?}");
        self.client().keeping(&answer)
    }

    /// A user that she adds, logged in.
    pub(crate) fn user(&self, ada: &Client, name: &str, role: &str, assigns: bool) -> Client {
        let new = json!({"name": name, "role": role, "assign-devices": assigns, "password": PASSWORD});
        assert_eq!(ada.send("POST", "/api/v1/users", &new).status, 201);
        let answer = self.login(name, PASSWORD);
        assert_eq!(answer.status, 200, "{answer:?}");
        self.client().keeping(&answer)
    }

    pub(crate) fn login(&self, name: &str, password: &str) -> crate::client::Answer {
        self.client().send("POST", "/api/v1/login", &json!({"name": name, "password": password}))
    }

    /// The web process.
    pub(crate) fn web(&self) -> u32 {
        let daemon = self.daemon.id().to_string();
        let mut found = None;
        wait_until("the web process is there", || {
            found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned();
                let words = fs::read(entry.path().join("cmdline")).ok()?;
                (parent == daemon && words.ends_with(b"\0web\0")).then_some(pid)
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Kills the web process, and waits until another one answers.
    pub(crate) fn restart_web(&self) {
        let old = self.web();
        kill_process(Pid::from_raw(old.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        wait_until("there is another one", || self.web() != old);
        self.wait_for_it();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
