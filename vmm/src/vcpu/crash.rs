//! What is known of a vCPU that cannot go on.

use std::fmt::Write;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bus::Bus;
use crate::firmware;

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

/// The bytes at the instruction pointer, as far as they lie in RAM or in firmware.
pub(super) fn instruction(fd: &VcpuFd, memory: &GuestMemoryMmap<()>, mmio: &Bus) -> Vec<u8> {
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
        let Some(byte) = byte(at.physical_address, memory, mmio) else { break };
        bytes.push(byte);
    }
    bytes
}

fn byte(address: u64, memory: &GuestMemoryMmap<()>, mmio: &Bus) -> Option<u8> {
    if let Ok(byte) = memory.read_obj(GuestAddress(address)) {
        return Some(byte);
    }
    // Of devices only firmware is read: others may take a read for more than a look.
    (firmware::WINDOW.contains(&address) && mmio.is_assigned(address)).then(|| {
        let mut byte = [0];
        mmio.read(address, &mut byte);
        byte[0]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;
    use crate::bus::BusDevice;
    use std::sync::Arc;

    struct Says(u8);

    impl BusDevice for Says {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&self, _: u64, _: &[u8]) -> Action {
            Action::None
        }
    }

    #[test]
    fn code_is_read_in_ram_and_firmware_and_from_no_device() {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        ram.write_obj(0x0f_u8, GuestAddress(0xfff)).unwrap();
        let mmio = Bus::new();
        mmio.insert(0xffff_f000, 0x1000, Arc::new(Says(0x90))).unwrap();
        mmio.insert(0xe000_0000, 0x1000, Arc::new(Says(1))).unwrap();
        assert_eq!(byte(0xfff, &ram, &mmio), Some(0x0f));
        assert_eq!(byte(0xffff_fff0, &ram, &mmio), Some(0x90));
        assert_eq!(byte(0xffff_e000, &ram, &mmio), None);
        assert_eq!(byte(0xe000_0000, &ram, &mmio), None);
    }
}
