//! Direct boot: the kernel, the initial RAM disk and the command line go straight into guest RAM, and the boot vCPU
//! starts in the kernel. No firmware runs.
//!
//! Two protocols, chosen by what the file is:
//! - **PVH**: an ELF file with a `XEN_ELFNOTE_PHYS32_ENTRY` note (an uncompressed Linux with `CONFIG_PVH`, most test
//!   kernels), entered in 32-bit protected mode.
//! - **Linux 64-bit boot protocol**: a bzImage that says `XLF_KERNEL_64`, entered in long mode.
//!
//! The kernel file is untrusted: every number in it is checked against the file's length and guest RAM before use.
//! What low memory holds while the kernel starts is in [`at`].

mod bzimage;
mod e820;
mod elf;
mod fill;
mod initrd;
mod registers;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

pub use e820::{Kind, Range, map as memory_map};
pub use registers::{clear_memory_types, setup_firmware_state, setup_registers};

/// Guest physical addresses of what the boot vCPU and the kernel find below 1 MiB. All of it lies in the first 640 KiB,
/// which the memory map calls RAM: the kernel may reuse it once it has read it.
pub mod at {
    /// The global descriptor table: null, unused, code, data, TSS.
    pub const GDT: u64 = 0x500;
    /// PVH: `hvm_start_info`.
    pub const START_INFO: u64 = 0x6000;
    /// PVH: the one `hvm_modlist_entry`, the initial RAM disk.
    pub const MODULES: u64 = 0x6040;
    /// PVH: the `hvm_memmap_table_entry`s.
    pub const MEMORY_MAP: u64 = 0x6080;
    /// Linux: `struct boot_params`, the zero page.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Linux: page tables that map the first 4 GiB one to one; six pages.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The command line, with its NUL.
    pub const COMMAND_LINE: u64 = 0x20000;
    /// Nothing of a kernel may lie below this.
    pub const KERNEL_MIN: u64 = 0x10_0000;
}

/// The longest command line that Linux keeps on x86, without its NUL (COMMAND_LINE_SIZE is 2048); a longer one is cut
/// off silently under PVH.
const COMMAND_LINE_MAX: u64 = 2047;

/// What a message calls each file.
const KERNEL: &str = "kernel";
const INITRD: &str = "initial RAM disk";

/// The kernel cannot be started as asked for. The caller knows the path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no kernel, or of a kind that this machine does not start.
    #[error("This kernel cannot be started: {0}")]
    Unsupported(String),
    /// The file contradicts itself.
    #[error("The kernel file is damaged: {0}; copy it again, or rebuild it")]
    Damaged(String),
    /// Guest RAM is too small.
    #[error(
        "The {what} does not fit: it takes {} MiB of guest memory below {} GiB, and {} MiB are free there; give the guest \
         more memory",
        .needed.div_ceil(1 << 20), layout::LOW_RAM_END >> 30, .free >> 20
    )]
    TooLarge {
        /// Which file.
        what: &'static str,
        /// Bytes that it takes, once it runs.
        needed: u64,
        /// Bytes that are there for it.
        free: u64,
    },
    /// The command line cannot be handed over.
    #[error("The kernel's command line {0}")]
    CommandLine(String),
    /// Reading a file failed.
    #[error("Reading the {what} ({doing}): {source}")]
    Read {
        /// Which file.
        what: &'static str,
        /// The step that failed.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// Guest RAM refused a write, or a file ended early while it was read into guest RAM.
    #[error("Filling guest memory with {what} at {address:#x}: {source}")]
    Memory {
        /// What was to be there.
        what: &'static str,
        /// Guest physical address.
        address: u64,
        /// What guest memory said.
        source: vm_memory::GuestMemoryError,
    },
    /// KVM refused the vCPU's registers.
    #[error("Setting the boot vCPU's {what}: {source}")]
    Registers {
        /// Which set of registers.
        what: &'static str,
        /// The errno.
        source: io::Error,
    },
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode, paging off, `rbx` = [`at::START_INFO`]
    /// (Xen, docs/misc/pvh.pandoc, "x86/HVM direct boot ABI").
    Pvh,
    /// Long mode, the first 4 GiB mapped one to one, `rsi` = [`at::ZERO_PAGE`]
    /// (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64,
}

