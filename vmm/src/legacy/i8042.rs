//! What is left of the keyboard controller: its reset line.
//!
//! Whoever pulls that line waits until the controller takes input, and whoever has a keyboard driver asks whether there is a
//! controller at all. One status cannot please both: it is ready for a kernel that starts without firmware, which is told by
//! ACPI that there is no keyboard, and all ones for firmware, whose driver looks for one by itself and waits for each answer.

use crate::Action;
use crate::bus::BusDevice;

/// Pulse output line 0, which is wired to the processor's reset (IBM PC AT Technical Reference, 8042).
const PULSE_RESET: u8 = 0xfe;

/// The controller, at one port each: `Data` at 0x60, `Command` or `ResetLine` at 0x64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042 {
    /// Port 0x60: reads 0, writes go nowhere.
    Data,
    /// Port 0x64: no output waits and input is taken at once; command 0xFE resets the machine.
    Command,
    /// Port 0x64 of a board without a controller: reads as nobody does who decodes it, parity error and time-out; command
    /// 0xFE resets the machine.
    ResetLine,
}

impl BusDevice for I8042 {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(if *self == Self::ResetLine { 0xff } else { 0 });
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        match (self, data) {
            (Self::Command | Self::ResetLine, [PULSE_RESET]) => Action::Reset,
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pulse_command_resets() {
        assert_eq!(I8042::Command.write(0, &[0xfe]), Action::Reset);
        assert_eq!(I8042::Command.write(0, &[0xaa]), Action::None);
        assert_eq!(I8042::ResetLine.write(0, &[0xfe]), Action::Reset);
        assert_eq!(I8042::Data.write(0, &[0xfe]), Action::None);
    }

    #[test]
    fn firmware_sees_no_controller_and_a_kernel_one_that_is_ready() {
        let status = |port: I8042| {
            let mut data = [0x55];
            port.read(0, &mut data);
            data[0]
        };
        assert_eq!(status(I8042::Command) & 0x03, 0, "no output waits, input is taken");
        assert_eq!(status(I8042::ResetLine) & 0xc0, 0xc0, "parity error and time-out: nobody");
    }
}
