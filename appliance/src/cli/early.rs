//! What a start does before it knows its arguments, so that a guest comes up sooner.

use std::ffi::c_void;
use std::io;

use rustix::mm::{Advice, madvise};

use crate::jail::{Machine, Split, split};

/// Bytes of the heap that a start uses: what the C library takes for it at first.
const HEAP: usize = 128 << 10;
/// Bytes of the stack that a start uses.
const STACK: usize = 12 << 10;

/// Where a guest is going to run, makes the process of its machine before the arguments are made out: it begins the VM, and both
/// take about as long. In that process this does not return.
pub(super) fn begin() -> Option<io::Result<Machine>> {
    // The command; options that go before it have no values.
    let command = std::env::args_os().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"))?;
    (command == "run").then(|| {
        let machine = begin_machine();
        one_heap();
        pages_ahead();
        machine
    })
}

/// The same, whatever the arguments are.
pub(super) fn begin_machine() -> io::Result<Machine> {
    match split()? {
        Split::Keeper(machine) => Ok(machine),
        Split::Machine(wire, lacks, everywhere) => super::run::inside(wire, lacks, everywhere),
    }
}

/// Gives this process the program's name, in ps(1) and the journal: one that another of ours has started is `exe` there, by the
/// link in /proc that it was started by.
pub(super) fn say_who() {
    let _ = rustix::thread::set_name(c"throughway");
}

/// Has all threads share one heap: a guest's few threads hardly allocate, and a heap for each costs time and memory.
pub(super) fn one_heap() {
    // SAFETY: mallopt changes a setting of the C library's allocator, and is called before there are other threads.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::debug!("The allocator keeps its heaps");
    }
}

/// Has what is large be mapped for itself, and given back when it is freed: the C library would keep the 19 MiB that a password
/// takes for the next one, once it has seen them.
pub(super) fn large_is_given_back() {
    // SAFETY: as above.
    if unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) } == 0 {
        tracing::debug!("The allocator keeps what was large");
    }
}

/// Gives heap and stack their pages at once: two calls instead of some forty page faults.
pub(super) fn pages_ahead() {
    // SAFETY: with 0, sbrk only says where the heap ends.
    let heap_end = unsafe { libc::sbrk(0) };
    let here = 0_u8;
    let stack_end = (&raw const here).map_addr(|at| at & !0xfff).cast_mut().cast::<c_void>();
    for (end, size) in [(heap_end, HEAP), (stack_end, STACK)] {
        // SAFETY: populating changes no content and no mapping; where something is not mapped, or the kernel is older than 5.14,
        // it is an error, and then the pages come one by one.
        let _ = unsafe { madvise(end.wrapping_byte_sub(size), size, Advice::LinuxPopulateWrite) };
    }
}
