//! A host of its own inside this one: systemd as process 1 of new namespaces, on a copy of this machine's files that is written
//! over them in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::image;

/// Far longer than anything here takes on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the files, in a mount namespace that outlives each boot, and then waits. `$1` is the folder of what goes into them.
const FILES: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/memory"
cd "$1/memory"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
rm -rf root/var/lib/throughway root/var/log/throughway root/etc/systemd/system root/var/log/journal
mkdir -p root/etc/systemd/system root/var/log/journal
ln -s /usr/lib/systemd/system/multi-user.target root/etc/systemd/system/default.target
cp -a "$1/files/." root/
# Containers have one that lets no package start a service.
rm -f root/usr/sbin/policy-rc.d
echo made
exec sleep infinity
"#;

/// Boots on them. `$1` as above.
const BOOT: &str = r#"
set -e
cd "$1/memory/root"
mount -t proc proc proc
cat /proc/sys/kernel/random/uuid >../boot_id
mount --bind ../boot_id proc/sys/kernel/random/boot_id
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount --make-rslave dev
: >../console
mount --bind ../console dev/console
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
exec env -i container=test PATH=/usr/sbin:/usr/bin chroot . /lib/systemd/systemd
"#;

/// Whether tests with systemd can run; says why where they cannot.
pub(crate) fn available() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "namespaces need root".to_owned()
    } else if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        format!("/dev/kvm cannot be opened: {error}")
    } else if !Path::new("/lib/systemd/systemd").exists() {
        "systemd is not installed".to_owned()
    } else if control_groups().is_none() {
        "no control group hierarchy of version 2 is mounted".to_owned()
    } else {
        return true;
    };
    let required = std::env::var("REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|suite| matches!(suite.trim(), "systemd" | "package" | "all"));
    assert!(!required, "the suite systemd is required: {why}");
    eprintln!("skipped: {why}");
    false
}

