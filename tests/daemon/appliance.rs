//! One appliance: its folders, its file, and daemons that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::image;
use crate::machine::{Heard, PATIENCE, wait_until};

/// Folders `run`, `state` and `logs`, and the file `box.yaml`.
pub(crate) struct Appliance {
    folder: TempDir,
}

impl Appliance {
    /// With this file.
    pub(crate) fn new(text: &str) -> Self {
        let appliance = Self { folder: tempfile::tempdir().unwrap() };
        appliance.write(text);
        appliance
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(self.path("box.yaml"), text).unwrap();
    }

    /// `throughway` with these words, for this appliance.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.args(words).arg("--run-dir").arg(self.path("run")).env_remove("RUST_LOG");
        command.stdin(Stdio::null());
        command
    }

    fn daemon_command(&self, words: &[&str]) -> Command {
        let mut command = self.command(&["daemon"]);
        // Other daemons run beside it, which want the same port.
        let web = words.contains(&"--web");
        command.arg(self.path("box.yaml")).args(words.iter().filter(|word| **word != "--web"));
        command.args((!web).then_some("--no-web"));
        command.arg("--state-dir").arg(self.path("state")).arg("--log-dir").arg(self.path("logs"));
        command
    }

    /// A daemon, with these words.
    pub(crate) fn daemon(&self, words: &[&str]) -> Daemon {
        Daemon::new(self.daemon_command(words))
    }

    /// One as systemd starts it, with a watchdog.
    pub(crate) fn service(&self, notify: &Path) -> Daemon {
        let mut command = self.daemon_command(&[]);
        command.env("NOTIFY_SOCKET", notify).env("WATCHDOG_USEC", "400000").env("JOURNAL_STREAM", "1:1");
        Daemon::new(command)
    }

    /// The same in a network namespace of its own.
    pub(crate) fn daemon_alone(&self, words: &[&str]) -> Daemon {
        let alone = self.daemon_command(words);
        let mut command = Command::new("unshare");
        command.arg("--net").arg(alone.get_program()).args(alone.get_args()).stdin(Stdio::null());
        Daemon::new(command)
    }

    /// The same in a network namespace that outlives it.
    pub(crate) fn daemon_within(&self, namespace: &Namespace, words: &[&str]) -> Daemon {
        Daemon::new(namespace.command(&self.daemon_command(words)))
    }

    /// `throughway status`, in a network namespace.
    pub(crate) fn status_within(&self, namespace: &Namespace) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("status").arg("--state-dir").arg(self.path("state"));
        namespace.command(&command).output().unwrap()
    }

    /// `throughway run` of a guest, in a network namespace.
    pub(crate) fn run_within(&self, namespace: &Namespace, name: &str) -> Child {
        let mut command = self.command(&["run"]);
        command.arg(self.path("box.yaml")).args(["--vm", name]).arg("--state-dir").arg(self.path("state"));
        let mut within = namespace.command(&command);
        within.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// `throughway recover`, in a network namespace, which must work.
    pub(crate) fn recover_within(&self, namespace: &Namespace) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("recover").arg("--state-dir").arg(self.path("state"));
        let output = namespace.command(&command).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Names of the files in which claims are.
    pub(crate) fn claims(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.path("state/claims")).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.') && !name.ends_with(".new")).collect()
    }

    /// `throughway daemon`, to its end.
    pub(crate) fn refused(&self) -> Output {
        self.daemon_command(&[]).output().unwrap()
    }

    /// `throughway vm` with these words, which must work.
    pub(crate) fn vm(&self, words: &[&str]) -> String {
        let output = self.command(&[&["vm"], words].concat()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `throughway vm start`, by hand.
    pub(crate) fn start(&self, name: &str) {
        let mut command = self.command(&["vm", "start", name]);
        command.arg("--file").arg(self.path("box.yaml")).arg("--log-dir").arg(self.path("logs"));
        let output = command.arg("--state-dir").arg(self.path("state")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether the host is being changed.
    pub(crate) fn is_changing(&self) -> bool {
        let state = self.path("state").display().to_string();
        let changes =
            |words: &[String]| words.get(1).is_some_and(|word| word == "apply" || word == "restore");
        command_lines().any(|(_, words)| changes(&words) && words.contains(&state))
    }

    /// Processes of guests of this appliance, whether they can be asked anything or not; none is there twice.
    pub(crate) fn processes(&self) -> BTreeMap<String, u32> {
        let run = self.path("run").display().to_string();
        let mut found = BTreeMap::new();
        for (pid, words) in command_lines() {
            if words.get(1).is_some_and(|word| word == "run") && words.contains(&run) && !is_machine(pid) {
                let at = words.iter().position(|word| word == "--vm").unwrap();
                let twice = found.insert(words[at + 1].clone(), pid);
                assert_eq!(twice, None, "guest `{}` is there twice", words[at + 1]);
            }
        }
        found
    }

    /// Processes of guests' machines of this appliance.
    pub(crate) fn machines(&self) -> BTreeSet<u32> {
        let run = self.path("run").display().to_string();
        let is_run =
            |words: &[String]| words.get(1).is_some_and(|word| word == "run") && words.contains(&run);
        let machines = command_lines().filter(|(pid, words)| is_run(words) && is_machine(*pid));
        machines.map(|(pid, _)| pid).collect()
    }

    /// Guests that can be asked, as `vm list` tells them.
    pub(crate) fn running(&self) -> BTreeMap<String, u32> {
        let list: serde_json::Value = serde_json::from_str(&self.vm(&["list", "--json"])).unwrap();
        let one = |guest: &serde_json::Value| {
            (
                guest["name"].as_str().unwrap().to_owned(),
                u32::try_from(guest["pid"].as_u64().unwrap()).unwrap(),
            )
        };
        list.as_array().unwrap().iter().map(one).collect()
    }

    /// Waits until exactly these guests run.
    pub(crate) fn wait_for(&self, names: &[&str]) -> BTreeMap<String, u32> {
        wait_until(&format!("{names:?} run"), || {
            self.running().keys().map(String::as_str).eq(names.iter().copied())
        });
        self.running()
    }
}

impl Drop for Appliance {
    /// No guest outlives its test, whatever became of that.
    fn drop(&mut self) {
        for pid in self.processes().into_values().chain(self.machines()) {
            kill(pid, Signal::KILL);
        }
    }
}

/// Whether it is the process of a guest's machine, and not that of its keeper: its child, or a user of guests' own, who may be on
/// the way out when the keeper is gone.
fn is_machine(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let parent = field("PPid:").unwrap_or(0);
    let words = fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
    let own = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    (parent > 1 && words == own) || field("Uid:").is_some_and(|user| user >= 0x7100_0000)
}

/// All processes, each with the words of its command line.
fn command_lines() -> impl Iterator<Item = (u32, Vec<String>)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some((pid, words.collect()))
    })
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}

