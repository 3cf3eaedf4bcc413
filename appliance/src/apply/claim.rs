//! What a guest holds of the host, and how it was before.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Undo;
use super::restart::{boot, is_this_boot};

/// Who holds a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Holder {
    /// The guest.
    pub vm: String,
    /// The process that runs it.
    pub pid: u32,
    /// When that process started, in clock ticks since boot (field 22 of /proc/PID/stat): a number can be given out again.
    pub started: u64,
    /// In which boot: after another one none of its processes is there, and none of what they did to the kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// The process of the guest's machine, which ends with that one, a moment later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

/// The process of a guest's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Machine {
    /// Its number.
    pub pid: u32,
    /// As with its keeper.
    pub started: u64,
}

/// The machine that this process keeps; 0 for none.
static KEPT: AtomicU32 = AtomicU32::new(0);

/// From now on, what this process claims is claimed for the machine in that process as well.
pub fn keeps(pid: u32) {
    KEPT.store(pid, Ordering::Release);
}

/// How long a killed machine may take to end: its devices are reset, and its memory is let go.
const LAST_MOMENT: Duration = Duration::from_secs(30);

/// All that a guest holds, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Claim {
    /// Who.
    pub holder: Holder,
    /// What, and how it was.
    pub undo: Vec<Undo>,
}

impl Holder {
    /// This process.
    pub fn this(vm: &str) -> Self {
        Self::of(vm, std::process::id())
    }

    /// A process that is there.
    pub fn of(vm: &str, pid: u32) -> Self {
        let started = started(pid).unwrap_or(0);
        Self { vm: vm.to_owned(), pid, started, boot: boot().to_owned(), machine: None }
    }

    /// This process, and the machine that it [keeps].
    pub fn keeper(vm: &str) -> Self {
        let pid = KEPT.load(Ordering::Acquire);
        let machine = started(pid).map(|started| Machine { pid, started });
        Self { machine, ..Self::this(vm) }
    }

    /// Waits until its machine has ended, which has all devices open until then. It has been killed if its keeper is dead.
    pub fn wait_for_machine(&self) {
        let Some(machine) = self.machine.filter(|_| self.is_of_this_boot()) else { return };
        let deadline = Instant::now() + LAST_MOMENT;
        while started(machine.pid) == Some(machine.started) {
            if Instant::now() > deadline {
                tracing::warn!("The machine of guest `{}` (process {}) does not end", self.vm, machine.pid);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process is still there, and no other with its number.
    pub fn is_alive(&self) -> bool {
        self.is_of_this_boot() && started(self.pid) == Some(self.started)
    }

    /// The box was not started anew since.
    pub fn is_of_this_boot(&self) -> bool {
        is_this_boot(&self.boot)
    }
}

/// When a process started; none where there is none, or only its corpse.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; after it come state (field 3) and so on.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_namesake_does_not() {
        let holder = Holder::this("a");
        assert!(holder.is_alive());
        assert!(!Holder { started: holder.started + 1, ..holder.clone() }.is_alive());
        assert!(!Holder { boot: "another".into(), ..holder }.is_alive());
    }

    #[test]
    fn a_machine_that_is_ending_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let started = started(child.id()).unwrap();
        let machine = Some(Machine { pid: child.id(), started });
        let holder = Holder { machine, ..Holder::this("a") };
        let waits = std::thread::spawn(move || holder.wait_for_machine());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        child.kill().unwrap();
        waits.join().unwrap();
        child.wait().unwrap();
        Holder { machine, ..Holder::this("a") }.wait_for_machine();
    }
}
