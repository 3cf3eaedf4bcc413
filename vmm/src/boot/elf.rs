//! An ELF kernel by PVH, Xen's "x86/HVM direct boot ABI" (Xen, docs/misc/pvh.pandoc).

use std::fs::File;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::fill::fill;
use super::{COMMAND_LINE_MAX, Entry, Error, KERNEL, Protocol, Request, at, e820, initrd, read_at};

/// More program headers than this no kernel has (Linux: 5).
const MAX_PROGRAM_HEADERS: u16 = 128;
/// More bytes of notes than this no kernel has (Linux: 500).
const MAX_NOTES: u64 = 64 << 10;
/// Type of the note that tells the 32-bit physical entry address.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What of the file goes where; checked against the file's length.
struct Plan {
    segments: Vec<Elf64_Phdr>,
    entry: u32,
}

/// Loads it and writes the start info and what it points to.
pub(super) fn load(mut request: Request<'_>, kernel: &mut File, length: u64) -> Result<Entry, Error> {
    let plan = plan(kernel, length)?;
    let end = check_fit(&plan, request.low_end())?;
    // First what is empty: where segments touch the same page or overlap, content wins.
    for segment in &plan.segments {
        zero(&request, segment.p_paddr + segment.p_filesz, segment.p_memsz - segment.p_filesz)?;
    }
    for segment in &plan.segments {
        fill(&request, KERNEL, kernel, segment.p_offset, segment.p_paddr, segment.p_filesz)?;
    }
    let free = end..request.low_end();
    let initrd = initrd::load(&mut request, free)?;
    request.write_command_line(COMMAND_LINE_MAX)?;
    write_start_info(&request, initrd)?;
    Ok(Entry { protocol: Protocol::Pvh, rip: u64::from(plan.entry) })
}

fn plan(kernel: &mut File, length: u64) -> Result<Plan, Error> {
    let header = header(kernel)?;
    let mut segments = Vec::new();
    let mut entry = None;
    for index in 0..header.e_phnum {
        let mut segment = Elf64_Phdr::default();
        let size = size_of::<Elf64_Phdr>() as u64;
        let offset = header.e_phoff.checked_add(u64::from(index) * size);
        let offset = offset.filter(|o| o.checked_add(size).is_some_and(|end| end <= length));
        let offset = offset.ok_or_else(|| truncated("program headers", length))?;
        read_at(kernel, offset, segment.as_mut_slice())?;
        match segment.p_type {
            PT_LOAD => segments.extend(check_segment(&segment, length)?),
            PT_NOTE => entry = entry.or(note(kernel, &segment, length)?),
            _ => {}
        }
    }
    let Some(entry) = entry else {
        return Err(Error::Unsupported(
            "it is an ELF file without a PVH entry note; use the bzImage of the same kernel, or build it with CONFIG_PVH=y"
                .into(),
        ));
    };
    let within = |s: &Elf64_Phdr| (s.p_paddr..s.p_paddr + s.p_memsz).contains(&u64::from(entry));
    if !segments.iter().any(within) {
        return Err(Error::Damaged(format!("its PVH entry {entry:#x} lies outside of what it loads")));
    }
    Ok(Plan { segments, entry })
}

fn header(kernel: &mut File) -> Result<Elf64_Ehdr, Error> {
    let mut header = Elf64_Ehdr::default();
    if read_at(kernel, 0, header.as_mut_slice())? < size_of::<Elf64_Ehdr>() {
        return Err(Error::Damaged("it ends within its ELF header".into()));
    }
    let ident = |index: usize| header.e_ident.get(index).copied();
    if ident(EI_CLASS) != Some(ELFCLASS64) || header.e_machine != EM_X86_64 {
        return Err(Error::Unsupported(
            "it is an ELF file for another machine; use a 64-bit x86 (x86_64) kernel".into(),
        ));
    }
    if ident(EI_DATA) != Some(ELFDATA2LSB) {
        return Err(Error::Damaged("its ELF header claims big-endian x86".into()));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_PROGRAM_HEADERS {
        let (count, size) = (header.e_phnum, header.e_phentsize);
        return Err(Error::Damaged(format!("its ELF header claims {count} program headers of {size} bytes")));
    }
    Ok(header)
}

fn truncated(what: &str, length: u64) -> Error {
    Error::Damaged(format!("it is {length} bytes long, and its {what} lie beyond that"))
}

/// The segment when it takes memory.
fn check_segment(segment: &Elf64_Phdr, length: u64) -> Result<Option<Elf64_Phdr>, Error> {
    if segment.p_memsz == 0 && segment.p_filesz == 0 {
        return Ok(None);
    }
    let end_in_file = segment.p_offset.checked_add(segment.p_filesz);
    if end_in_file.is_none_or(|end| end > length) {
        return Err(truncated("segments", length));
    }
    let address = segment.p_paddr;
    if segment.p_filesz > segment.p_memsz || address.checked_add(segment.p_memsz).is_none() {
        return Err(Error::Damaged(format!("its segment for address {address:#x} has impossible sizes")));
    }
    Ok(Some(*segment))
}

/// The PVH entry, when these notes have it.
fn note(kernel: &mut File, segment: &Elf64_Phdr, length: u64) -> Result<Option<u32>, Error> {
    if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > length) {
        return Err(truncated("notes", length));
    }
    if segment.p_filesz > MAX_NOTES {
        return Err(Error::Damaged(format!("it claims {} bytes of notes", segment.p_filesz)));
    }
    let mut notes = vec![0_u8; usize::try_from(segment.p_filesz).unwrap_or(0)];
    read_at(kernel, segment.p_offset, &mut notes)?;
    Ok(pvh_entry(&notes))
}

