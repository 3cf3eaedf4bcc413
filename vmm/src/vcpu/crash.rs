//! What is known of a vCPU that cannot go on.

use std::fmt::Write;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The longest x86 instruction in bytes.
const LONGEST_INSTRUCTION: usize = 15;

/// KVM_INTERNAL_ERROR_* of the last exit, which must be KVM_EXIT_INTERNAL_ERROR.
pub(super) fn suberror(fd: &mut VcpuFd) -> u32 {
    // SAFETY: after an internal error this member of the union is the one that KVM wrote.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// General and system registers, a group a line.
pub(super) fn registers(fd: &VcpuFd) -> String {
    let mut text = String::new();
    if let Ok(r) = fd.get_regs() {
        let groups = [
            [("rip", r.rip), ("rsp", r.rsp), ("rflags", r.rflags), ("rbp", r.rbp)],
            [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
            [("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
            [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        ];
        for group in groups {
            for (name, value) in group {
                let _ = write!(text, "{name:>7}={value:016x}");
            }
            text.push('\n');
        }
    }
    if let Ok(s) = fd.get_sregs() {
        for (name, value) in
            [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer)]
        {
            let _ = write!(text, "{name:>7}={value:x}");
        }
        let cs = s.cs;
        let _ = write!(
            text,
            "\n     cs={:04x} base={:x} limit={:x} l={} db={}",
            cs.selector, cs.base, cs.limit, cs.l, cs.db
        );
    }
    text
}

/// The bytes at the instruction pointer, as far as they lie in RAM.
pub(super) fn instruction(fd: &VcpuFd, memory: &GuestMemoryMmap<()>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONGEST_INSTRUCTION);
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else { return bytes };
    let long_mode = sregs.cs.l != 0;
    let base = if long_mode { 0 } else { sregs.cs.base };
    for offset in 0..LONGEST_INSTRUCTION as u64 {
        let linear = base.wrapping_add(regs.rip).wrapping_add(offset);
        let Ok(at) = fd.translate_gva(linear) else { break };
        if at.valid == 0 {
            break;
        }
        let Ok(byte) = memory.read_obj::<u8>(GuestAddress(at.physical_address)) else { break };
        bytes.push(byte);
    }
    bytes
}
