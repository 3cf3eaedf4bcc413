//! What is left of the keyboard controller: its reset line, and a status that says nobody is there.

use crate::Action;
use crate::bus::BusDevice;

/// Pulse output line 0, which is wired to the processor's reset (IBM PC AT Technical Reference, 8042).
const PULSE_RESET: u8 = 0xfe;

/// The controller, at one port each: `Data` at 0x60, `Command` at 0x64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042 {
    /// Port 0x60: reads 0, writes go nowhere.
    Data,
    /// Port 0x64: no output waits and input is taken at once; command 0xFE resets the machine.
    Command,
}

impl BusDevice for I8042 {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) -> Action {
        match (self, data) {
            (Self::Command, [PULSE_RESET]) => Action::Reset,
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
        assert_eq!(I8042::Data.write(0, &[0xfe]), Action::None);
    }
}