/// Where the boot vCPU starts. [`setup_registers`] takes it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How.
    pub protocol: Protocol,
    /// Guest physical address of the first instruction.
    pub rip: u64,
}

/// What is started, besides the kernel itself.
struct Request<'a> {
    memory: &'a GuestMemoryMmap<()>,
    ram_size: u64,
    initrd: Option<&'a mut File>,
    command_line: &'a str,
    rsdp: u64,
}

impl Request<'_> {
    /// One past the last byte of RAM below the 32-bit window.
    fn low_end(&self) -> u64 {
        self.ram_size.min(layout::LOW_RAM_END)
    }

    fn write<T: vm_memory::ByteValued>(
        &self,
        what: &'static str,
        value: T,
        address: u64,
    ) -> Result<(), Error> {
        write(self.memory, what, value, address)
    }

    /// Puts the command line where both protocols expect it, when it is at most `limit` bytes.
    fn write_command_line(&self, limit: u64) -> Result<(), Error> {
        let bytes = self.command_line.as_bytes();
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return Err(Error::CommandLine(format!("has a NUL character at byte {at}; take it out")));
        }
        let limit = limit.min(COMMAND_LINE_MAX);
        if bytes.len() as u64 > limit {
            let long = bytes.len();
            return Err(Error::CommandLine(format!(
                "is {long} bytes long, and this kernel takes {limit}; shorten it"
            )));
        }
        let failed = |source| Error::Memory { what: "the command line", address: at::COMMAND_LINE, source };
        self.memory.write_slice(bytes, GuestAddress(at::COMMAND_LINE)).map_err(failed)?;
        self.write("the command line", 0_u8, at::COMMAND_LINE + bytes.len() as u64)
    }
}

/// Loads all of it into guest RAM of `ram_size` bytes, laid out as `GuestRam` does. `acpi_rsdp` is where the ACPI
/// tables begin. The files are read from their start, so a guest reset simply calls it again.
pub fn load(
    memory: &GuestMemoryMmap<()>,
    ram_size: u64,
    kernel: &mut File,
    initrd: Option<&mut File>,
    cmdline: &str,
    acpi_rsdp: u64,
) -> Result<Entry, Error> {
    let request = Request { memory, ram_size, initrd, command_line: cmdline, rsdp: acpi_rsdp };
    if request.low_end() <= at::KERNEL_MIN {
        return Err(Error::TooLarge { what: KERNEL, needed: at::KERNEL_MIN * 2, free: request.low_end() });
    }
    let length = file_length(kernel, KERNEL)?;
    let mut head = [0_u8; bzimage::HEADER_END];
    let have = read_at(kernel, 0, &mut head)?;
    let head = head.get(..have).unwrap_or_default();
    let entry = if head.starts_with(b"\x7fELF") {
        elf::load(request, kernel, length)?
    } else if bzimage::is_one(head) {
        bzimage::load(request, kernel, length, head)?
    } else {
        return Err(Error::Unsupported(unknown(head)));
    };
    registers::write_tables(memory, entry.protocol)?;
    Ok(entry)
}

/// Says what the file seems to be, for people who gave the wrong one.
fn unknown(head: &[u8]) -> String {
    let seems = match head {
        [] => "the file is empty",
        [0x1f, 0x8b, ..] => "it is gzip-compressed data",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is xz-compressed data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is zstd-compressed data",
        [b'M', b'Z', ..] => "it is an EFI program, but no Linux kernel for x86",
        _ => "it is neither a bzImage nor an ELF file",
    };
    format!("{seems}; give the bzImage (often called vmlinuz) or an ELF kernel with a PVH note")
}

fn file_length(file: &mut File, what: &'static str) -> Result<u64, Error> {
    file.seek(SeekFrom::End(0)).map_err(|source| Error::Read { what, doing: "finding its length", source })
}

/// Reads up to a buffer full of the kernel from `offset` on; says how much there was.
fn read_at(kernel: &mut File, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
    let failed = |source| Error::Read { what: KERNEL, doing: "its headers", source };
    kernel.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match kernel.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(done)
}

fn write<T: vm_memory::ByteValued>(
    memory: &GuestMemoryMmap<()>,
    what: &'static str,
    value: T,
    address: u64,
) -> Result<(), Error> {
    memory.write_obj(value, GuestAddress(address)).map_err(|source| Error::Memory { what, address, source })
}

#[cfg(test)]
pub(crate) mod tests;
