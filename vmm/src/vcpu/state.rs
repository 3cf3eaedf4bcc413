//! The state of a vCPU after power-on, kept so that a guest reset can go back to it.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// IA32_TIME_STAMP_COUNTER: goes on over a reset, so that processors stay together.
const MSR_TSC: u32 = 0x10;

/// Everything that a guest can change in a vCPU and KVM lets us write back.
pub(super) struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    xcrs: Option<kvm_xcrs>,
    msrs: Vec<kvm_msr_entry>,
}

impl PowerOn {
    pub(super) fn capture(kvm: &Kvm, fd: &VcpuFd) -> Result<Self> {
        Ok(Self {
            regs: fd.get_regs()?,
            sregs: fd.get_sregs()?,
            fpu: fd.get_fpu()?,
            lapic: fd.get_lapic()?,
            mp_state: fd.get_mp_state()?,
            events: fd.get_vcpu_events()?,
            debug: fd.get_debug_regs()?,
            // Absent where the host's processor has no XSAVE.
            xcrs: fd.get_xcrs().ok(),
            msrs: read_msrs(kvm, fd)?,
        })
    }

    /// Local APIC after MSRs: IA32_APIC_BASE decides how its registers are read.
    pub(super) fn restore(&self, fd: &VcpuFd) -> Result<()> {
        fd.set_mp_state(self.mp_state)?;
        fd.set_regs(&self.regs)?;
        fd.set_sregs(&self.sregs)?;
        fd.set_fpu(&self.fpu)?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs)?;
        }
        write_msrs(fd, &self.msrs);
        fd.set_debug_regs(&self.debug)?;
        fd.set_lapic(&self.lapic)?;
        fd.set_vcpu_events(&self.events)
    }
}

/// Those of KVM's list that this vCPU answers for. KVM stops at the first one that it does not, so that one is passed over.
fn read_msrs(kvm: &Kvm, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let list = kvm.get_msr_index_list()?;
    let wanted = list.as_slice().iter().filter(|index| **index != MSR_TSC);
    let mut left: Vec<_> =
        wanted.map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut read = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let Ok(mut batch) = Msrs::from_entries(&left) else { break };
        let done = fd.get_msrs(&mut batch)?.min(left.len());
        read.extend(batch.as_slice().iter().take(done).copied());
        left.drain(..left.len().min(done + 1));
    }
    Ok(read)
}

/// Some are read-only, or refuse what they themselves reported: those are passed over, one by one.
fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) {
    let mut left = msrs;
    while !left.is_empty() {
        let Ok(batch) = Msrs::from_entries(left) else { break };
        let done = fd.set_msrs(&batch).unwrap_or(0).min(left.len());
        left = left.get(done + 1..).unwrap_or(&[]);
    }
}
