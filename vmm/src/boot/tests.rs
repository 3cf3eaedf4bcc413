use std::io::Write;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::cpuid::{Supported, Template};
use crate::memory::GuestRam;
use crate::spec::MemorySpec;

const MIB: u64 = 1 << 20;
const RSDP: u64 = 0xE_0000;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&MemorySpec { size, hugepages: None, prefault: false }).unwrap()
}

/// A segment of an ELF file: type, physical address, content, and how much memory it takes.
type Segment<'a> = (u32, u64, &'a [u8], u64);

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// A 64-bit x86 ELF file: header, program headers, then the segments' content.
fn elf(segments: &[Segment<'_>]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    bytes.extend([MIB, 64, 0].map(u64::to_le_bytes).as_flattened());
    let count = u16::try_from(segments.len()).unwrap();
    bytes.extend([0, 0, 64, 56, count, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, address, content, size) in segments {
        bytes.extend([*kind, 7].map(u32::to_le_bytes).as_flattened());
        let length = content.len() as u64;
        bytes.extend([offset, *address, *address, length, *size, 4].map(u64::to_le_bytes).as_flattened());
        offset += length;
    }
    segments.iter().for_each(|segment| bytes.extend(segment.2));
    bytes
}

/// Notes with one of another owner first, then the PVH entry.
fn pvh_note(entry: u32) -> Vec<u8> {
    let other = [&[5, 0, 0, 0, 3, 0, 0, 0, 18, 0, 0, 0][..], b"Other\0\0\0", &[1, 2, 3, 0]].concat();
    let xen = [&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &entry.to_le_bytes()].concat();
    [other, xen].concat()
}

fn pvh_kernel(code: &[u8]) -> Vec<u8> {
    elf(&[(NOTE, 0, &pvh_note(0x10_0000), 0), (LOAD, MIB, code, 0x3000)])
}

/// A bzImage for boot protocol 2.15 with one setup sector; `code` is its 64-bit entry, at 0x200 of the payload.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let payload = [&[0x90; 0x200][..], code].concat();
    put(0x1f1, &[1]);
    put(0x1f4, &u32::try_from(payload.len() / 16).unwrap().to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]); // the header ends at 0x26c
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1 | 0x80]); // loaded high, may use heap
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21, 1 | 2, 0]); // relocatable, min_alignment, 64-bit, above 4 GiB
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x80_0000_u32.to_le_bytes()); // init_size
    bytes.extend(payload);
    bytes
}

fn load_into(ram: &GuestRam, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<Entry, Error> {
    let mut initrd = initrd.map(file);
    load(ram.memory(), ram.size(), &mut file(kernel), initrd.as_mut(), cmdline, RSDP)
}

fn read<T: vm_memory::ByteValued>(ram: &GuestRam, address: u64) -> T {
    ram.memory().read_obj(GuestAddress(address)).unwrap()
}

fn text(ram: &GuestRam, address: u64) -> String {
    let mut bytes = vec![0; 4096];
    ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    String::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
}

fn message(result: Result<Entry, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_pvh_kernel_finds_all_it_needs() {
    let ram = ram(16 * MIB);
    let initrd = vec![7; 5000];

    let entry = load_into(&ram, &pvh_kernel(b"the code"), Some(&initrd), "console=ttyS0").unwrap();

    assert_eq!(entry, Entry { protocol: Protocol::Pvh, rip: MIB });
    assert_eq!(text(&ram, MIB), "the code");
    let info: hvm_start_info = read(&ram, at::START_INFO);
    assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, RSDP));
    assert_eq!(text(&ram, info.cmdline_paddr), "console=ttyS0");
    let module: hvm_modlist_entry = read(&ram, info.modlist_paddr);
    assert_eq!((info.nr_modules, module.size), (1, 5000));
    assert_eq!(module.paddr, 16 * MIB - 2 * 4096);
    assert_eq!(read::<[u8; 4]>(&ram, module.paddr + 4996), [7; 4]);
    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|index| read::<hvm_memmap_table_entry>(&ram, info.memmap_paddr + index * 24))
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (MIB, 15 * MIB, 1),
            (layout::ECAM_START, layout::ECAM_SIZE, 2)
        ]
    );
}