fn control_groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// Looks again and again until it is so.
pub(crate) fn wait_until(what: impl Fn() -> String, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {}", what());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Its files, which outlive a boot.
pub(crate) struct Host {
    folder: TempDir,
    /// Holds the mounts.
    files: Child,
}

impl Host {
    /// With the program, its units, and this appliance file, in which guests boot `/etc/throughway/guest.elf`.
    #[allow(dead_code, reason = "the suite package installs them")]
    pub(crate) fn new(file: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inside = |path: &str| {
            let path = folder.path().join("files").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let units = concat!(env!("CARGO_MANIFEST_DIR"), "/appliance/systemd");
        for entry in fs::read_dir(units).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            fs::copy(entry.path(), inside(&format!("etc/systemd/system/{name}"))).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_throughway"), inside("usr/bin/throughway")).unwrap();
        fs::copy(image::elf(), inside("etc/throughway/guest.elf")).unwrap();
        fs::write(inside("etc/throughway/appliance.yaml"), file).unwrap();
        Self::of(folder)
    }

    /// With these files of this machine's, each with its path there.
    #[allow(dead_code, reason = "the suite systemd has the program there already")]
    pub(crate) fn with(files: &[(&Path, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in files {
            let path = folder.path().join("files").join(to.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(from, path).unwrap();
        }
        Self::of(folder)
    }

    fn of(folder: TempDir) -> Self {
        let path = folder.path();
        fs::create_dir(path.join("memory")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--kill-child", "--fork", "bash", "-c", FILES, "bash"]).arg(path);
        let mut files = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(files.stdout.take().unwrap()), &mut said)
            .unwrap();
        assert_eq!(said, "made\n", "the files of a host are not made");
        Self { folder, files }
    }

    /// Writes one of its files while it runs, or before.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let mut command = self.beside();
        command.args(["sh", "-c", r#"mkdir -p "$(dirname "$1")" && cat >"$1""#, "sh"]);
        command.arg(self.folder.path().join("memory/root").join(path.trim_start_matches('/')));
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A command in the namespace of its mounts.
    fn beside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", child_of(self.files.id()))).arg("--wd=/");
        command
    }

    /// Boots, to the end of systemd's start.
    pub(crate) fn boot(&self) -> Boot<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = control_groups().unwrap().join(format!("throughway-test-{}-{count}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let mut command = self.beside();
        // In a group of its own before the namespace of groups is made, whose root that is.
        command.args(["bash", "-c", r#"echo $$ >"$1/cgroup.procs"; shift; exec "$@""#, "bash"]).arg(&group);
        command.args([
            "unshare",
            "--fork",
            "--pid",
            "--kill-child",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ]);
        command.args(["bash", "-c", BOOT, "bash"]).arg(self.folder.path());
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let boot = Boot { _host: self, process, group };
        wait_until(
            || boot.about(),
            || boot.text(&["systemctl", "is-system-running"]) != "offline" && boot.is_up(),
        );
        boot
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.files.kill();
        let _ = self.files.wait();
    }
}

/// The one child of a process.
fn child_of(pid: u32) -> u32 {
    let mut found = None;
    wait_until(
        || format!("a child of {pid}"),
        || {
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
                .is_ok_and(|text| !text.trim().is_empty())
        },
    );
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        found = text.split_whitespace().next().and_then(|child| child.parse().ok());
    }
    found.unwrap()
}

/// From systemd's start to its end.
pub(crate) struct Boot<'a> {
    _host: &'a Host,
    process: Child,
    group: PathBuf,
}

impl Boot<'_> {
    /// A command in all of its namespaces.
    pub(crate) fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", child_of(self.process.id()))).args(["--all", "--root", "--wd=/"]);
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"]).args(words);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints, whether it works or not.
    pub(crate) fn text(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.output(words).stdout).trim_end().to_owned()
    }

    /// What it prints; it must work.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}\n{}", self.about());
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn is_up(&self) -> bool {
        matches!(self.text(&["systemctl", "is-system-running"]).as_str(), "running" | "degraded")
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.text(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> u32 {
        self.property("throughway.service", "MainPID").parse().unwrap()
    }

    /// Guests that can be asked, and their processes.
    pub(crate) fn running(&self) -> BTreeMap<String, u32> {
        let text = self.text(&["throughway", "vm", "list", "--json"]);
        let Ok(serde_json::Value::Array(list)) = serde_json::from_str(&text) else { return BTreeMap::new() };
        let one = |guest: &serde_json::Value| {
            Some((guest["name"].as_str()?.to_owned(), u32::try_from(guest["pid"].as_u64()?).ok()?))
        };
        list.iter().filter_map(one).collect()
    }

    /// Waits until exactly these guests run.
    pub(crate) fn wait_for(&self, names: &[&str]) -> BTreeMap<String, u32> {
        wait_until(
            || format!("{names:?} run\n{}", self.about()),
            || self.running().keys().map(String::as_str).eq(names.iter().copied()),
        );
        self.running()
    }

    /// What the units said, and systemd of them.
    pub(crate) fn journal(&self) -> String {
        self.text(&[
            "journalctl",
            "--no-pager",
            "-o",
            "cat",
            "-u",
            "throughway.service",
            "-u",
            "throughway-guests.service",
        ])
    }

    /// How all is, for a message.
    fn about(&self) -> String {
        let mut text = String::new();
        for words in [
            &["systemctl", "--no-pager", "status", "throughway.service"][..],
            &["systemctl", "--no-pager", "list-jobs"],
            &["journalctl", "--no-pager", "-n", "40"],
        ] {
            let _ = writeln!(text, "{}", self.text(words));
        }
        text
    }

    /// Waits for its end.
    #[allow(dead_code, reason = "the suite package does not end it by itself")]
    pub(crate) fn end(mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end: {}", self.about());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Boot<'_> {
    /// Process 1 takes all others of its namespace with it.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let remove = || {
            let mut command = Command::new("find");
            command.arg(&self.group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]);
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !remove() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
