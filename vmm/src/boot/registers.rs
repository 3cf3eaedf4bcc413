//! The state in which the boot vCPU enters the kernel, and what firmware would have left behind.

use std::io;

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use super::{Entry, Error, Protocol, at, write};

/// Selectors as the Linux 64-bit boot protocol wants them (`__BOOT_CS`, `__BOOT_DS`); PVH does not care.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

/// Page table entries: present, writable; in a directory also "this is a 2 MiB page".
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// MSR_IA32_MISC_ENABLE, bit 0: fast string operations (Intel SDM 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// HWCR, bit 24: the TSC counts at the frequency of P0 (AMD PPR, MSRC001_0015). Linux on AMD complains without it.
const HARDWARE_CONFIGURATION: u32 = 0xc001_0015;
const TSC_AT_P0: u64 = 1 << 24;
/// MSR_MTRRdefType: MTRRs on, and write-back where none says otherwise (Intel SDM 3, 13.11.2.1).
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
/// MSR_MTRRphysMask0 to 7, every other MSR: KVM has eight variable ranges. They are not in its list of MSRs to save, so a
/// guest reset would leave them as they were.
const MTRR_MASKS: std::ops::RangeInclusive<u32> = 0x201..=0x20f;

/// A flat segment as KVM wants it and as the descriptor table has it.
fn segment(selector: u16, protocol: Protocol) -> kvm_segment {
    let long = protocol == Protocol::Linux64;
    let base = kvm_segment { limit: 0xffff_ffff, selector, present: 1, s: 1, g: 1, ..Default::default() };
    match selector {
        // Execute/read, accessed.
        CODE => kvm_segment { type_: 0xb, l: u8::from(long), db: u8::from(!long), ..base },
        // Read/write, accessed.
        DATA => kvm_segment { type_: 0x3, db: 1, ..base },
        // A busy TSS: the processor must have one, and nothing is ever read from it.
        _ => kvm_segment { limit: 0x67, type_: 0xb, s: 0, g: 0, ..base },
    }
}

/// The eight bytes of a segment in a descriptor table (Intel SDM 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 0 { segment.limit } else { segment.limit >> 12 });
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let base = segment.base;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | flags << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Writes what [`setup_registers`] will point the vCPU at: the descriptor table, and for long mode the page tables.
pub(super) fn write_tables(memory: &GuestMemoryMmap<()>, protocol: Protocol) -> Result<(), Error> {
    let [code, data, task] = [CODE, DATA, TASK].map(|selector| descriptor(&segment(selector, protocol)));
    for (index, descriptor) in (0..).zip([0, 0, code, data, task]) {
        write(memory, "the descriptor table", descriptor, at::GDT + index * 8)?;
    }
    if protocol == Protocol::Linux64 {
        write_page_tables(memory)?;
    }
    Ok(())
}

/// One PML4, one table of directory pointers, four directories: 4 GiB in 2 MiB pages, address = physical address.
fn write_page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    const DIRECTORIES: u64 = 4;
    let pointers = at::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    let put = |entries: &mut dyn Iterator<Item = u64>, address| {
        let slots = (0..512).map(|i| address + i * 8);
        slots
            .zip(entries.chain(std::iter::repeat(0)))
            .try_for_each(|(slot, entry)| write(memory, "the page tables", entry, slot))
    };
    put(&mut std::iter::once(pointers | PRESENT_WRITABLE), at::PAGE_TABLES)?;
    put(&mut (0..DIRECTORIES).map(|i| (directories + i * PAGE) | PRESENT_WRITABLE), pointers)?;
    for directory in 0..DIRECTORIES {
        let first = directory << 30;
        let mut pages = (0..512).map(|i| first | i << 21 | LARGE | PRESENT_WRITABLE);
        put(&mut pages, directories + directory * PAGE)?;
    }
    Ok(())
}