#[test]
fn a_reset_finds_the_kernels_empty_data_empty() {
    let ram = ram(16 * MIB);
    let kernel = pvh_kernel(b"code");
    load_into(&ram, &kernel, None, "").unwrap();
    let empty = MIB + 4..MIB + 0x3000;
    for address in [empty.start, MIB + 0x1fff, empty.end - 1] {
        ram.memory().write_obj(9_u8, GuestAddress(address)).unwrap();
    }
    ram.memory().write_obj(9_u8, GuestAddress(empty.end)).unwrap();

    load_into(&ram, &kernel, None, "").unwrap();

    assert!(empty.clone().all(|address| read::<u8>(&ram, address) == 0));
    assert_eq!(read::<u8>(&ram, empty.end), 9, "what is not the kernel's stays");
    assert_eq!(read::<hvm_start_info>(&ram, at::START_INFO).nr_modules, 0);
}

#[test]
fn empty_data_takes_no_memory_at_first() {
    use std::os::unix::fs::MetadataExt;
    let ram = ram(64 * MIB);
    let kernel = elf(&[(NOTE, 0, &pvh_note(0x10_0000), 0), (LOAD, MIB, b"code", 32 * MIB)]);
    load_into(&ram, &kernel, None, "").unwrap();
    let used = ram.regions().next().unwrap().file.metadata().unwrap().blocks() * 512;
    assert!(used < MIB, "{used}");
}

#[test]
fn a_bzimage_finds_all_it_needs() {
    let ram = ram(3 << 30);
    let initrd = vec![7; 5000];

    let entry = load_into(&ram, &bzimage(b"\xf4"), Some(&initrd), "quiet").unwrap();

    assert_eq!(entry, Entry { protocol: Protocol::Linux64, rip: 0x100_0200 });
    assert_eq!(read::<u8>(&ram, entry.rip), 0xf4);
    let params: boot_params = read(&ram, at::ZERO_PAGE);
    let header = params.hdr;
    assert_eq!((header.type_of_loader, header.loadflags), (0xff, 1));
    assert_eq!({ params.acpi_rsdp_addr }, RSDP);
    assert_eq!(({ header.header }, { header.code32_start }), (0x5372_6448, 0x100_0000));
    assert_eq!(text(&ram, header.cmd_line_ptr.into()), "quiet");
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x8000_0000 - 2 * 4096, 5000));
    assert_eq!(read::<u8>(&ram, u64::from(header.ramdisk_image) + 4999), 7);
    let map: Vec<_> = params.e820_table.iter().take(params.e820_entries.into()).map(|e| e.addr).collect();
    assert_eq!(map, [0, 0x9_fc00, MIB, layout::ECAM_START, 4 << 30]);
    // The zero page is a clean one.
    assert_eq!((params.sentinel, params.screen_info.orig_video_isVGA), (0, 0));
}

#[test]
fn a_relocatable_kernel_moves_down_in_a_small_guest() {
    let ram = ram(16 * MIB);
    let entry = load_into(&ram, &bzimage(b"\xf4"), None, "").unwrap();
    assert_eq!(entry.rip, 2 * MIB + 0x200);
    let mut fixed = bzimage(b"\xf4");
    fixed[0x234] = 0;
    assert!(matches!(load_into(&ram, &fixed, None, ""), Err(Error::TooLarge { what: "kernel", .. })));
}

#[test]
fn fields_beyond_the_header_are_not_taken_over() {
    let ram = ram(64 * MIB);
    let mut kernel = bzimage(b"\xf4");
    kernel[0x201] = 0x64 - 2; // the header ends at 0x264: no handover_offset
    kernel[0x264..0x26c].fill(0xee);
    load_into(&ram, &kernel, None, "").unwrap();
    let header = read::<boot_params>(&ram, at::ZERO_PAGE).hdr;
    assert_eq!(
        ({ header.init_size }, { header.handover_offset }, { header.kernel_info_offset }),
        (0x80_0000, 0, 0)
    );
}

