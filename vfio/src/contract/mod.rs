//! What every maker of [`PciFunction`] must do, as named checks that run against any of them.
//!
//! A [`Subject`] is a function with someone at the device's side. The fake and a vfio-user server do there what they are
//! told, a device of the kernel's what its registers allow: a check that needs more is skipped and says what it lacks.

mod dma;
mod interrupts;
mod life;
mod memory;
mod regions;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::function::{Error, IrqKind, PciFunction, RegionIndex};

/// A function and what a test can have its device do.
pub trait Subject: Send + Sync {
    /// The function, quiet: nothing enabled, nothing mapped.
    fn function(&self) -> Arc<dyn PciFunction>;

    /// Four bytes of a BAR that keep what is written.
    fn scratch(&self) -> Option<(RegionIndex, u64)> {
        None
    }

    /// The device signals a vector, or asserts its pin until [`lower_pin`](Self::lower_pin). False where a test cannot make
    /// it do that.
    fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        let _ = (kind, vector);
        false
    }

    /// The device lets its pin go.
    fn lower_pin(&self) {}

    /// The device copies at most 4096 bytes by DMA from one I/O address to another, and has ended when this returns. A
    /// fault is not told. False where a test cannot make it do that.
    fn copy(&self, from: u64, to: u64, length: usize) -> bool {
        let _ = (from, to, length);
        false
    }

    /// The function is unplugged, or its server ends. False where a test cannot make it do that. It is the last of it.
    fn vanish(&self) -> bool {
        false
    }

    /// How long to wait for an interrupt that must not come.
    fn patience(&self) -> Duration {
        Duration::from_millis(20)
    }
}

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The function does what is asked.
    Held,
    /// It could not be made, and why.
    Skipped(String),
    /// The function does something else.
    Broken(String),
}

/// One thing that every maker must do.
#[derive(Clone, Copy)]
pub struct Check {
    /// What holds when it passes.
    pub name: &'static str,
    judge: fn(&dyn Subject) -> Judged,
}

impl Check {
    /// Makes the check. The function is quiet afterwards, unless the check has ended it.
    pub fn run(&self, subject: &dyn Subject) -> Verdict {
        match (self.judge)(subject) {
            Ok(()) => Verdict::Held,
            Err(Stop::Skip(why)) => Verdict::Skipped(why),
            Err(Stop::Broken(why)) => Verdict::Broken(why),
        }
    }
}

/// All checks. The last one may end the subject.
pub const CHECKS: &[Check] = &[
    Check { name: "config space reads the same in any size", judge: regions::config_reads },
    Check { name: "bus mastering is written and read back", judge: regions::config_writes },
    Check { name: "accesses out of bounds are invalid and read all ones", judge: regions::bounds },
    Check { name: "regions are what their description says", judge: regions::descriptions },
    Check { name: "a mapping and an access see the same bytes", judge: regions::mappings },
    Check { name: "interrupts are what their description says", judge: interrupts::descriptions },
    Check { name: "each vector reaches its own eventfd", judge: interrupts::vectors },
    Check { name: "taking a vector away leaves its neighbours", judge: interrupts::neighbours },
    Check { name: "a vector that does not exist is refused", judge: interrupts::out_of_range },
    Check { name: "only one kind of interrupt is on", judge: interrupts::exclusive },
    Check { name: "INTx masks itself and fires again when unmasked", judge: interrupts::pin },
    Check { name: "INTx is unmasked by an eventfd", judge: interrupts::resample },
    Check { name: "errors and requests can be listened for", judge: interrupts::events },
    Check { name: "a reset leaves a function that answers", judge: life::reset },
    Check { name: "the I/O addresses are ascending and disjoint", judge: dma::ranges },
    Check { name: "the device reaches what is mapped and nothing else", judge: dma::reach },
    Check { name: "nothing is reached without bus mastering", judge: dma::master },
    Check { name: "exact ranges are mapped and taken back", judge: dma::exact },
    Check { name: "I/O addresses that are not valid are refused", judge: dma::invalid },
    Check { name: "it may be used from many threads", judge: life::threads },
    Check { name: "a function that is gone says so and reads all ones", judge: life::gone },
];

/// Why a check ended early.
enum Stop {
    Skip(String),
    Broken(String),
}

type Judged = Result<(), Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<rustix::io::Errno> for Stop {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Broken(format!("a call of the test itself failed: {error}"))
    }
}

/// Ends a check as broken unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::contract::Stop::Broken(format!($($text)+)));
        }
    };
}
use ensure;

fn skip<T>(why: &str) -> Result<T, Stop> {
    Err(Stop::Skip(why.to_owned()))
}

/// A function that decodes its memory and may master the bus, for as long as this lives.
struct Awake(Arc<dyn PciFunction>);

/// Command register and two of its bits (PCIe 6.0, 7.5.1.1.3).
const COMMAND: u64 = 4;
const MEMORY: u8 = 1 << 1;
const MASTER: u8 = 1 << 2;

impl Awake {
    fn new(subject: &dyn Subject) -> Result<Self, Error> {
        let function = subject.function();
        function.write(RegionIndex::Config, COMMAND, &[MEMORY | MASTER, 0])?;
        Ok(Self(function))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // Gone is fine.
        let _ = self.0.write(RegionIndex::Config, COMMAND, &[0, 0]);
    }
}
