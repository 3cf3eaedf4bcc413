//! SMBIOS tables: who the machine says it is (DMTF DSP0134 3.6).

/// Both files, as fw_cfg hands them over.
pub(super) struct Smbios {
    /// The entry point; the firmware makes its own of it, with the address that it chooses.
    pub(super) anchor: Vec<u8>,
    /// The structures.
    pub(super) tables: Vec<u8>,
}

const MANUFACTURER: &str = "Throughway";

/// A UUID that a guest of this name always has (RFC 9562, 5.8: version 8), so that what is licensed or configured by it
/// stays.
pub(super) fn uuid(name: &str) -> [u8; 16] {
    // FNV-1a, twice: nothing depends on it but that names differ.
    let hash = |seed: u64| {
        name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    };
    let mut bytes = (u128::from(hash(0)) << 64 | u128::from(hash(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
    bytes[7] = bytes[7] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

pub(super) fn build(name: &str, ram_size: u64, cpus: u32) -> Smbios {
    let mut tables = Vec::new();
    let mut put = |kind: u8, handle: u16, body: &[u8], strings: &[&str]| {
        let length = u8::try_from(body.len().saturating_add(4)).unwrap_or(u8::MAX);
        tables.extend([kind, length]);
        tables.extend(handle.to_le_bytes());
        tables.extend(body);
        for string in strings {
            // A NUL would end the string, and an empty one the list.
            tables.extend(string.bytes().filter(|byte| *byte != 0));
            tables.push(0);
        }
        if strings.is_empty() {
            tables.push(0);
        }
        tables.push(0);
    };
    // System: manufacturer, product, version, serial, UUID, woken by the power switch, SKU, family.
    let system = [&[1, 2, 0, 0][..], &uuid(name), &[6, 0, 0]].concat();
    put(1, 0x100, &system, &[MANUFACTURER, "Virtual machine"]);
    // Chassis: "other", no lock; states unknown or safe.
    put(3, 0x300, &[1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[MANUFACTURER]);
    let count = u8::try_from(cpus).unwrap_or(u8::MAX);
    put(4, 0x400, &processor(cpus, count), &["CPU 0", MANUFACTURER]);
    // One array of memory, one device: KiB, or an extended size where those do not fit.
    let kib = ram_size >> 10;
    let capacity = u32::try_from(kib).ok().filter(|kib| *kib < 0x8000_0000).unwrap_or(0x8000_0000);
    let array = [
        &[1, 3, 2][..],
        &capacity.to_le_bytes(),
        &0xfffe_u16.to_le_bytes(),
        &1_u16.to_le_bytes(),
        &ram_size.to_le_bytes(),
    ]
    .concat();
    put(16, 0x1000, &array, &[]);
    put(17, 0x1100, &memory_device(ram_size), &["DIMM 0", MANUFACTURER]);
    put(32, 0x2000, &[0, 0, 0, 0, 0, 0, 0], &[]);
    put(127, 0x7f00, &[], &[]);
    Smbios { anchor: anchor(tables.len()), tables }
}

/// Type 4 of DSP0134, 7.5, up to core and thread counts of 16 bits.
fn processor(cpus: u32, count: u8) -> Vec<u8> {
    let wide = u16::try_from(cpus).unwrap_or(u16::MAX).to_le_bytes();
    let mut body = vec![1, 3, 1, 2];
    body.extend([0; 8]);
    // Version, voltage, external clock, highest and present speed: not told.
    body.extend([0; 8]);
    // Populated and enabled; upgrade "other"; no cache handles; no strings.
    body.extend([0x41, 1]);
    body.extend([0xff; 6]);
    body.extend([0, 0, 0, count, count, count]);
    body.extend(4_u16.to_le_bytes());
    body.extend(1_u16.to_le_bytes());
    for _ in 0..3 {
        body.extend(wide);
    }
    body
}

/// Type 17 of DSP0134, 7.18, up to the extended size and configured speed.
fn memory_device(ram_size: u64) -> Vec<u8> {
    let mib = ram_size >> 20;
    let short = u16::try_from(mib).ok().filter(|mib| *mib < 0x7fff).unwrap_or(0x7fff);
    let extended = if short == 0x7fff { u32::try_from(mib).unwrap_or(u32::MAX) & 0x7fff_ffff } else { 0 };
    let mut body = 0x1000_u16.to_le_bytes().to_vec();
    body.extend(0xfffe_u16.to_le_bytes());
    body.extend([0xff; 4]);
    body.extend(short.to_le_bytes());
    // A DIMM of RAM in no set.
    body.extend([9, 0, 1, 0, 7]);
    body.extend(2_u16.to_le_bytes());
    body.extend([0, 0, 2, 0, 0, 0, 0]);
    body.extend(extended.to_le_bytes());
    body.extend([0, 0]);
    body
}

/// The 64-bit entry point (5.2.2), whose address the firmware puts in.
fn anchor(size: usize) -> Vec<u8> {
    let mut anchor = b"_SM3_\0\x18\x03\x06\0\x01\0".to_vec();
    anchor.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    anchor.extend([0; 8]);
    let sum = anchor.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = anchor.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    anchor
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type and formatted length of each structure, to the last byte of the tables.
    fn structures(tables: &[u8]) -> Vec<(u8, usize)> {
        let (mut at, mut found) = (0, Vec::new());
        while at < tables.len() {
            let (kind, length) = (tables[at], usize::from(tables[at + 1]));
            found.push((kind, length));
            let strings = tables[at + length..].windows(2).position(|pair| pair == [0, 0]).unwrap();
            at += length + strings + 2;
        }
        assert_eq!(at, tables.len());
        found
    }

    #[test]
    fn structures_have_the_lengths_of_the_specification() {
        let smbios = build("firewall", 8 << 30, 4);
        let expected = [(1, 0x1b), (3, 0x16), (4, 0x30), (16, 0x17), (17, 0x22), (32, 0x0b), (127, 4)];
        assert_eq!(structures(&smbios.tables), expected);
        let sum = smbios.anchor.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((smbios.anchor.len(), sum), (24, 0));
    }

    #[test]
    fn guests_of_one_name_have_one_uuid_and_others_another() {
        assert_eq!(uuid("a"), uuid("a"));
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!((uuid("a")[7] >> 4, uuid("a")[8] >> 6), (8, 2));
    }
}