#[test]
fn an_initrd_stays_below_what_the_kernel_can_reach() {
    let ram = ram(256 * MIB);
    let mut kernel = bzimage(b"\xf4");
    kernel[0x22c..0x230].copy_from_slice(&0x3ff_ffff_u32.to_le_bytes());
    load_into(&ram, &kernel, Some(&[1; 4096]), "").unwrap();
    let header = read::<boot_params>(&ram, at::ZERO_PAGE).hdr;
    assert_eq!({ header.ramdisk_image }, 0x3ff_f000);
}

#[test]
fn large_files_arrive_whole_with_and_without_a_file_behind_guest_memory() {
    let content: Vec<u8> = (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let kernel = elf(&[
        (NOTE, 0, &pvh_note(0x10_0000), 0),
        (LOAD, MIB + 0x123, &content, 4 * MIB),
        (LOAD, MIB, b"code", 4),
    ]);
    let with = ram(64 * MIB);
    let without = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    for memory in [with.memory(), &without] {
        load(memory, 64 * MIB, &mut file(&kernel), Some(&mut file(&content)), "", RSDP).unwrap();
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(at::MODULES)).unwrap();
        for address in [MIB + 0x123, module.paddr] {
            let mut there = vec![0; content.len()];
            memory.read_slice(&mut there, GuestAddress(address)).unwrap();
            assert!(there == content, "at {address:#x}");
        }
    }
}

#[test]
fn an_empty_initrd_is_none() {
    let ram = ram(64 * MIB);
    load_into(&ram, &pvh_kernel(b""), Some(&[]), "").unwrap();
    let info: hvm_start_info = read(&ram, at::START_INFO);
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
}

#[test]
fn files_that_are_no_kernel_are_named() {
    let ram = ram(64 * MIB);
    for (bytes, expected) in [
        (&b""[..], "the file is empty"),
        (&[0x1f, 0x8b, 8, 0], "gzip-compressed"),
        (b"MZ and more", "an EFI program"),
        (b"hello", "neither a bzImage nor an ELF file"),
    ] {
        let said = message(load_into(&ram, bytes, None, ""));
        assert!(said.contains(expected) && said.contains("vmlinuz"), "{said}");
    }
}

/// A valid kernel, a change that breaks it, and what the message must say.
#[test]
fn broken_kernels_are_explained() {
    let ram = ram(64 * MIB);
    type Change = fn(&mut Vec<u8>);
    let cases: [(Vec<u8>, Change, &str); 14] = [
        (bzimage(b"\xf4"), |k| k[0x211] = 0, "is a zImage"),
        (bzimage(b"\xf4"), |k| k[0x206] = 0x0a, "boot protocol 2.10"),
        (bzimage(b"\xf4"), |k| k[0x236] = 0, "is a 32-bit kernel"),
        (bzimage(b"\xf4"), |k| k.truncate(0x220), "ends within its setup header"),
        (bzimage(b"\xf4"), |k| k.truncate(1024 + 100), "is 1124 bytes long, and its header promises 1536"),
        (
            bzimage(b"\xf4"),
            |k| k[0x263] = 0x7f,
            "takes 2040 MiB of guest memory below 2 GiB, and 63 MiB are free",
        ),
        (pvh_kernel(b"code"), |k| k.truncate(40), "ends within its ELF header"),
        (pvh_kernel(b"code"), |k| k.truncate(100), "program headers lie beyond"),
        (pvh_kernel(b"code"), |k| k.truncate(k.len() - 1), "segments lie beyond"),
        (pvh_kernel(b"code"), |k| k[18] = 3, "for another machine"),
        (pvh_kernel(b"code"), |k| k[4] = 1, "for another machine"),
        (pvh_kernel(b"code"), |k| k[54] = 32, "program headers of 32 bytes"),
        (pvh_kernel(b"code"), |k| k[64] = 0, "without a PVH entry note"),
        (pvh_kernel(b"code"), |k| k[64 + 56 + 43] = 0x10, "takes 258 MiB of guest memory"),
    ];
    for (mut kernel, change, expected) in cases {
        load_into(&ram, &kernel, None, "").unwrap();
        change(&mut kernel);
        let said = message(load_into(&ram, &kernel, None, ""));
        assert!(said.contains(expected), "expected {expected:?} in {said:?}");
    }
}

