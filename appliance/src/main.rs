//! `throughway`: see `throughway --help`.

use std::arch::global_asm;
use std::process::ExitCode;

// The program's first instructions, entered by the kernel (build.rs names them to the linker): all pages of data that come from
// the file get there by one call, madvise(MADV_POPULATE_WRITE). The relocation that follows writes to each of them, which are
// some sixty page faults otherwise, a thirtieth of a guest's start. (Before Linux 5.14 it is an error without effect.)
//
// Of registers and stack, rsp and rdx mean something here (System V ABI, AMD64 supplement, 3.4.1), and the C library's entry
// gets both as they came: the stack is not used, and rdx is put back.
global_asm!(
    ".globl throughway_entry",
    "throughway_entry:",
    "mov r8, rdx",
    "lea rdi, [rip + __init_array_start]",
    "and rdi, -0x1000",
    "lea rsi, [rip + _end]",
    "sub rsi, rdi",
    "mov edx, {populate_write}",
    "mov eax, {madvise}",
    "syscall",
    "mov rdx, r8",
    "jmp _start",
    populate_write = const libc::MADV_POPULATE_WRITE,
    madvise = const libc::SYS_madvise,
);

fn main() -> ExitCode {
    throughway::cli::main()
}