/// Takes the boot vCPU to the kernel's entry; the other vCPUs wait for the kernel's INIT and start-up IPIs.
///
/// For a vCPU that has just been made or reset; general, segment, control and floating-point registers are all set.
pub fn setup_registers(vcpu: &VcpuFd, entry: &Entry) -> Result<(), Error> {
    let failed = |what| move |error: kvm_ioctls::Error| failed(what, &error);
    let mut sregs = vcpu.get_sregs().map_err(failed("segment registers"))?;
    let data = segment(DATA, entry.protocol);
    sregs.cs = segment(CODE, entry.protocol);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TASK, entry.protocol);
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    (sregs.gdt.base, sregs.gdt.limit) = (at::GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    match entry.protocol {
        Protocol::Pvh => (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0, 0),
        Protocol::Linux64 => {
            (sregs.cr0, sregs.cr3) = (CR0_PE | CR0_ET | CR0_PG, at::PAGE_TABLES);
            (sregs.cr4, sregs.efer) = (CR4_PAE, EFER_LME | EFER_LMA);
        }
    }
    vcpu.set_sregs(&sregs).map_err(failed("segment registers"))?;

    let mut regs = kvm_regs { rip: entry.rip, rflags: RFLAGS, ..Default::default() };
    match entry.protocol {
        Protocol::Pvh => regs.rbx = at::START_INFO,
        Protocol::Linux64 => regs.rsi = at::ZERO_PAGE,
    }
    vcpu.set_regs(&regs).map_err(failed("general registers"))?;
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(failed("floating-point registers"))
}

/// Leaves a vCPU as firmware would, for direct boot: every vCPU needs it, once it has its CPUID, before it first runs and
/// after a reset.
///
/// With MTRRs off, Linux does without PAT, and a guest with a passed-through device that is not coherent runs uncached;
/// without fast strings it copies by single words.
pub fn setup_firmware_state(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    // What KVM does not let us set stops the list, and is then one that this machine's processor does not have.
    let with = |entries: &[kvm_msr_entry]| {
        Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
    };
    let mut old = with(&[entry(MISC_ENABLE, 0), entry(HARDWARE_CONFIGURATION, 0)])?;
    let have = vcpu.get_msrs(&mut old)?;
    let add = |index| if index == MISC_ENABLE { FAST_STRINGS } else { TSC_AT_P0 };
    let changed = old.as_slice().iter().take(have).map(|msr| entry(msr.index, msr.data | add(msr.index)));
    let ranges_off = MTRR_MASKS.step_by(2).map(|index| entry(index, 0));
    let default = std::iter::once(entry(MTRR_DEFAULT_TYPE, MTRR_ON_WRITE_BACK));
    let wanted: Vec<_> = default.chain(ranges_off).chain(changed).collect();
    let set = vcpu.set_msrs(&with(&wanted)?)?;
    if set < wanted.len() {
        tracing::debug!("KVM set {set} of the {} MSRs that firmware sets", wanted.len());
    }
    Ok(())
}

/// Memory types as they are at power-on, MTRRs off: KVM does not list them as state to be kept, so a guest reset would leave
/// them as they were.
pub fn clear_memory_types(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let cleared = std::iter::once(MTRR_DEFAULT_TYPE).chain(MTRR_MASKS.step_by(2));
    let cleared: Vec<_> = cleared.map(|index| kvm_msr_entry { index, ..Default::default() }).collect();
    let msrs = Msrs::from_entries(&cleared).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    vcpu.set_msrs(&msrs).map(|_| ())
}

fn failed(what: &'static str, error: &kvm_ioctls::Error) -> Error {
    Error::Registers { what, source: io::Error::from_raw_os_error(error.errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_leaves_mtrrs_and_fast_strings_on() {
        let Some(kvm) = crate::boot::tests::kvm() else { return };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        // What a guest may have left.
        let left = [(0x201, 0x800), (MTRR_DEFAULT_TYPE, 0)].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
        assert_eq!(vcpu.set_msrs(&Msrs::from_entries(&left).unwrap()).unwrap(), 2);
        setup_firmware_state(&vcpu).unwrap();
        let asked = [MTRR_DEFAULT_TYPE, MISC_ENABLE, 0x201]
            .map(|index| kvm_msr_entry { index, ..Default::default() });
        let mut msrs = Msrs::from_entries(&asked).unwrap();
        assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 3);
        let [mtrr, misc, mask] = [0, 1, 2].map(|index| msrs.as_slice()[index].data);
        assert_eq!((mtrr, misc & FAST_STRINGS, mask), (MTRR_ON_WRITE_BACK, FAST_STRINGS, 0));
    }

    #[test]
    fn descriptors_have_the_usual_bytes() {
        // The values that every boot loader writes for flat segments.
        assert_eq!(descriptor(&segment(CODE, Protocol::Linux64)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(CODE, Protocol::Pvh)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(DATA, Protocol::Pvh)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&segment(TASK, Protocol::Pvh)), 0x0000_8b00_0000_0067);
    }
}
