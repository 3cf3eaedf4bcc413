//! What KVM counts of a vCPU, by the names that KVM gives (Linux, Documentation/virt/kvm/api.rst, 4.133
//! "KVM_GET_STATS_FD").

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVMIO, kvm_stats_header};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// KVM has about 50; a block that says much more is not one that we know how to read.
const MOST_COUNTERS: u32 = 1024;
/// KVM's names have 48 bytes.
const LONGEST_NAME: u32 = 256;
/// `kvm_stats_desc` without its name: flags, exponent, size, offset, bucket size.
const DESCRIPTOR: usize = 16;

/// A descriptor that the counters of one vCPU can be read from at any time, while it runs as well.
pub struct Stats {
    file: File,
}

impl Stats {
    /// The counters of `vcpu`, which must not be running. Fails on kernels before 5.14.
    pub fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        Self::of_any(vcpu)
    }

    /// The counters of the machine as a whole.
    pub fn of_vm(vm: &VmFd) -> io::Result<Self> {
        Self::of_any(vm)
    }

    fn of_any(fd: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: the call takes no argument, and the descriptor is a vCPU's or a VM's, which both have it.
        let fd = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: KVM has just made this descriptor for us.
        Ok(Self { file: File::from(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// All counters as they are now.
    pub fn read(&self) -> io::Result<Counters> {
        let mut bytes = [0; size_of::<kvm_stats_header>()];
        self.file.read_exact_at(&mut bytes, 0)?;
        let header = header(&bytes).ok_or_else(unreadable)?;
        let stride = DESCRIPTOR.saturating_add(to_usize(header.name_size));
        let mut descriptors = vec![0; stride.saturating_mul(to_usize(header.num_desc))];
        self.file.read_exact_at(&mut descriptors, header.desc_offset.into())?;

        let fields: Vec<Field> = descriptors.chunks_exact(stride).filter_map(field).collect();
        let end = fields.iter().map(|field| to_usize(field.offset).saturating_add(8)).max().unwrap_or(0);
        let mut data = vec![0; end.min(1 << 20)];
        self.file.read_exact_at(&mut data, header.data_offset.into())?;
        Ok(Counters::of(fields, &data))
    }
}

/// Counters by name: `exits`, `io_exits`, `mmio_exits`, `halt_exits` and what else this kernel counts. Histograms are
/// left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    fn of(fields: Vec<Field>, data: &[u8]) -> Self {
        let value = |field: Field| {
            let value = data.get(to_usize(field.offset)..)?.first_chunk()?;
            Some((field.name, u64::from_ne_bytes(*value)))
        };
        Self(fields.into_iter().filter_map(value).collect())
    }

    /// All of them.
    pub fn into_map(self) -> BTreeMap<String, u64> {
        self.0
    }

    /// One of them, if this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

/// `name=value` with spaces between: all kinds of exits, and of the others those that have counted something.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|(name, value)| **value != 0 || name.ends_with("exits"));
        for (index, (name, value)) in shown.enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{name}={value}")?;
        }
        Ok(())
    }
}

/// Where one counter lies, from the start of the data.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: u32,
}

fn header(bytes: &[u8]) -> Option<kvm_stats_header> {
    let word = |index: usize| bytes.get(4 * index..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
    let header = kvm_stats_header {
        flags: word(0)?,
        name_size: word(1)?,
        num_desc: word(2)?,
        id_offset: word(3)?,
        desc_offset: word(4)?,
        data_offset: word(5)?,
    };
    (header.name_size <= LONGEST_NAME && header.num_desc <= MOST_COUNTERS).then_some(header)
}

/// `struct kvm_stats_desc` with its name, when it is of a single value.
fn field(descriptor: &[u8]) -> Option<Field> {
    let size = u16::from_ne_bytes(*descriptor.get(6..)?.first_chunk()?);
    let offset = u32::from_ne_bytes(*descriptor.get(8..)?.first_chunk()?);
    let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    (size == 1).then(|| Field { name: String::from_utf8_lossy(name).into_owned(), offset })
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "KVM's counters are laid out in a way that is not known")
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(size: u16, offset: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 6];
        bytes.extend(size.to_ne_bytes());
        bytes.extend(offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name);
        bytes
    }

    #[test]
    fn single_values_are_found_by_name_and_histograms_left_out() {
        let exits = field(&descriptor(1, 8, b"exits\0\0\0")).unwrap();
        assert_eq!(exits, Field { name: "exits".into(), offset: 8 });
        assert_eq!(field(&descriptor(32, 8, b"halt_wait_hist\0")), None);
        let beyond = Field { name: "far".into(), offset: 9 };
        let counters = Counters::of(vec![exits, beyond], &[[0; 8], 7_u64.to_ne_bytes()].concat());
        assert_eq!((counters.get("exits"), counters.get("far")), (Some(7), None));
    }

    #[test]
    fn what_is_shown_are_exits_and_what_has_counted() {
        let values = [("exits", 3), ("mmio_exits", 0), ("guest_mode", 0), ("fpu_reload", 1)];
        let counters = Counters(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        assert_eq!(counters.to_string(), "exits=3 fpu_reload=1 mmio_exits=0");
    }

    #[test]
    fn a_vcpu_that_never_ran_has_no_exits() {
        let Some(kvm) = crate::boot::tests::kvm() else { return };
        let vcpu = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
        let Ok(stats) = Stats::of(&vcpu) else { return eprintln!("skipped: no KVM_GET_STATS_FD here") };
        let counters = stats.read().unwrap();
        for name in ["exits", "io_exits", "mmio_exits", "halt_exits"] {
            assert_eq!(counters.get(name), Some(0), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_block_can_panic(head: Vec<u8>, descriptors: Vec<Vec<u8>>, data: Vec<u8>) {
            let _ = header(&head);
            let fields = descriptors.iter().filter_map(|bytes| field(bytes)).collect();
            let _ = Counters::of(fields, &data).to_string();
        }
    }
}
