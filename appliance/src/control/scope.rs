//! A control group for each guest: a scope of systemd's, where that is process 1. What a guest takes is counted there
//! (`systemd-cgtop`), its process ends with no session, and is nobody's left-over when the daemon is started anew.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::RunDir;
use crate::apply::file_name;
use crate::config::Vm;

/// Stops guests by their power buttons. It is started later than scopes are, so it is stopped earlier.
const BEFORE: &str = "throughway-guests.service";

/// What a guest's scope may hold at most. Far more than any guest takes: it is there for a machine that somebody else has taken
/// over, and must never end one that has not been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes: RAM, with page tables of the processor, of the IOMMU and of the process (each 1/512 of it), and what devices take.
    memory: u64,
    /// Threads: of vCPUs, queues, vhost, and those by which the kernel serves io_uring.
    tasks: u64,
}

impl Limits {
    /// Of a guest with as many vCPUs, and as much memory. Huge pages are counted too where the kernel was told to
    /// (`memory_hugetlb_accounting`), and then they have to have room; what functions have pinned is RAM.
    pub fn of(vm: &Vm) -> Self {
        let (ram, vcpus) = (vm.memory.detail().size.0, u64::from(vm.cpus.topology().count));
        Self { memory: ram.saturating_add(ram / 8).saturating_add(1 << 30), tasks: 1024 + 64 * vcpus }
    }
}

/// A command that runs this program in a scope of the guest's own, as the same process from then on: where the box's systemd
/// can make one. Guests of other folders than the usual one are not the box's.
pub(super) fn in_scope(vm: &str, running: &RunDir, limits: Limits) -> Option<Command> {
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
    let properties = [
        format!("Before={BEFORE}"),
        format!("MemoryMax={}", limits.memory),
        format!("TasksMax={}", limits.tasks),
        // One guest as much as another, however many threads it has.
        "CPUWeight=100".to_owned(),
    ];
    command.args(properties.iter().flat_map(|property| ["--property", property]));
    command.arg("--");
    // Its own `/proc/self` is that of systemd-run.
    command.arg(format!("/proc/{}/exe", std::process::id()));
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_the_guest() {
        let of = |text: &str| Limits::of(&serde_json::from_str(text).unwrap());
        let small = of(r#"{"cpus": 1, "memory": "64MiB", "boot": {"kernel": "/k"}}"#);
        assert_eq!(small, Limits { memory: (72 << 20) + (1 << 30), tasks: 1088 });
        let large = of(
            r#"{"cpus": 64, "memory": {"size": "512GiB", "hugepages": "1GiB"}, "boot": {"kernel": "/k"}}"#,
        );
        assert_eq!(large, Limits { memory: (576 << 30) + (1 << 30), tasks: 5120 });
    }
}
