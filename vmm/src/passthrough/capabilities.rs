//! Which capabilities the guest sees, and what it may do in them.
//!
//! Both lists are allow-lists: what is not named here is hidden, as a guest that drives what we do not know may drive
//! what belongs to the host (the link, the IOMMU's services, other functions).
//!
//! Hidden on purpose: SR-IOV and multi-root I/O virtualization (the guest does not own the VFs), ARI (sibling numbers
//! are the host's), resizable BARs (sizes are planned by us), ATS, PRI and PASID (no virtual IOMMU stands behind them),
//! ACS (isolation is the host's), virtual channels, LTR, L1 substates, PTM, DPC, multicast, link and lane registers
//! (they configure the link together with the host's port), TPH (steering tags name host processors), enhanced
//! allocation (it would contradict the BARs), CXL.

use vfio::{IrqKind, PciFunction, RegionIndex};

use super::Error;
use super::config::{CAPABILITIES, ConfigSpace, HEADER_END, STATUS};
use super::express;
use super::interrupts::{MSIX_ENABLE, MSIX_FUNCTION_MASK};
use super::msi::MsiLayout;
use super::msix::MsixLayout;

/// Capability ids (PCI Code and ID Assignment, 2).
mod id {
    pub(super) const POWER: u8 = 0x01;
    pub(super) const VPD: u8 = 0x03;
    pub(super) const MSI: u8 = 0x05;
    pub(super) const PCI_X: u8 = 0x07;
    pub(super) const VENDOR: u8 = 0x09;
    pub(super) const DEBUG_PORT: u8 = 0x0a;
    pub(super) const EXPRESS: u8 = 0x10;
    pub(super) const MSIX: u8 = 0x11;
    pub(super) const SATA: u8 = 0x12;
    pub(super) const ADVANCED_FEATURES: u8 = 0x13;
}

/// Extended capability ids (PCI Code and ID Assignment, 3).
mod extended {
    pub(super) const ERRORS: u16 = 0x01;
    pub(super) const SERIAL: u16 = 0x03;
    pub(super) const POWER_BUDGET: u16 = 0x04;
    pub(super) const VENDOR: u16 = 0x0b;
    pub(super) const READINESS: u16 = 0x22;
    pub(super) const DESIGNATED_VENDOR: u16 = 0x23;
}

/// The vendor of the CXL consortium in a designated vendor-specific capability.
const CXL: u16 = 0x1e98;
const EXTENDED_START: u16 = 0x100;
const EXTENDED_END: u16 = 0x1000;
const STATUS_HAS_LIST: u8 = 1 << 4;

/// What was found and is kept, by offset.
#[derive(Clone, Debug, Default)]
pub(super) struct Capabilities {
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLayout>,
    /// PCI Express; `true` if it offers a function level reset.
    pub(super) express: Option<(u16, bool)>,
    /// Advanced features, where they offer a function level reset.
    pub(super) advanced: Option<u16>,
    /// Power management; `true` if leaving D3hot resets the function.
    pub(super) power: Option<(u16, bool)>,
}

/// Takes both lists over: what is kept is linked anew, what is hidden reads zero.
pub(super) fn take(config: &mut ConfigSpace, function: &dyn PciFunction) -> Result<Capabilities, Error> {
    let mut found = Capabilities::default();
    let starts = standard(config, function.label());
    let mut kept = Vec::new();
    for at in &starts {
        if keep(config, function, *at, &mut found)? {
            kept.push(*at);
        } else {
            config.blank(*at, extent(*at, &starts, EXTENDED_START));
        }
    }
    link(config, &kept);
    take_extended(config, function.label());
    Ok(found)
}

