//! What CPUID says in the guest: what KVM can virtualize of this host's processor, in the topology that was asked for.
//!
//! Leaf numbers and fields: Intel SDM 2, CPUID; AMD APM 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use std::io;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::spec::CpuSpec;

/// CPUID cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM does not say what it supports.
    #[error("Asking KVM for the CPUID leaves that it supports: {0}")]
    Supported(io::Error),
    /// More leaves than KVM takes.
    #[error("{0} CPUID leaves are more than KVM takes")]
    TooMany(usize),
    /// A topology without processors, or with more than APIC ids can tell apart.
    #[error("{} sockets of {} cores of {} threads cannot be numbered; each must be at least 1", .0.sockets, .0.cores, .0.threads)]
    Topology(CpuSpec),
}

/// How the bits of an APIC id are shared out: thread, core and socket each get whole bits, so ids have gaps where the
/// number of cores is no power of two (Intel SDM 3, 9.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Widths {
    thread: u32,
    core: u32,
}

impl Widths {
    fn of(spec: CpuSpec) -> Self {
        Self { thread: bits(spec.threads), core: bits(spec.cores) }
    }

    /// Bits below the socket number.
    fn package(self) -> u32 {
        self.thread.saturating_add(self.core)
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.max(1).checked_next_power_of_two().map_or(32, u32::trailing_zeros)
}

/// The x2APIC id of the vCPU with this index (0 first; threads of a core are neighbours, then cores of a socket).
///
/// KVM takes a vCPU's APIC id from the id it is created with, so this is the number to create it with, and what the
/// ACPI tables name.
pub fn apic_id(index: u32, spec: CpuSpec) -> u32 {
    let (threads, cores) = (spec.threads.max(1), spec.cores.max(1));
    let widths = Widths::of(spec);
    let (thread, core, socket) = (index % threads, index / threads % cores, index / threads / cores);
    let shift = |value: u32, by: u32| value.checked_shl(by).unwrap_or(0);
    shift(socket, widths.package()) | shift(core, widths.thread) | thread
}

/// What KVM can virtualize of this host's processor. Asked once, since the answer takes long.
pub struct Supported {
    leaves: CpuId,
    deadline: bool,
}

impl Supported {
    /// Asks KVM.
    pub fn ask(kvm: &Kvm) -> Result<Self, Error> {
        let leaves = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let leaves = leaves.map_err(|error| Error::Supported(io::Error::from_raw_os_error(error.errno())))?;
        Ok(Self { leaves, deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
    }

    /// Width of the guest physical addresses that this host can map; 36, which every 64-bit processor has, where KVM does
    /// not say.
    pub fn physical_address_bits(&self) -> u8 {
        address_width(self.leaves.as_slice())
    }
}

/// What every vCPU of a machine has in common.
pub struct Template {
    supported: Supported,
    spec: CpuSpec,
}

impl Template {
    /// For a machine with this topology.
    pub fn new(supported: Supported, spec: CpuSpec) -> Result<Self, Error> {
        Shape::new(spec, 0, true)?;
        Ok(Self { supported, spec })
    }

    /// [`apic_id`] in this topology.
    pub fn apic_id(&self, index: u32) -> u32 {
        apic_id(index, self.spec)
    }

    /// CPUID of the vCPU with this index.
    pub fn for_vcpu(&self, index: u32) -> Result<CpuId, Error> {
        let shape = Shape::new(self.spec, index, self.supported.deadline)?;
        let entries = shape.apply(self.supported.leaves.as_slice());
        CpuId::from_entries(&entries).map_err(|_| Error::TooMany(entries.len()))
    }
}

const OLDEST_WIDTH: u8 = 36;
/// What nested paging with four levels reaches.
const FOUR_LEVELS: u8 = 48;

/// Leaf 0x8000_0008: the processor's width (7:0), and what KVM can map of it (23:16), which older KVMs leave at zero.
fn address_width(entries: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = entries.iter().find(|entry| entry.function == 0x8000_0008);
    match leaf.map(|entry| entry.eax.to_le_bytes()) {
        Some([processor, _, 0, _]) => processor.min(FOUR_LEVELS),
        Some([processor, _, mapped, _]) => processor.min(mapped),
        None => OLDEST_WIDTH,
    }
}

const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_PDCM: u32 = 1 << 15;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF7_EBX_SGX: u32 = 1 << 2;
const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
const LEAF_8000_0001_ECX_CMP_LEGACY: u32 = 1 << 1;
const LEAF_8000_0001_ECX_SVM: u32 = 1 << 2;

/// Bytes of a cache line in units of 8, where the host does not say.
const CLFLUSH_64: u32 = 8;

/// Leaves that describe the topology level by level, and the level types they name (SDM, leaf 0BH, ECX 15:8).
const EXTENDED_TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// One vCPU's CPUID, before it is made.
struct Shape {
    spec: CpuSpec,
    widths: Widths,
    apic_id: u32,
    /// KVM's local APIC has the TSC deadline mode.
    deadline: bool,
}

impl Shape {
    fn new(spec: CpuSpec, index: u32, deadline: bool) -> Result<Self, Error> {
        let widths = Widths::of(spec);
        let wide = widths.package().saturating_add(bits(spec.sockets));
        if [spec.sockets, spec.cores, spec.threads].contains(&0) || wide > 31 {
            return Err(Error::Topology(spec));
        }
        Ok(Self { spec, widths, apic_id: apic_id(index, spec), deadline })
    }

    fn apply(&self, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let amd = is_amd(supported);
        let highest = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        let has_pmu = supported.iter().any(|entry| entry.function == 0xa && entry.eax & 0xff != 0);
        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| !EXTENDED_TOPOLOGY.contains(&entry.function))
            // SGX has memory of its own, and none is given to guests.
            .filter(|entry| entry.function != 0x12)
            .copied()
            .collect();
        for entry in &mut entries {
            match entry.function {
                0x1 => self.features(entry, has_pmu),
                0x4 => self.intel_caches(entry),
                // MONITOR/MWAIT would keep a host CPU busy for a guest that sleeps.
                0x5 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                0x7 if entry.index == 0 => {
                    entry.ebx &= !LEAF7_EBX_SGX;
                    entry.ecx &= !LEAF7_ECX_SGX_LC;
                }
                0x8000_0001 => {
                    entry.ecx &= !(LEAF_8000_0001_ECX_SVM | LEAF_8000_0001_ECX_CMP_LEGACY);
                    if amd && self.logical() > 1 {
                        entry.ecx |= LEAF_8000_0001_ECX_CMP_LEGACY;
                    }
                }
                0x8000_0008 => entry.ecx = if amd { self.amd_size() } else { 0 },
                // Nested virtualization is not given.
                0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                0x8000_001d => self.amd_caches(entry),
                0x8000_001e => self.amd_ids(entry),
                _ => {}
            }
        }
        for leaf in EXTENDED_TOPOLOGY.into_iter().filter(|leaf| *leaf <= highest) {
            entries.extend(self.levels(leaf));
        }
        entries
    }

    /// Logical processors in a socket.
    fn logical(&self) -> u32 {
        self.spec.cores.saturating_mul(self.spec.threads)
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2, has_pmu: bool) {
        let line = match entry.ebx >> 8 & 0xff {
            0 => CLFLUSH_64,
            line => line,
        };
        // Both fields have eight bits; leaf 0xB is for what is larger.
        entry.ebx = (self.apic_id & 0xff) << 24 | self.logical().min(0xff) << 16 | line << 8;
        entry.ecx &= !(LEAF1_ECX_MONITOR | LEAF1_ECX_VMX | LEAF1_ECX_OSXSAVE | LEAF1_ECX_TSC_DEADLINE);
        entry.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
        if self.deadline {
            entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
        }
        if !has_pmu {
            entry.ecx &= !LEAF1_ECX_PDCM;
        }
        entry.edx &= !LEAF1_EDX_HTT;
        if self.logical() > 1 {
            entry.edx |= LEAF1_EDX_HTT;
        }
    }

    /// Leaf 4: how many APIC ids share each cache (25:14) and how many core ids a socket has (31:26), both minus one.
    fn intel_caches(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 0x7;
        let sharing = if level >= 3 { self.widths.package() } else { self.widths.thread };
        entry.eax &= 0x3fff;
        entry.eax |= low_mask(sharing).min(0xfff) << 14 | low_mask(self.widths.core).min(0x3f) << 26;
    }

    /// Leaf 0x8000_001D: logical processors that share each cache, minus one (25:14).
    fn amd_caches(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 0x7;
        let sharing = if level >= 3 { self.logical() } else { self.spec.threads };
        entry.eax &= 0x3fff;
        entry.eax |= (sharing.saturating_sub(1)).min(0xfff) << 14;
    }

    /// Leaf 0x8000_001E: APIC id, core and threads a core, node (one a socket).
    fn amd_ids(&self, entry: &mut kvm_cpuid_entry2) {
        let core = self.apic_id >> self.widths.thread & low_mask(self.widths.core);
        let node = self.apic_id.checked_shr(self.widths.package()).unwrap_or(0);
        entry.eax = self.apic_id;
        entry.ebx = core & 0xff | (self.spec.threads.saturating_sub(1) & 0xff) << 8;
        entry.ecx = node & 0xff;
        entry.edx = 0;
    }

    /// Leaf 0x8000_0008 ECX: logical processors of a socket minus one, and how many low APIC id bits number them.
    fn amd_size(&self) -> u32 {
        (self.logical().saturating_sub(1)).min(0xff) | (self.widths.package() & 0xf) << 12
    }

    /// Leaves 0xB and 0x1F: for each level the bits to shift off, and the logical processors within.
    fn levels(&self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        let levels = [
            (LEVEL_THREAD, self.widths.thread, self.spec.threads),
            (LEVEL_CORE, self.widths.package(), self.logical()),
            (0, 0, 0),
        ];
        let mut index = 0;
        levels.map(|(level, shift, within)| {
            let entry = kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: within & 0xffff,
                ecx: level << 8 | index,
                edx: self.apic_id,
                ..Default::default()
            };
            index += 1;
            entry
        })
    }
}

/// The lowest `width` bits.
fn low_mask(width: u32) -> u32 {
    1_u32.checked_shl(width).unwrap_or(0).wrapping_sub(1)
}

/// "AuthenticAMD" or "HygonGenuine" in leaf 0.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else { return false };
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    name == b"AuthenticAMD" || name == b"HygonGenuine"
}

#[cfg(test)]
mod tests;