/// Walks notes (ELF, "Note Section"): three words (name size, descriptor size, type), then both, padded to four.
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let word = |index: usize| {
            let bytes = notes.get(index * 4..index * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (name_size, size, kind) = (word(0)? as usize, word(1)? as usize, word(2)?);
        let name = notes.get(12..)?.get(..name_size)?;
        let descriptor = notes.get(12..)?.get(name_size.next_multiple_of(4)..)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return Some(u32::from_le_bytes(descriptor.get(..size)?.get(..4)?.try_into().ok()?));
        }
        notes = descriptor.get(size.next_multiple_of(4)..)?;
    }
}

/// Guest RAM has place for all segments; one past the highest of them.
fn check_fit(plan: &Plan, low_end: u64) -> Result<u64, Error> {
    let mut highest = at::KERNEL_MIN;
    for segment in &plan.segments {
        let address = segment.p_paddr;
        if address < at::KERNEL_MIN {
            return Err(Error::Unsupported(format!(
                "it wants to lie at {address:#x}, and this machine loads kernels from 1 MiB up; link it higher"
            )));
        }
        highest = highest.max(address + segment.p_memsz);
    }
    if highest > low_end {
        return Err(Error::TooLarge { what: KERNEL, needed: highest, free: low_end });
    }
    Ok(highest)
}

/// Clears what the file does not fill: a guest that was reset has left something there. Pages that nobody has touched
/// yet are zero, and stay untouched.
fn zero(request: &Request<'_>, address: u64, size: u64) -> Result<(), Error> {
    let end = address + size;
    let mut address = address;
    while address < end {
        let data = next(request, address, rustix::fs::SeekFrom::Data).unwrap_or(address).min(end);
        let hole = next(request, data, rustix::fs::SeekFrom::Hole).filter(|hole| *hole > address);
        let hole = hole.unwrap_or(end).clamp(data, end);
        write_zeros(request, data..hole)?;
        address = hole;
    }
    Ok(())
}

fn write_zeros(request: &Request<'_>, range: std::ops::Range<u64>) -> Result<(), Error> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut address = range.start;
    while address < range.end {
        let chunk = usize::try_from(range.end - address).unwrap_or(usize::MAX).min(ZEROS.len());
        let zeros = ZEROS.get(..chunk).unwrap_or(&ZEROS);
        let failed = |source| Error::Memory { what: "the kernel's empty data", address, source };
        request.memory.write_slice(zeros, GuestAddress(address)).map_err(failed)?;
        address += chunk as u64;
    }
    Ok(())
}

/// The first guest physical address from `address` on that is data, or a hole, in the file behind guest RAM. None where
/// the file does not tell.
fn next(request: &Request<'_>, address: u64, what: fn(u64) -> rustix::fs::SeekFrom) -> Option<u64> {
    let region = request.memory.find_region(GuestAddress(address))?;
    let backing = region.file_offset()?;
    let base = region.start_addr().0;
    match rustix::fs::seek(backing.file(), what(backing.start() + (address - base))) {
        Ok(offset) => Some(base + offset.checked_sub(backing.start())?),
        // None of the kind up to the end of the file.
        Err(error) => (error == rustix::io::Errno::NXIO).then_some(u64::MAX),
    }
}

fn write_start_info(request: &Request<'_>, initrd: Option<initrd::Placed>) -> Result<(), Error> {
    let map = e820::map(request.ram_size);
    for (index, range) in (0_u64..).zip(&map) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        let size = size_of::<hvm_memmap_table_entry>() as u64;
        request.write("the memory map", entry, at::MEMORY_MAP + index * size)?;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.address, size: initrd.size, ..Default::default() };
        request.write("the module list", module, at::MODULES)?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { at::MODULES } else { 0 },
        cmdline_paddr: at::COMMAND_LINE,
        rsdp_paddr: request.rsdp,
        memmap_paddr: at::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    request.write("the start info", info, at::START_INFO)
}