/// Offsets of the standard capabilities in list order. A list that loops or leads astray ends there.
fn standard(config: &ConfigSpace, label: &str) -> Vec<u16> {
    let mut starts = Vec::new();
    if config.u8(STATUS) & STATUS_HAS_LIST == 0 {
        return starts;
    }
    let mut at = u16::from(config.u8(CAPABILITIES) & !3);
    while at != 0 {
        if at < HEADER_END || starts.contains(&at) || config.u8(at) == 0xff {
            tracing::warn!("{label}: its capability list is broken at {at:#x}; what comes after is hidden");
            break;
        }
        starts.push(at);
        at = u16::from(config.u8(at + 1) & !3);
    }
    starts
}

/// Bytes from a capability to the next one above it, whatever the order of the list.
fn extent(at: u16, starts: &[u16], end: u16) -> u16 {
    starts.iter().copied().filter(|start| *start > at).min().unwrap_or(end) - at
}

fn link(config: &mut ConfigSpace, kept: &[u16]) {
    let nexts = kept.iter().skip(1).copied().chain([0]);
    for (at, next) in kept.iter().zip(nexts) {
        config.emulate(*at, 1);
        config.emulate_u8(at + 1, low_byte(next), 0);
    }
    config.emulate_u8(CAPABILITIES, low_byte(kept.first().copied().unwrap_or(0)), 0);
    let has_list = if kept.is_empty() { 0 } else { STATUS_HAS_LIST };
    config.emulate_bits(STATUS, STATUS_HAS_LIST, has_list, 0);
}

fn low_byte(offset: u16) -> u8 {
    offset.to_le_bytes()[0]
}

/// Decides about one standard capability and takes it over. `false` hides it.
fn keep(
    config: &mut ConfigSpace,
    function: &dyn PciFunction,
    at: u16,
    found: &mut Capabilities,
) -> Result<bool, Error> {
    let kept = match config.u8(at) {
        id::POWER if found.power.is_none() => power(config, at, found),
        id::MSI if found.msi.is_none() => msi(config, function, at, found),
        id::MSIX if found.msix.is_none() => msix(config, function, at, found),
        id::EXPRESS if found.express.is_none() => {
            found.express = express::take(config, function, at)?;
            found.express.is_some()
        }
        id::ADVANCED_FEATURES => advanced(config, function, at, found),
        id::VPD | id::PCI_X | id::VENDOR | id::DEBUG_PORT | id::SATA => true,
        _ => false,
    };
    Ok(kept)
}

/// Power management (7.5.2): the state is virtual and written through; no PME, as it has no way to the guest.
fn power(config: &mut ConfigSpace, at: u16, found: &mut Capabilities) -> bool {
    if at + 8 > EXTENDED_START {
        return false;
    }
    let (capabilities, status) = (config.u16(at + 2), config.u16(at + 4));
    let no_soft_reset = status & 8;
    config.emulate_u16(at + 2, capabilities & 0x07ff, 0);
    config.emulate_u16(at + 4, no_soft_reset, 3);
    config.blank(at + 6, 2);
    config.set_power_capability(at);
    found.power = Some((at, no_soft_reset == 0));
    true
}

/// MSI (7.7.1), wholly ours.
fn msi(config: &mut ConfigSpace, function: &dyn PciFunction, at: u16, found: &mut Capabilities) -> bool {
    let control = config.u16(at + 2);
    let Some(vectors) = function.irq_info(IrqKind::Msi).count.checked_ilog2() else { return false };
    let most = u32::from(control >> 1 & 7).min(vectors).min(5);
    let layout = MsiLayout {
        capability: at,
        wide: control & 1 << 7 != 0,
        maskable: control & 1 << 8 != 0,
        most_log2: u8::try_from(most).unwrap_or(0),
    };
    if at + layout.size() > EXTENDED_START {
        tracing::warn!("{}: its MSI capability at {at:#x} is cut off; it is hidden", function.label());
        return false;
    }
    config.blank(at, layout.size());
    config.emulate_u8(at, id::MSI, 0);
    config.emulate_u16(at + 2, control & 0x0180 | u16::from(layout.most_log2) << 1, 0x0071);
    config.emulate_u32(at + 4, 0, !3);
    if layout.wide {
        config.emulate_u32(at + 8, 0, !0);
    }
    config.emulate_u16(layout.data(), 0, !0);
    if let Some(mask) = layout.mask() {
        let bits = 1_u32.checked_shl(1 << most).map_or(!0, |bit| bit - 1);
        config.emulate_u32(mask, 0, bits);
    }
    found.msi = Some(layout);
    true
}

