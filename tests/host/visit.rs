//! Two hosts on one cable: this namespace is the box, another one is the administrator's. He comes in by TCP and gets a shell,
//! with what sshd tells a shell of its connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::ip;

/// Where the box's shells listen.
const PORT: u16 = 2222;
/// How long an answer may take where there is nothing in its way.
const MOMENT: Duration = Duration::from_secs(2);

/// The box, with a folder for its files.
pub(crate) struct Visited {
    folder: tempfile::TempDir,
}

impl Visited {
    /// The box's card is `box0` with 10.9.0.1/24; the administrator's is `adm0` with 10.9.0.2/24.
    pub(crate) fn new() -> (Self, Administrator) {
        let administrator = Administrator::new();
        ip("link set lo up");
        ip("link add box0 address 02:00:00:00:09:01 type veth peer name adm0");
        ip(&format!("link set adm0 netns {}", administrator.keeper.id()));
        ip("link set box0 up");
        ip("address add 10.9.0.1/24 dev box0");
        administrator.ip("link set lo up");
        administrator.ip("link set adm0 up");
        administrator.ip("address add 10.9.0.2/24 dev adm0");
        let visited = Self { folder: tempfile::tempdir().unwrap() };
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                shell(stream.unwrap());
            }
        });
        (visited, administrator)
    }

    /// A file of the box.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A command line of `throughway` for a shell.
    pub(crate) fn line(&self, arguments: &str) -> String {
        let program = env!("CARGO_BIN_EXE_throughway");
        format!("{program} {arguments} --state-dir {}", self.state().display())
    }

    /// Runs `throughway` on the box itself, away from any session; its exit code, and what it says.
    pub(crate) fn run(&self, arguments: &str) -> (i32, String) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{} 2>&1", self.line(arguments))]).env("SSH_CONNECTION", "");
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// The change, when it has come so far; within ten seconds.
    pub(crate) fn change(&self, id: u64, state: &str) -> serde_json::Value {
        let path = self.state().join(format!("history/{id:08}.json"));
        wait_for(&format!("change {id} is {state}"), Duration::from_secs(20), || {
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            let is = record["state"] == state || record["state"].get(state).is_some();
            is.then_some(record)
        })
    }

    /// The process that waits for the confirmation of a change.
    pub(crate) fn worker(&self, id: u64) -> u32 {
        let pid = &self.change(id, "waiting")["state"]["waiting"]["holder"]["pid"];
        u32::try_from(pid.as_u64().unwrap()).unwrap()
    }
}

/// What `found` finds, within `patience`.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, found: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A shell on a connection, as sshd starts one without a terminal.
fn shell(stream: TcpStream) {
    let (client, own) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
    let connection = format!("{} {} {} {}", client.ip(), client.port(), own.ip(), own.port());
    let end = || Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
    let mut shell = Command::new("setsid");
    shell.args(["sh", "-s"]).env("SSH_CONNECTION", connection);
    let mut shell = shell.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    std::thread::spawn(move || shell.wait());
}

/// The administrator's host.
pub(crate) struct Administrator {
    keeper: Child,
}

impl Drop for Administrator {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Administrator {
    fn new() -> Self {
        let keeper = Command::new("unshare").args(["--net", "sleep", "300"]).spawn().unwrap();
        let administrator = Self { keeper };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        wait_for("another namespace", MOMENT, || {
            std::fs::read_link(administrator.namespace()).ok().filter(|found| *found != own)
        });
        administrator
    }

    fn namespace(&self) -> PathBuf {
        Path::new("/proc").join(self.keeper.id().to_string()).join("ns/net")
    }

    /// Runs ip(8) there.
    pub(crate) fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("ip");
        let output = command.args(arguments.split_whitespace()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {said}");
    }

    /// Comes in at an address of the box. He tries more than once: for a moment his host still knows that nobody has
    /// the address (arp(7)).
    pub(crate) fn comes_in(&self, address: &str) -> Session {
        wait_for(&format!("{address} answers"), Duration::from_secs(10), || {
            self.tries_to_come_in(address).ok()
        })
    }

    pub(crate) fn tries_to_come_in(&self, address: &str) -> std::io::Result<Session> {
        let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), PORT);
        let namespace = std::fs::File::open(self.namespace()).unwrap();
        // A namespace is a thread's: the socket stays in it.
        let connect = move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
                .unwrap();
            TcpStream::connect_timeout(&address, MOMENT)
        };
        let stream = std::thread::spawn(connect).join().unwrap()?;
        stream.set_nodelay(true)?;
        Ok(Session { lines: BufReader::new(stream.try_clone()?), stream, asked: 0 })
    }
}

/// A shell on the box.
pub(crate) struct Session {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    asked: u64,
}

impl Session {
    /// Writes a line, and does not wait.
    pub(crate) fn write(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Runs a command, and what it says with its exit code as the last word; none where no answer comes in time.
    pub(crate) fn answer(&mut self, line: &str, patience: Duration) -> Option<String> {
        self.asked += 1;
        let mark = format!("answer-{}-ends", self.asked);
        self.write(&format!("{{ {line}; }} 2>&1; echo \" $? {mark}\""));
        let end = Instant::now() + patience;
        let mut said = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.lines.read_line(&mut said) {
                Ok(0) => panic!("the connection is closed; it said: {said}"),
                Ok(_) if said.trim_end().ends_with(&mark) => {
                    return Some(said.trim_end().strip_suffix(&mark).unwrap().trim_end().to_owned());
                }
                Ok(_) => {}
                Err(_) if Instant::now() >= end => return None,
                Err(_) => {}
            }
        }
    }

    /// Runs a command over a way that is free.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.answer(line, MOMENT * 10).unwrap_or_else(|| panic!("no answer to: {line}"))
    }

    /// Keepalives until one stays without an answer.
    pub(crate) fn is_cut_off_within(&mut self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.answer("true", Duration::from_millis(700)).is_some() {
            assert!(Instant::now() < end, "the session goes on");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The same connection answers again: TCP sends what was lost again, ever less often.
    pub(crate) fn comes_back_within(&mut self, patience: Duration) {
        assert!(self.answer("true", patience).is_some(), "not within {patience:?}");
    }
}
