//! The chipset's small devices: serial port, real-time clock, keyboard controller, power management.

mod cmos;
mod i8042;
mod output;
mod pm;
mod pvpanic;
mod serial;

pub use cmos::Cmos;
pub use i8042::I8042;
pub use output::ConsoleOutput;
pub use pm::{Line, PM_BLOCK_SIZE, PowerManagement};
pub use pvpanic::PvPanic;
pub use serial::SerialPort;

/// I/O ports of these devices.
pub mod ports {
    /// COM1, 8 ports.
    pub const COM1: u16 = 0x3f8;
    /// pvpanic's one port.
    pub const PVPANIC: u16 = 0x505;
    /// The real-time clock's index and data port.
    pub const CMOS: u16 = 0x70;
    /// The keyboard controller's data port.
    pub const I8042_DATA: u16 = 0x60;
    /// The keyboard controller's command port.
    pub const I8042_COMMAND: u16 = 0x64;
}

/// COM1's interrupt.
pub const COM1_IRQ: u32 = 4;
