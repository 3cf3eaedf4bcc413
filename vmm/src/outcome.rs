//! How a machine ended.

use std::fmt;

/// How a guest came to its end, each told apart from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest reset and the machine was asked not to start it again.
    Reset,
    /// Whoever runs it asked for the end.
    Stopped,
    /// The guest crashed the processor.
    Crash(Box<Crash>),
    /// The guest's kernel panicked or its watchdog ran out, and the policy is to stop.
    Trouble {
        /// What happened, for a person.
        what: &'static str,
    },
    /// A device failed and the policy is to stop.
    DeviceError {
        /// The label of the function.
        device: String,
        /// What it reported.
        what: String,
    },
}

/// Why the processor could not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// KVM_EXIT_SHUTDOWN: a triple fault.
    TripleFault,
    /// KVM_EXIT_INTERNAL_ERROR: KVM met an instruction or a state that it cannot go on from.
    InternalError {
        /// KVM_INTERNAL_ERROR_*: 1 emulation, 2 simultaneous exception, 3 delivery, 4 unexpected exit reason.
        suberror: u32,
    },
    /// KVM_EXIT_FAIL_ENTRY: the processor refused the state.
    EntryFailure {
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that no machine of ours asks for.
    Unexpected {
        /// Its name.
        exit: String,
    },
}

/// A crash with what is needed to look into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// What happened.
    pub kind: CrashKind,
    /// The vCPU it happened on.
    pub vcpu: u32,
    /// The registers, printed one group a line.
    pub registers: String,
    /// The bytes at the instruction pointer, as many as could be read (at most 15).
    pub instruction: Vec<u8>,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            CrashKind::TripleFault => write!(f, "Triple fault on vCPU {}", self.vcpu)?,
            CrashKind::InternalError { suberror } => {
                let name = match suberror {
                    1 => "the instruction is not emulated",
                    2 => "simultaneous exceptions",
                    3 => "an event could not be delivered",
                    4 => "an unexpected exit reason",
                    _ => "an unknown cause",
                };
                write!(f, "KVM internal error {suberror} ({name}) on vCPU {}", self.vcpu)?;
            }
            CrashKind::EntryFailure { reason } => {
                write!(f, "The processor refused to enter vCPU {} (hardware reason {reason:#x})", self.vcpu)?;
            }
            CrashKind::Unexpected { exit } => write!(f, "Unexpected exit {exit} on vCPU {}", self.vcpu)?,
        }
        write!(f, "\n{}", self.registers)?;
        if self.instruction.is_empty() {
            return write!(f, "\ncode: rip points neither to guest memory nor to firmware");
        }
        write!(f, "\ncode:")?;
        self.instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
