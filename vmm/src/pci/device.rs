//! What every function in the guest's PCI hierarchy is to the host bridge.

use std::os::fd::BorrowedFd;

use crate::Action;

/// What a base address register decodes (PCI Local Bus 3.0, 6.2.5.1; PCIe 7.5.1.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the next register too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A base address register that wants an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// 0 to 5, or 6 for the expansion ROM.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Size in bytes, a power of two; the address is aligned to it.
    pub size: u64,
}

/// A range that a function decodes right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The register: 0 to 5, or 6 for the expansion ROM.
    pub bar: u8,
    /// It is I/O ports, not memory.
    pub io: bool,
    /// First guest address or port.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// What a write to config space asks of the host bridge.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct ConfigEffect {
    /// The decoded windows may have changed: ask [`PciDevice::windows`] again.
    pub windows: bool,
    /// Bus numbers of a bridge changed: routes of config cycles are to be looked at again.
    pub buses: bool,
    /// A bridge resets what is below it (secondary bus reset, PCIe 7.5.1.3.13).
    pub reset_below: bool,
    /// What the machine must do.
    pub action: Action,
}

/// One function of the guest's PCI hierarchy.
///
/// It never calls its bus back. Locks inside; any vCPU may come at any time. Offsets and lengths of config accesses are
/// naturally aligned 1, 2 or 4 bytes and within 4096 (the host bridge splits or refuses others).
pub trait PciDevice: Send + Sync {
    /// For logs: `root port 3`, `0000:65:10.2`.
    fn label(&self) -> &str;

    /// Reads config space.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes config space.
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffect;

    /// The base address registers that want an address, for the planner.
    fn bars(&self) -> Vec<BarSpec> {
        Vec::new()
    }

    /// What it decodes now: empty while the command register says so.
    fn windows(&self) -> Vec<Window> {
        Vec::new()
    }

    /// The host bridge has moved `bar`'s window: to `base`, or away (`None`). Parts that the guest reaches without an
    /// exit are mapped or unmapped here; all else arrives by `read_bar` and `write_bar`.
    fn window_moved(&self, bar: u8, base: Option<u64>) {
        let _ = (bar, base);
    }

    /// Reads `data.len()` bytes at `offset` of a BAR. `data` arrives as all ones.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset, data);
    }

    /// Writes to a BAR.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Action {
        let _ = (bar, offset, data);
        Action::None
    }

    /// For a bridge: its secondary and subordinate bus numbers (type 1 header, 0x19 and 0x1a).
    fn bridge_buses(&self) -> Option<(u8, u8)> {
        None
    }

    /// For a bridge: what is behind it answers. While it does not, config cycles there find nothing.
    fn link_is_up(&self) -> bool {
        true
    }

    /// Back to the state after power-on: at a machine reset, or by a bridge's secondary bus reset. The windows vanish.
    fn reset(&self) -> Result<(), String> {
        Ok(())
    }

    /// Descriptors that the machine's event loop watches, each with a token for [`ready`](Self::ready).
    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        Vec::new()
    }

    /// A watched descriptor is readable.
    fn ready(&self, token: u64) -> Action {
        let _ = token;
        Action::None
    }
}