/// Kills a guest's process, and waits until it is gone.
pub(crate) fn kill_and_wait(pid: u32) {
    kill(pid, Signal::KILL);
    let is_gone = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
    };
    wait_until("its process is gone", is_gone);
}

/// A network namespace, as long as a process of its own.
pub(crate) struct Namespace(Child);

impl Namespace {
    pub(crate) fn new() -> Self {
        let mut holder = Command::new("unshare");
        // Its end, when this process is killed, is that of its input.
        let holder = holder.args(["--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let namespace = Self(holder);
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        wait_until("the namespace is there", || of(&namespace.0.id().to_string()) != of("self"));
        namespace
    }

    /// The command, run in it.
    fn command(&self, command: &Command) -> Command {
        let mut within = Command::new("nsenter");
        within.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(command.get_program());
        within.args(command.get_args()).stdin(Stdio::null()).env_remove("RUST_LOG");
        within
    }

    /// ip(8) in it, which must succeed.
    pub(crate) fn ip(&self, arguments: &str) {
        let mut command = Command::new("ip");
        let output = self.command(command.args(arguments.split(' '))).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Names of its links.
    pub(crate) fn links(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.0.id())).unwrap();
        let names = text.lines().filter_map(|line| line.split_once(':'));
        names.map(|(name, _)| name.trim().to_owned()).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon.
pub(crate) struct Daemon {
    child: Child,
    log: Heard,
    read: usize,
}

impl Daemon {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Heard::listen(child.stderr.take().unwrap());
        Self { child, log, read: 0 }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until it says this, after what was waited for before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        match self.log.wait_for(text, self.read) {
            Some(end) => self.read = end,
            None => panic!("{text:?} never came: {}", self.log.text()),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end, which must be a good one; its log.
    pub(crate) fn end(mut self) -> String {
        let status = wait(&mut self.child);
        assert!(status.success(), "{status}: {}", self.log.text());
        assert!(!self.log.text().contains("panicked"), "{}", self.log.text());
        self.log.text()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// A number of `/proc/PID/status`.
    pub(crate) fn status(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest of the file: its name, what it does, and more keys.
pub(crate) fn guest(name: &str, test: &str, more: &str) -> String {
    let kernel = image::elf();
    let boot = format!("boot: {{kernel: \"{}\", cmdline: \"test={test}\"}}", Path::new(&kernel).display());
    format!("  {name}: {{memory: 16MiB, {boot}, {more}}}\n")
}

/// A file with these guests.
pub(crate) fn file(guests: &[String]) -> String {
    format!("version: 1\nvms:\n{}", guests.concat())
}
