//! The daemon reads a file anew, and that changes the administrator's way.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::alone;
use crate::settings;
use crate::visit::{Visited, wait_for};

const SOON: Duration = Duration::from_secs(15);

/// The way is named, and nothing else.
const LEFT_ALONE: &str = "version: 1
management: {interface: box0, confirm-timeout: 5s}
";
/// The address goes away from the card.
const MOVED: &str = "version: 1
management: {interface: box0, confirm-timeout: 5s}
networks: {br0: {type: bridge, ports: {box0: {}}, addresses: [10.10.0.1/24]}}
";

struct Daemon<'a> {
    visited: &'a Visited,
    child: Child,
    log: String,
}

impl<'a> Daemon<'a> {
    fn start(visited: &'a Visited, file: &Path, log: &str) -> Self {
        let folder = file.parent().unwrap();
        let (run, logs) = (folder.join("run"), folder.join("logs"));
        let words =
            format!("daemon {} --run-dir {} --log-dir {}", file.display(), run.display(), logs.display());
        let log = visited.file(log, "").display().to_string();
        let line = format!("exec {} 2>{log}", visited.line(&words));
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("SSH_CONNECTION", "").stdin(Stdio::null());
        Self { visited, child: command.spawn().unwrap(), log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn says(&self, text: &str) {
        wait_for(text, SOON, || self.log().contains(text).then_some(()));
    }

    fn reload(&self, text: &str) {
        self.visited.file("box.yaml", text);
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_reload_waits_for_somebody_and_goes_back_although_the_daemon_is_killed() {
    alone("reload::a_reload_waits_for_somebody_and_goes_back_although_the_daemon_is_killed", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        let file = visited.file("box.yaml", LEFT_ALONE);
        let daemon = Daemon::start(&visited, &file, "first.log");
        visited.change(1, "committed");
        let mut keepalive = administrator.comes_in("10.9.0.1");
        daemon.reload(MOVED);
        visited.change(2, "waiting");
        drop(daemon);
        let daemon = Daemon::start(&visited, &file, "second.log");
        daemon.says("Change 2 waits to be confirmed");
        keepalive.is_cut_off_within(SOON);
        keepalive.comes_back_within(SOON);
        let record = visited.change(2, "reverted");
        assert_eq!(record["state"]["reverted"]["why"], "nobody confirmed it within 5 s");
        assert_eq!(settings(), before);

        daemon.reload(MOVED);
        visited.change(3, "waiting");
        assert_eq!(visited.run("confirm 3").0, 0);
        daemon.says("The host is as the file says");
        assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
        assert_ne!(settings(), before);
    });
}
