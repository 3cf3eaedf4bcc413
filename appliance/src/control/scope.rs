//! A control group for each guest: a scope of systemd's, where that is process 1. What a guest takes is counted there
//! (`systemd-cgtop`), its process ends with no session, and is nobody's left-over when the daemon is started anew.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::RunDir;
use crate::apply::file_name;

/// Stops guests by their power buttons. It is started later than scopes are, so it is stopped earlier.
const BEFORE: &str = "throughway-guests.service";

/// A command that runs this program in a scope of the guest's own, as the same process from then on: where the box's systemd
/// can make one. Guests of other folders than the usual one are not the box's.
pub(super) fn in_scope(vm: &str, running: &RunDir) -> Option<Command> {
    let is_root = rustix::process::geteuid().is_root();
    let is_boxs = is_root && running.path() == RunDir::usual();
    // sd_booted(3)
    if !is_boxs || !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let program =
        ["/usr/bin/systemd-run", "/bin/systemd-run"].into_iter().find(|path| Path::new(path).exists())?;
    let mut command = Command::new(program);
    command.args(["--quiet", "--scope", "--collect", "--slice=throughway.slice"]);
    // That of the process before may still be on its way out.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let unit = format!("throughway-guest-{}-{now:x}.scope", file_name(vm).replace('%', "."));
    command.args(["--unit", &unit, "--description", &format!("Throughway: guest {vm}")]);
    command.args(["--property", &format!("Before={BEFORE}"), "--"]);
    // Its own `/proc/self` is that of systemd-run.
    command.arg(format!("/proc/{}/exe", std::process::id()));
    Some(command)
}