/// MSI-X (7.7.2), wholly ours.
fn msix(config: &mut ConfigSpace, function: &dyn PciFunction, at: u16, found: &mut Capabilities) -> bool {
    let vectors = function.irq_info(IrqKind::Msix).count;
    if at + 12 > EXTENDED_START || vectors == 0 {
        return false;
    }
    let count = u16::try_from(vectors).unwrap_or(u16::MAX).min((config.u16(at + 2) & 0x7ff) + 1);
    let place = |register: u32| (register.to_le_bytes()[0] & 7, u64::from(register & !7));
    let (table, pba) = (place(config.u32(at + 4)), place(config.u32(at + 8)));
    let layout = MsixLayout { capability: at, count, table, pba };
    for ((bar, offset), size) in [(table, layout.table_size()), (pba, layout.pba_size())] {
        let region = function.region(RegionIndex::Bar(bar)).filter(|_| bar < 6);
        if region.is_none_or(|region| offset.saturating_add(size) > region.size) {
            let label = function.label();
            tracing::warn!("{label}: its MSI-X table or pending bits lie outside BAR {bar}; MSI-X is hidden");
            return false;
        }
    }
    config.emulate(at + 2, 10);
    config.emulate_u16(at + 2, count - 1, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    found.msix = Some(layout);
    true
}

/// Advanced features of conventional functions: only their function level reset counts.
fn advanced(config: &mut ConfigSpace, function: &dyn PciFunction, at: u16, found: &mut Capabilities) -> bool {
    if at + 6 > EXTENDED_START || config.u8(at + 3) & 2 == 0 || !function.can_reset() {
        return false;
    }
    config.emulate(at + 2, 2);
    config.emulate_u8(at + 4, 0, 0);
    found.advanced = Some(at);
    true
}

/// The extended list (7.6.1). A hidden first one leaves a header without an id, as the list must begin there.
fn take_extended(config: &mut ConfigSpace, label: &str) {
    let starts = extended_starts(config, label);
    let (kept, hidden): (Vec<u16>, Vec<u16>) = starts.iter().partition(|at| keep_extended(config, **at));
    for at in &hidden {
        tracing::debug!("{label}: hiding extended capability {:#x} at {at:#x}", config.u16(*at));
        config.blank(*at, extent(*at, &starts, EXTENDED_END));
    }
    let nexts = kept.iter().skip(1).copied().chain([0]);
    for (at, next) in kept.iter().zip(nexts) {
        let header = config.u32(*at) & 0xf_ffff | u32::from(next) << 20;
        config.emulate_u32(*at, header, 0);
    }
    let first = kept.first().copied().unwrap_or(0);
    if first != EXTENDED_START {
        config.emulate_u32(EXTENDED_START, u32::from(first) << 20, 0);
    }
}

fn keep_extended(config: &ConfigSpace, at: u16) -> bool {
    match config.u16(at) {
        extended::ERRORS
        | extended::SERIAL
        | extended::POWER_BUDGET
        | extended::VENDOR
        | extended::READINESS => true,
        extended::DESIGNATED_VENDOR => config.u16(at.saturating_add(4)) != CXL,
        _ => false,
    }
}

fn extended_starts(config: &ConfigSpace, label: &str) -> Vec<u16> {
    let mut starts = Vec::new();
    let mut at = EXTENDED_START;
    loop {
        let header = config.u32(at);
        if header == 0 {
            break;
        }
        if header == u32::MAX || starts.contains(&at) {
            tracing::warn!("{label}: its extended capability list is broken at {at:#x}; the rest is hidden");
            break;
        }
        starts.push(at);
        at = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        if at < EXTENDED_START {
            break;
        }
    }
    starts
}
