//! Where a function sits in the guest's hierarchy, whatever bus numbers the guest gives out.

use std::fmt;

/// Device and function number in one, as config cycles carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(pub u8);

impl Devfn {
    /// A device (0 to 31) and its function (0 to 7).
    pub fn new(device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self(device << 3 | function))
    }

    /// Device number.
    pub fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Function number.
    pub fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Devfn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:02x}.{}", self.device(), self.function())
    }
}

/// A function's seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On bus 0: chipset functions, root ports, integrated endpoints.
    Root(Devfn),
    /// A function of the one device behind a root port (a link has no other device than 0).
    Behind {
        /// The root port.
        port: Devfn,
        /// 0 to 7.
        function: u8,
    },
}

impl Place {
    /// Device and function number on its own bus.
    pub fn devfn(self) -> Devfn {
        match self {
            Self::Root(devfn) => devfn,
            Self::Behind { function, .. } => Devfn(function & 7),
        }
    }

    /// Function 0 of the same device.
    pub fn first(self) -> Self {
        match self {
            Self::Root(devfn) => Self::Root(Devfn(devfn.0 & !7)),
            Self::Behind { port, .. } => Self::Behind { port, function: 0 },
        }
    }

    /// The I/O APIC input of its interrupt pin (1 = INTA to 4 = INTD, as the Interrupt Pin register counts): behind a
    /// root port the standard swizzle comes first (PCI-to-PCI Bridge 1.2, 9.1). `None` for no pin.
    pub fn intx_gsi(self, interrupt_pin: u8) -> Option<u32> {
        let pin = interrupt_pin.checked_sub(1).filter(|pin| *pin < 4)?;
        Some(match self {
            Self::Root(devfn) => crate::layout::intx_gsi(devfn.device(), pin),
            // The device number behind a port is 0, so the swizzle leaves the pin as it is.
            Self::Behind { port, .. } => crate::layout::intx_gsi(port.device(), pin),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(devfn) => write!(out, "00:{devfn}"),
            Self::Behind { port, function } => write!(out, "function {function} behind 00:{port}"),
        }
    }
}