#[test]
fn a_pvh_entry_outside_of_the_kernel_is_refused() {
    let kernel = elf(&[(NOTE, 0, &pvh_note(0x20_0000), 0), (LOAD, MIB, b"code", 4)]);
    let said = message(load_into(&ram(16 * MIB), &kernel, None, ""));
    assert!(said.contains("entry 0x200000 lies outside"), "{said}");
}

#[test]
fn a_kernel_below_one_mib_is_refused() {
    let kernel = elf(&[(NOTE, 0, &pvh_note(0x8000), 0), (LOAD, 0x8000, b"code", 4)]);
    let said = message(load_into(&ram(16 * MIB), &kernel, None, ""));
    assert!(said.contains("wants to lie at 0x8000"), "{said}");
}

#[test]
fn too_large_an_initrd_is_explained() {
    let ram = ram(16 * MIB);
    for kernel in [pvh_kernel(b"code"), bzimage(b"\xf4")] {
        let said = message(load_into(&ram, &kernel, Some(&vec![0; 15 << 20]), ""));
        assert!(said.contains("initial RAM disk does not fit: it takes 15 MiB"), "{said}");
    }
}

#[test]
fn command_lines_are_checked() {
    let ram = ram(64 * MIB);
    for kernel in [pvh_kernel(b"code"), bzimage(b"\xf4")] {
        assert!(message(load_into(&ram, &kernel, None, "a\0b")).contains("NUL character at byte 1"));
        let long = "x".repeat(2048);
        assert!(
            message(load_into(&ram, &kernel, None, &long))
                .contains("is 2048 bytes long, and this kernel takes 2047")
        );
        load_into(&ram, &kernel, None, &long[1..]).unwrap();
        assert_eq!(text(&ram, at::COMMAND_LINE), long[1..]);
        // A shorter one leaves nothing of the longer one.
        load_into(&ram, &kernel, None, "short").unwrap();
        assert_eq!(text(&ram, at::COMMAND_LINE), "short");
    }
    let mut little = bzimage(b"\xf4");
    little[0x238..0x23c].copy_from_slice(&255_u32.to_le_bytes());
    assert!(message(load_into(&ram, &little, None, &"x".repeat(256))).contains("takes 255"));
}

#[test]
fn guests_without_memory_above_one_mib_are_refused() {
    let said = message(load_into(&ram(MIB), &pvh_kernel(b"code"), None, ""));
    assert!(said.contains("give the guest more memory"), "{said}");
}

#[test]
fn long_mode_finds_the_first_four_gib_mapped() {
    let ram = ram(64 * MIB);
    load_into(&ram, &bzimage(b"\xf4"), None, "").unwrap();
    // Walks the tables as the processor does.
    let walk = |address: u64| {
        let mut table = at::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let entry: u64 = read(&ram, table + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            if entry & 0x80 != 0 {
                return Some(entry & !0xfff | address & 0x1f_ffff);
            }
            table = entry & !0xfff;
        }
        None
    };
    for address in [0, 0x7000, 0x10_0200, 0x3fff_ffff, 0x8000_0000, 0xffff_ffff] {
        assert_eq!(walk(address), Some(address), "{address:#x}");
    }
    assert_eq!(walk(1 << 32), None);
}

/// KVM, or None after having said why not; `REQUIRE=kvm` does not let a test go without.
pub(crate) fn kvm() -> Option<Kvm> {
    Kvm::new()
        .inspect_err(|error| {
            let list = std::env::var("REQUIRE").unwrap_or_default();
            let required = list.split(',').any(|suite| suite == "kvm" || suite == "all");
            assert!(!required, "REQUIRE says kvm, and /dev/kvm does not open: {error}");
            eprintln!("skipped: /dev/kvm does not open: {error}");
        })
        .ok()
}

/// Loads a kernel, runs its boot vCPU until HLT, and answers what it wrote to port 0x10.
fn run(kernel: &[u8], cmdline: &str) -> Option<Vec<u32>> {
    let kvm = kvm()?;
    let ram = ram(64 * MIB);
    let vm = kvm.create_vm().unwrap();
    for (slot, region) in (0..).zip(ram.memory().iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            flags: 0,
        };
        // SAFETY: `ram` is dropped after `vm` at the end of this function, so the memory stays mapped.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let one = crate::spec::CpuSpec { sockets: 1, cores: 1, threads: 1 };
    vcpu.set_cpuid2(&Template::new(Supported::ask(&kvm).unwrap(), one).unwrap().for_vcpu(0).unwrap())
        .unwrap();
    let entry = load_into(&ram, kernel, None, cmdline).unwrap();
    setup_registers(&vcpu, &entry).unwrap();
    let mut written = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0x10, data) => written.push(u32::from_le_bytes(data.try_into().unwrap())),
            VcpuExit::Hlt => return Some(written),
            exit => panic!("{exit:?} after {written:x?}"),
        }
    }
}

