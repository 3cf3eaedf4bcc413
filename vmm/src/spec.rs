//! What to build: fully resolved, no defaults left, no host paths. What is a file arrives opened, in [`Resources`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vfio::PciFunction;

use crate::virtio::VirtioDevice;

pub use crate::vcpu::Starts;

/// One guest machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmSpec {
    /// The guest's name, for logs and thread names.
    pub name: String,
    /// Processors.
    pub cpus: CpuSpec,
    /// The host's processors that each vCPU's thread may run on, by the vCPU's index; empty: any that the process may.
    pub affinity: Vec<BTreeSet<u32>>,
    /// Memory.
    pub memory: MemorySpec,
    /// Where it lies on the host.
    pub memory_policy: MemoryPolicy,
    /// Where the processors start; what [`Resources::boot`] holds must fit.
    pub starts: Starts,
    /// The kernel's command line, without a NUL.
    pub cmdline: String,
    /// What a guest reset does.
    pub on_reset: OnReset,
    /// What an error that a device reports does.
    pub on_device_error: OnDeviceError,
    /// The guest has a pvpanic port, and a panic of its kernel does this.
    pub on_panic: Option<OnTrouble>,
    /// The guest has a watchdog, and that its time has run out does this.
    pub watchdog: Option<OnTrouble>,
    /// Root ports with nothing behind them, for what is plugged in while the guest runs.
    #[serde(default)]
    pub hotplug_ports: u8,
}

/// Processors: `sockets * cores * threads` vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CpuSpec {
    /// Sockets, at least 1.
    pub sockets: u32,
    /// Cores a socket, at least 1.
    pub cores: u32,
    /// Threads a core, 1 or 2.
    pub threads: u32,
}

impl CpuSpec {
    /// The number of vCPUs.
    pub fn count(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemorySpec {
    /// Size in bytes, a multiple of the page size.
    pub size: u64,
    /// Size of the huge pages that back it in bytes (2 MiB or 1 GiB), or `None` for ordinary pages.
    pub hugepages: Option<u64>,
    /// Touch all of it before the guest starts.
    pub prefault: bool,
}

/// Where guest RAM lies on the host. The default leaves it to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryPolicy {
    /// NUMA nodes; none: any.
    pub nodes: BTreeSet<u32>,
    /// On these nodes or not at all; else on others where these are full.
    pub strict: bool,
    /// Ask the kernel for transparent huge pages.
    pub transparent: bool,
}

/// What a guest reset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// Start again, devices reset, from the kernel.
    Restart,
    /// End with `Outcome::Reset`.
    Exit,
}

/// What an error that a device reports does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeviceError {
    /// Reset the guest machine, and the device with it.
    Reset,
    /// Stop the guest.
    Stop,
    /// Take the device out of the guest.
    Detach,
    /// Log it and go on.
    Ignore,
}

/// What trouble of the guest's own does: a panic, a watchdog that was not reloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTrouble {
    /// Log it and go on.
    Log,
    /// Stop the processors where they are.
    Pause,
    /// Reset the guest machine.
    Reset,
    /// End with [`Outcome::Trouble`](crate::Outcome::Trouble).
    Stop,
}

/// What the machine needs that is opened already.
pub struct Resources {
    /// What the guest starts with.
    pub boot: Boot,
    /// The console.
    pub console: Console,
    /// The functions given to the guest, in slot order.
    pub slots: Vec<Slot>,
    /// The virtio devices, in the order of their root ports, behind those of `slots`.
    pub virtio: Vec<VirtioSlot>,
}

/// What a guest starts with.
pub enum Boot {
    /// Direct boot: no firmware runs.
    Kernel {
        /// bzImage, or ELF with a PVH note.
        kernel: File,
        /// The initial RAM disk.
        initrd: Option<File>,
    },
    /// Firmware, which finds by itself what to start.
    Firmware(Firmware),
}

/// UEFI firmware in flash memory, as OVMF is built for a Q35 board.
pub struct Firmware {
    /// The code, which ends at 4 GiB.
    pub code: File,
    /// This guest's variables, right below the code; open for reading and writing. See
    /// [`firmware::VariableStore`](crate::firmware::VariableStore).
    pub variables: File,
    /// What to start from, the first one first: names of [`Resources::slots`] and [`Resources::virtio`].
    pub order: Vec<String>,
    /// What goes before all others until the guest is first reset. Only with an order: firmware keeps the one that it was
    /// told last.
    pub once: Option<String>,
}

/// Both ends of the guest's console: terminals, files, pipes or sockets alike.
pub struct Console {
    /// What the guest has it on.
    pub device: ConsoleDevice,
    /// What the guest reads; `None` for nothing ever.
    pub input: Option<OwnedFd>,
    /// Where the guest writes; `None` for nowhere.
    pub output: Option<OwnedFd>,
    /// What else gets all that the guest writes. It is not waited for longer than its writes take.
    pub log: Option<Box<dyn Write + Send>>,
}

/// What the guest has its console on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleDevice {
    /// COM1.
    #[default]
    Serial,
    /// A virtio console, behind the last of the devices' root ports. What COM1 says goes to the console's output as well.
    Virtio,
}

/// What sits behind one root port: one function, or the sibling functions of one device.
pub struct Slot {
    /// The guest's name for it: the key in the appliance file.
    pub name: String,
    /// At most eight; the first is function 0.
    pub functions: Vec<Arc<dyn PciFunction>>,
    /// The guest, and its firmware, sees their expansion ROMs.
    pub rom: bool,
}

/// A virtio device behind a root port of its own.
pub struct VirtioSlot {
    /// For logs: `nic lan`, `disk root`.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
}

/// A device that is plugged in while the guest runs.
pub enum NewDevice {
    /// Functions of the host.
    Functions(Slot),
    /// A virtio device.
    Virtio(VirtioSlot),
}
