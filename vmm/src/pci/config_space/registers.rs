//! Where the header's registers are, and the bits of those that matter here.

/// Offsets in bytes (PCIe 7.5.1).
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod offset {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const CACHE_LINE: u16 = 0x0c;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const PRIMARY_BUS: u16 = 0x18;
    pub const SECONDARY_BUS: u16 = 0x19;
    pub const SUBORDINATE_BUS: u16 = 0x1a;
    pub const IO_BASE: u16 = 0x1c;
    pub const IO_LIMIT: u16 = 0x1d;
    pub const SECONDARY_STATUS: u16 = 0x1e;
    pub const MEMORY_BASE: u16 = 0x20;
    pub const MEMORY_LIMIT: u16 = 0x22;
    pub const PREFETCHABLE_BASE: u16 = 0x24;
    pub const PREFETCHABLE_LIMIT: u16 = 0x26;
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    pub const SUBSYSTEM: u16 = 0x2e;
    pub const ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const BRIDGE_ROM: u16 = 0x38;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    pub const INTERRUPT_PIN: u16 = 0x3d;
    pub const BRIDGE_CONTROL: u16 = 0x3e;
}

/// Bits of the command register (PCIe 7.5.1.1.3).
pub mod command {
    /// I/O BARs decode.
    pub const IO: u16 = 1 << 0;
    /// Memory BARs decode.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may send requests: DMA, MSI.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Parity error response.
    pub const PARITY: u16 = 1 << 6;
    /// SERR# enable.
    pub const SERR: u16 = 1 << 8;
    /// The function may not assert its INTx pin.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// What the guest may write; the rest is hardwired to 0 in PCIe.
    pub const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | PARITY | SERR | INTX_DISABLE;
}

/// Status: there is a capability list.
pub(super) const STATUS_CAPABILITIES: u16 = 1 << 4;
