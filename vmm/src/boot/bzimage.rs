//! A bzImage by the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst).

use std::fs::File;

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::fill::fill;
use super::{Entry, Error, KERNEL, Protocol, Request, at, e820, initrd};

/// Where the setup header begins in the file and in the zero page.
const HEADER_START: usize = 0x1f1;
/// One past the longest setup header that we know (protocol 2.15).
pub(super) const HEADER_END: usize = HEADER_START + size_of::<setup_header>();
/// "HdrS" at 0x202.
const MAGIC: u32 = 0x5372_6448;
/// The first protocol with `xloadflags`, and with it with a 64-bit entry.
const PROTOCOL_64BIT: u16 = 0x020c;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags`: heap_end_ptr is valid. We have no real-mode code that uses it.
const CAN_USE_HEAP: u8 = 1 << 7;
/// `xloadflags`: there is a 64-bit entry, 0x200 after the start.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Whether the beginning of a file says it is a Linux kernel for x86.
pub(super) fn is_one(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(&MAGIC.to_le_bytes())
}

/// Loads it and writes the zero page and the command line.
pub(super) fn load(
    mut request: Request<'_>,
    kernel: &mut File,
    length: u64,
    head: &[u8],
) -> Result<Entry, Error> {
    let header = header(head)?;
    let payload = payload_size(&header, length)?;
    let address = place(&header, payload, request.low_end())?;
    fill(&request, KERNEL, kernel, length - payload, address, payload)?;

    let end = address + u64::from(header.init_size).max(payload);
    let highest = request.low_end().min(u64::from(header.initrd_addr_max) + 1);
    let initrd = initrd::load(&mut request, end..highest)?;
    request.write_command_line(u64::from(header.cmdline_size))?;
    let params = zero_page(&request, header, address, initrd);
    request.write("the zero page", params, at::ZERO_PAGE)?;
    Ok(Entry { protocol: Protocol::Linux64, rip: address + ENTRY_64 })
}

/// The setup header, when this machine can start what it describes.
fn header(head: &[u8]) -> Result<setup_header, Error> {
    let unsupported = |why: &str| Err(Error::Unsupported(why.into()));
    let Some(bytes) = head.get(HEADER_START..HEADER_END) else {
        return Err(Error::Damaged("it ends within its setup header".into()));
    };
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(bytes);
    // The jump at 0x200 leads right behind the header; what lies there is code, not fields.
    let known = (usize::from(header.jump >> 8) + 0x202).saturating_sub(HEADER_START);
    header.as_mut_slice().iter_mut().skip(known).for_each(|byte| *byte = 0);

    if header.loadflags & LOADED_HIGH == 0 {
        return unsupported("it is a zImage, which loads below 1 MiB; build a bzImage");
    }
    if header.version < PROTOCOL_64BIT {
        let (major, minor) = (header.version >> 8, header.version & 0xff);
        return Err(Error::Unsupported(format!(
            "it speaks boot protocol {major}.{minor:02}, and 2.12 (Linux 3.8) is the oldest with a 64-bit entry; use a newer \
             kernel"
        )));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return unsupported("it is a 32-bit kernel; use a 64-bit (x86_64) one");
    }
    Ok(header)
}

/// Bytes of protected-mode code in a file of `length` bytes.
fn payload_size(header: &setup_header, length: u64) -> Result<u64, Error> {
    let setup_sectors = match header.setup_sects {
        0 => 4, // boot.rst: for backwards compatibility
        n => u64::from(n),
    };
    let setup = (setup_sectors + 1) * 512;
    let promised = setup + u64::from(header.syssize) * 16;
    // The last 16-byte paragraph need not be whole.
    if length <= setup || length + 16 <= promised {
        return Err(Error::Damaged(format!("it is {length} bytes long, and its header promises {promised}")));
    }
    Ok(length - setup)
}

/// Where it goes: where it prefers to be, or, when that is outside of guest RAM and it can be moved, at the lowest
/// address that it allows.
fn place(header: &setup_header, payload: u64, low_end: u64) -> Result<u64, Error> {
    let needed = u64::from(header.init_size).max(payload);
    let align = u64::from(header.kernel_alignment);
    let fits = |address: u64| {
        address >= at::KERNEL_MIN && address.checked_add(needed).is_some_and(|end| end <= low_end)
    };
    let preferred = header.pref_address;
    if fits(preferred) {
        return Ok(preferred);
    }
    let relocatable = header.relocatable_kernel != 0;
    if relocatable && align.is_power_of_two() {
        let lowest = at::KERNEL_MIN.next_multiple_of(align);
        if fits(lowest) {
            return Ok(lowest);
        }
    }
    let start = if relocatable { at::KERNEL_MIN } else { preferred };
    Err(Error::TooLarge { what: KERNEL, needed, free: low_end.saturating_sub(start) })
}

fn zero_page(
    request: &Request<'_>,
    mut header: setup_header,
    address: u64,
    initrd: Option<initrd::Placed>,
) -> boot_params {
    // All of these lie below 4 GiB: `place` and `initrd::load` have seen to it.
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags &= !CAN_USE_HEAP;
    header.heap_end_ptr = 0;
    header.code32_start = low(address);
    header.cmd_line_ptr = low(at::COMMAND_LINE);
    header.setup_data = 0;
    (header.ramdisk_image, header.ramdisk_size) = initrd.map_or((0, 0), |i| (low(i.address), low(i.size)));

    let mut params = boot_params { hdr: header, acpi_rsdp_addr: request.rsdp, ..Default::default() };
    let map = e820::map(request.ram_size);
    for (slot, range) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind as u32 };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    params
}
