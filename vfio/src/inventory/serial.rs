//! Serial numbers, which stay with a device wherever it is plugged in.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::isolation::extended;
use crate::sysfs::{names, read_maybe};
use crate::{PciAddress, Sysfs};

/// ID of the Device Serial Number extended capability (PCI Express Base 6.0, 7.9.3).
const SERIAL: u32 = 0x03;

/// The serial numbers of a function: that of its config space, and that which an NVMe controller tells its driver. The first needs
/// root, the second the kernel's own driver; what cannot be read is left out.
pub fn serials(sysfs: &Sysfs, address: PciAddress) -> BTreeSet<String> {
    let folder = sysfs.device(address);
    let config = File::open(folder.join("config")).ok();
    let of_device = config.and_then(|config| {
        device_serial(|at| {
            let mut data = [0; 4];
            config.read_exact_at(&mut data, at).ok().map(|()| u32::from_le_bytes(data))
        })
    });
    let controllers = names(&folder.join("nvme"));
    let of_controllers = controllers.iter().filter_map(|name| {
        let serial = read_maybe(&folder.join("nvme").join(name).join("serial"))?;
        Some(serial.trim().to_owned()).filter(|serial| !serial.is_empty())
    });
    of_device.into_iter().chain(of_controllers).collect()
}

/// As lspci(8) prints it, `00-1b-21-ff-ff-a7-5c-30`. `double` reads 32 bits of config space. All zeros and all ones are no number.
fn device_serial(double: impl Fn(u64) -> Option<u32>) -> Option<String> {
    let at = extended(&double, SERIAL)?;
    let (low, high) = (double(at.checked_add(4)?)?, double(at.checked_add(8)?)?);
    let number = u64::from(high) << 32 | u64::from(low);
    let bytes: Vec<String> = number.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    (number != 0 && number != u64::MAX).then(|| bytes.join("-"))
}

/// Two ways to write one serial number: digits of either case, with `-`, `:` or nothing between.
pub fn same_serial(one: &str, other: &str) -> bool {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| !matches!(c, '-' | ':')).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (one, other) = (one.trim(), other.trim());
    one == other || plain(one) == plain(other) && !plain(one).is_empty()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// Config space with a chain of extended capabilities, each an ID, its place and what follows its header.
    fn config(chain: &[(u32, usize, &[u32])]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for (index, (id, at, words)) in chain.iter().enumerate() {
            let next = chain.get(index + 1).map_or(0, |(_, at, _)| u32::try_from(*at).unwrap());
            put(*at, next << 20 | 1 << 16 | id);
            for (word, value) in words.iter().enumerate() {
                put(at + 4 + 4 * word, *value);
            }
        }
        bytes
    }

    fn found(config: &[u8]) -> Option<String> {
        device_serial(|at| {
            let at = usize::try_from(at).ok()?;
            Some(u32::from_le_bytes(*config.get(at..)?.first_chunk()?))
        })
    }

    #[test]
    fn the_number_is_found_behind_other_capabilities_and_read_high_half_first() {
        let chain = [(0x01, 0x100, &[7_u32][..]), (0x03, 0x140, &[0xffa7_5c30, 0x001b_21ff])];
        assert_eq!(found(&config(&chain)).as_deref(), Some("00-1b-21-ff-ff-a7-5c-30"));
        assert_eq!(found(&config(&chain[..1])), None);
        assert_eq!(found(&config(&[(0x03, 0x100, &[0, 0])])), None, "none was burnt in");
        assert_eq!(found(&config(&chain)[..256]), None, "for a process that may read no more");
        assert_eq!(found(&vec![0xff; 4096]), None, "a device that is gone");
    }

    #[test]
    fn a_disk_has_that_of_its_controller_too() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("bus/pci/devices/0000:03:00.0");
        fs::create_dir_all(folder.join("nvme/nvme0")).unwrap();
        fs::write(folder.join("nvme/nvme0/serial"), "S6B0NL0T616430      \n").unwrap();
        fs::write(folder.join("config"), config(&[(0x03, 0x100, &[0x2233_4455, 0x0011])])).unwrap();
        let serials = serials(&Sysfs::at(root.path()), "03:00.0".parse().unwrap());
        assert_eq!(serials.into_iter().collect::<Vec<_>>(), ["00-00-00-11-22-33-44-55", "S6B0NL0T616430"]);
    }

    #[test]
    fn a_number_may_be_written_in_several_ways() {
        for same in ["00-1b-21-ff-ff-a7-5c-30", "00:1B:21:FF:FF:A7:5C:30", "001b21ffffa75c30"] {
            assert!(same_serial("00-1b-21-ff-ff-a7-5c-30", same), "{same}");
        }
        assert!(!same_serial("S6B0", "S6B1"));
        assert!(!same_serial("-", ":"));
    }

    proptest! {
        #[test]
        fn no_config_space_can_panic(words in proptest::collection::vec(any::<u32>(), 0..64)) {
            device_serial(|at| {
                let index = usize::try_from(at / 4).ok()?;
                Some(words[index.checked_rem(words.len())?])
            });
        }
    }
}
