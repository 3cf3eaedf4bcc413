//! The address of a PCI function: domain, bus, device, function (PCIe Base 6.0, 2.2.6.2 and 7.2.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `DDDD:BB:DD.F` in hexadecimal, as the kernel prints it (a domain may need more than four digits: VMD).
///
/// Reads `DDDD:BB:DD.F` and the short form `BB:DD.F` (domain 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI domain (segment group), 0 on most machines.
    pub domain: u32,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31 (below an ARI port the device is folded into the function; the kernel still prints it so).
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// The routing identifier: bus << 8 | device << 3 | function (PCIe 2.2.4.2, "Requester ID").
    pub fn routing_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// The address that a routing identifier names in `domain`.
    pub fn from_routing_id(domain: u32, id: u16) -> Self {
        let [bus, devfn] = id.to_be_bytes();
        Self { domain, bus, device: devfn >> 3, function: devfn & 7 }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// Text that is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address: write DDDD:BB:DD.F in hexadecimal, such as 0000:65:10.2")]
pub struct NotAnAddress(pub String);

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let bad = || NotAnAddress(text.to_owned());
        let hex = |part: &str, longest: usize| {
            let plain =
                !part.is_empty() && part.len() <= longest && part.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(part, 16).ok()).flatten().ok_or_else(bad)
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(bad)?;
        let mut parts = rest.rsplit(':');
        let device = hex(parts.next().unwrap_or(""), 2)?;
        let bus = hex(parts.next().unwrap_or(""), 2)?;
        let domain = parts.next().map_or(Ok(0), |part| hex(part, 8))?;
        let function = hex(function, 1)?;
        if parts.next().is_some() || device > 31 || function > 7 {
            return Err(bad());
        }
        let byte = |value: u32| u8::try_from(value).map_err(|_| bad());
        Ok(Self { domain, bus: byte(bus)?, device: byte(device)?, function: byte(function)? })
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_and_long_forms_read_and_print_in_full() {
        for (text, full) in [("65:10.2", "0000:65:10.2"), ("10000:e1:00.0", "10000:e1:00.0")] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()), Ok(full.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "65", "65:10", "65:20.0", "65:10.8", "0:0000:65:10.2", "+5:10.2", "65:1g.0", "165:10.2"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_address_reads_back(domain: u32, id: u16) {
            let address = PciAddress::from_routing_id(domain, id);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(address.routing_id(), id);
        }
    }
}
