//! What a guest holds of the host, and how it was before.

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
}

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
        Self { vm: vm.to_owned(), pid, started: started(pid).unwrap_or(0), boot: boot().to_owned() }
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
}
