//! MAC addresses that nobody chose.

use netconfig::MacAddress;

/// A locally administered address that depends on the names of a guest and its nic alone, so that it is the same at every start
/// (FNV-1a, 64 bits, over `vm`, NUL, `nic`).
pub(crate) fn derived_mac(vm: &str, nic: &str) -> MacAddress {
    let bytes = vm.bytes().chain([0]).chain(nic.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = (hash ^ hash >> 40).to_le_bytes();
    MacAddress([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guests know their network by it: it must never change.
    #[test]
    fn an_address_stays_what_it_was() {
        assert_eq!(derived_mac("a", "wan").to_string(), "02:3c:91:ad:c4:fc");
        assert_ne!(derived_mac("a", "bc"), derived_mac("ab", "c"));
    }
}
