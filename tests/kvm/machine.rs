//! One `throughway run` of the test guest: started, talked to and waited for, never longer than [`PATIENCE`].

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::image;

/// Far longer than anything here takes on a machine that has other things to do as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// Whether tests with a guest can run; says why where they cannot.
pub(crate) fn available() -> bool {
    let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else { return true };
    let required = std::env::var("REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|suite| matches!(suite.trim(), "kvm" | "all"));
    assert!(!required, "the suite kvm is required, and /dev/kvm cannot be opened: {error}");
    eprintln!("skipped: /dev/kvm cannot be opened: {error}");
    false
}

/// The processor's own virtualization, where it has one: `vmx` or `svm`. Without it, guest code in ring 0 is interpreted.
pub(crate) fn hardware() -> Option<&'static str> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["vmx", "svm"].into_iter().find(|name| flags.split_whitespace().any(|flag| flag == *name))
}

/// Looks again and again until it is so.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: never");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the file says of the guest.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) cmdline: String,
    pub(crate) cpus: &'static str,
    pub(crate) memory: String,
    pub(crate) on_reset: &'static str,
    /// What stands behind `disks:`.
    pub(crate) disks: String,
    /// Another key and its value.
    pub(crate) key: &'static str,
    /// Words for `throughway` itself.
    pub(crate) arguments: &'static [&'static str],
}

impl Guest {
    /// The ELF image with one processor and little memory.
    pub(crate) fn new(cmdline: &str) -> Self {
        Self {
            kernel: image::elf(),
            initrd: None,
            cmdline: cmdline.into(),
            cpus: "1",
            memory: "16MiB".into(),
            on_reset: "restart",
            disks: "{}".into(),
            key: "rng: false",
            arguments: &[],
        }
    }

    /// The command, and the folder with its file, which must stay until the command has ended.
    pub(crate) fn command(&self) -> (Command, TempDir) {
        let Self { kernel, initrd, cmdline, cpus, memory, on_reset, disks, key, arguments } = self;
        let kernel = kernel.display();
        let initrd =
            initrd.as_ref().map(|path| format!("initrd: \"{}\", ", path.display())).unwrap_or_default();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "version: 1\nvms:\n  guest:\n    cpus: {cpus}\n    memory: {memory}\n    on-reset: {on_reset}\n    disks: {disks}\n    {key}\n    \
             boot: {{kernel: \"{kernel}\", {initrd}cmdline: \"{cmdline}\"}}\n"
        );
        let file = folder.path().join("box.yaml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("run").arg(file).args(["--vm", "guest"]).args(*arguments).env_remove("RUST_LOG");
        command.arg("--run-dir").arg(folder.path().join("run"));
        (command, folder)
    }

    /// Starts it with pipes for a console.
    pub(crate) fn start(&self) -> Running {
        let (mut command, folder) = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let console = Heard::listen(child.stdout.take().unwrap());
        Running::new(child, console, folder)
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(&self) -> Ended {
        self.start().end()
    }
}

/// What has been read of something so far.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<(Mutex<Said>, Condvar)>);

/// All bytes so far, and whether they are all that ever come.
#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    ended: bool,
}

impl Heard {
    /// Reads all of it, on a thread of its own.
    pub(crate) fn listen(mut from: impl Read + Send + 'static) -> Self {
        let heard = Self::default();
        let teller = heard.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The end of a terminal is EIO.
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                teller.0.0.lock().unwrap().bytes.extend(&bytes[..count]);
                teller.0.1.notify_all();
            }
            teller.0.0.lock().unwrap().ended = true;
            teller.0.1.notify_all();
        });
        heard
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until `text` comes at or after byte `from`; where it ends, or `None` when patience or all that is said does.
    pub(crate) fn wait_for(&self, text: &str, from: usize) -> Option<usize> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.0.0.lock().unwrap();
        loop {
            let found = heard.bytes[from..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                return Some(from + at + text.len());
            }
            if heard.ended {
                return None;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            heard = self.0.1.wait_timeout(heard, left).unwrap().0;
        }
    }
}

/// A guest that runs.
pub(crate) struct Running {
    child: Child,
    pub(crate) input: Option<ChildStdin>,
    console: Heard,
    log: Heard,
    console_read: usize,
    log_read: usize,
    folder: Arc<TempDir>,
}