#[test]
fn kvm_enters_a_pvh_kernel() {
    let code = [
        &b"\x66\xba\x10\x00"[..],    // mov dx, 0x10
        b"\x8b\x03\xef",             // mov eax, [ebx]; out dx, eax: the start info's magic
        b"\x0f\x20\xc0\xef",         // mov eax, cr0
        b"\x0f\x20\xe0\xef",         // mov eax, cr4
        b"\x66\xb8\x18\x00\x8e\xd8", // mov ax, 0x18; mov ds, ax: the table is a real one
        b"\x8b\x43\x18\x8b\x00\xef", // mov eax, [ebx + 24]; mov eax, [eax]: the command line
        b"\xf4",
    ]
    .concat();
    let Some(written) = run(&pvh_kernel(&code), "abcd") else { return };
    assert_eq!(written, [0x336e_c578, 0x11, 0, u32::from_le_bytes(*b"abcd")]);
}

#[test]
fn kvm_enters_a_linux_kernel() {
    let code = [
        &b"\x66\xba\x10\x00"[..],
        b"\x8b\x86\x02\x02\x00\x00\xef", // mov eax, [rsi + 0x202]; out dx, eax: the header's magic
        b"\x66\xb8\x18\x00\x8e\xd8",     // mov ax, 0x18; mov ds, ax
        b"\x8b\x86\x28\x02\x00\x00\x8b\x00\xef", // mov eax, [rsi + 0x228]; mov eax, [rax]: the command line
        b"\x8c\xc8\xef",                 // mov eax, cs
        b"\x48\x31\xc0\x48\xff\xc8\x48\xc1\xe8\x3c\xef", // rax = -1 >> 60: 64-bit registers
        b"\xf4",
    ]
    .concat();
    let Some(written) = run(&bzimage(&code), "abcd") else { return };
    assert_eq!(written, [0x5372_6448, u32::from_le_bytes(*b"abcd"), 0x10, 0xf]);
}

/// Bytes of a valid kernel with some of them changed, mostly in its headers, and maybe cut off.
fn mutated(kernel: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = kernel.len();
    let headers = 0x270.min(length);
    let interesting = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff)];
    let change = (prop_oneof![4 => 0..headers, 1 => 0..length], interesting);
    (prop::collection::vec(change, 0..12), prop::option::weighted(0.2, 0..length)).prop_map(
        move |(changes, cut)| {
            let mut kernel = kernel.clone();
            changes.into_iter().for_each(|(at, byte)| kernel[at] = byte);
            kernel.truncate(cut.unwrap_or(length));
            kernel
        },
    )
}

proptest! {
    #[test]
    fn a_mutated_kernel_is_loaded_or_refused(
        kernel in prop_oneof![mutated(pvh_kernel(b"code and data")), mutated(bzimage(&[0x90; 700]))],
        initrd in any::<bool>(),
    ) {
        let ram = ram(24 * MIB);
        if let Ok(entry) = load_into(&ram, &kernel, initrd.then_some(&[3; 10_000]), "quiet") {
            prop_assert!((MIB..24 * MIB).contains(&entry.rip));
            // Whatever the file said, the tables that the vCPU starts with are whole.
            prop_assert_eq!(read::<u64>(&ram, at::GDT), 0);
            prop_assert_eq!(text(&ram, at::COMMAND_LINE), "quiet");
        }
    }

    #[test]
    fn notes_of_any_kind_are_read(notes in prop::collection::vec(any::<u8>(), 0..100)) {
        let kernel = elf(&[(NOTE, 0, &notes, 0), (LOAD, MIB, b"code", 4)]);
        prop_assert!(load_into(&ram(4 * MIB), &kernel, None, "").is_err());
    }
}