impl Running {
    /// `child` has a pipe for standard error, and whatever `console` comes from.
    pub(crate) fn new(mut child: Child, console: Heard, folder: TempDir) -> Self {
        let log = Heard::listen(child.stderr.take().unwrap());
        let input = child.stdin.take();
        Self { child, input, console, log, console_read: 0, log_read: 0, folder: Arc::new(folder) }
    }

    /// The folder with its file; sockets of its are in `run`.
    #[allow(dead_code, reason = "the suite kvm controls its guests")]
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Keeps the folder beyond the guest's end.
    #[allow(dead_code, reason = "the suite kvm controls its guests")]
    pub(crate) fn keep_folder(&self) -> Arc<TempDir> {
        Arc::clone(&self.folder)
    }

    /// Whether the guest has said `text`, after what was waited for before.
    #[allow(dead_code, reason = "the suite kvm controls its guests")]
    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.console.text().get(self.console_read..).is_some_and(|said| said.contains(text))
    }

    /// Waits until the guest says `text`, after what was waited for before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        match self.console.wait_for(text, self.console_read) {
            Some(end) => self.console_read = end,
            None => self.give_up(text),
        }
    }

    /// Waits until `throughway` says `text`, and returns the line in which it does.
    pub(crate) fn wait_for_log(&mut self, text: &str) -> String {
        let Some(end) = self.log.wait_for(text, self.log_read).and_then(|at| self.log.wait_for("\n", at))
        else {
            self.give_up(text)
        };
        let line = self.log.text()[self.log_read..end].to_owned();
        self.log_read = end;
        line.lines().last().unwrap().to_owned()
    }

    fn give_up(&self, text: &str) -> ! {
        panic!("{text:?} never came; console: {:?}; log: {}", self.console.text(), self.log.text());
    }

    /// Types.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The process of its machine: the only child of the one that was started.
    #[allow(dead_code, reason = "the suite kvm looks at it")]
    fn machine(&self) -> u32 {
        let keeper = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
        children.split_whitespace().next().and_then(|child| child.parse().ok()).unwrap_or(keeper)
    }

    /// What the kernel says of each of its threads: /proc/PID/task/TID/status, by its name there.
    #[allow(dead_code, reason = "the suite kvm looks at how they are locked up")]
    pub(crate) fn threads(&self) -> Vec<BTreeMap<String, String>> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.machine())).unwrap().flatten();
        // Threads come and go.
        let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        let of =
            |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        statuses.map(|status| status.lines().filter_map(of).collect()).collect()
    }

    /// The same of the thread with this name. It is waited for: a thread has its maker's name until it gives itself its own.
    #[allow(dead_code, reason = "the suite kvm looks at its threads")]
    pub(crate) fn thread(&self, name: &str) -> BTreeMap<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(thread) = self.threads().into_iter().find(|thread| thread["Name"] == name) {
                return thread;
            }
            assert!(Instant::now() < deadline, "there is no thread {name}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the kernel says of where its memory lies (numa(7)); none where it says nothing.
    #[allow(dead_code, reason = "the suite kvm looks at where memory lies")]
    pub(crate) fn numa_maps(&self) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/numa_maps", self.machine())).ok()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end, which must be by this exit code; for a console whose end is never seen.
    pub(crate) fn wait_for_end_with(mut self, code: i32) {
        // What the reader's thread still holds is not waited for: a terminal's end comes when all have let go of it.
        self.console = Heard::default();
        let ended = self.end();
        assert_eq!(ended.code, Some(code), "{}", ended.log);
    }

    /// Kills it, and waits until nothing of it is left; what it has said.
    #[allow(dead_code, reason = "the suite disk kills its guests")]
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        settled(&self.console)
    }

    /// Waits for its end, whatever it is; but a panic or a signal is never one.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.give_up("an end");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        drop(self.input.take());
        let ended = Ended { code: status.code(), console: settled(&self.console), log: settled(&self.log) };
        assert!(ended.code.is_some(), "{status}; console: {:?}; log: {}", ended.console, ended.log);
        assert!(!ended.log.contains("panicked"), "{}", ended.log);
        ended
    }
}

impl Drop for Running {
    /// No guest outlives its test, whatever became of that.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All that a reader will hear once the writer has ended: its thread then lets go of what is shared.
fn settled(heard: &Heard) -> String {
    let deadline = Instant::now() + PATIENCE;
    while Arc::strong_count(&heard.0) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    heard.text()
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code.
    pub(crate) code: Option<i32>,
    pub(crate) console: String,
    /// Standard error.
    pub(crate) log: String,
}
