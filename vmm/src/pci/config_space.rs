//! Configuration space: bytes, what of them the guest may write, and the registers every header has.

mod registers;
#[cfg(test)]
mod tests;

pub use registers::{command, offset};

use super::{BarKind, BarSpec, ConfigEffect, Window};

/// Bytes in one function's configuration space (PCIe 7.2).
pub const CONFIG_SIZE: usize = 4096;
/// Where the capabilities that only PCIe has begin (PCIe 7.6.3).
const EXTENDED_START: u16 = 0x100;
/// The end of the header, where capabilities may begin.
const HEADER_END: u16 = 0x40;

/// The configuration space cannot be laid out so. It comes from us or from a device's own bytes, never from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A base address register that cannot be.
    #[error(
        "Base address register {index} of {size:#x} bytes cannot be: the size is a power of two (memory: 16 bytes or more, I/O: 4 to 256 or what 16 bits hold), and 64-bit ones take two registers"
    )]
    Bar {
        /// 0 to 5, or 6 for the expansion ROM.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// A capability does not fit.
    #[error("Capability {id:#x} of {length} bytes does not fit into configuration space")]
    Capability {
        /// The capability's ID.
        id: u16,
        /// Its length in bytes.
        length: usize,
    },
}

/// The two layouts of the first 64 bytes (PCIe 7.5.1.2, 7.5.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0: six base address registers.
    Endpoint,
    /// Type 1: two base address registers, bus numbers and windows.
    Bridge,
}

impl Header {
    fn bars(self) -> u8 {
        match self {
            Self::Endpoint => 6,
            Self::Bridge => 2,
        }
    }

    fn rom(self) -> u16 {
        match self {
            Self::Endpoint => offset::ROM,
            Self::Bridge => offset::BRIDGE_ROM,
        }
    }
}

/// Who the function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as `0x06_0400`.
    pub class: u32,
    /// Subsystem vendor and subsystem; not in a type 1 header.
    pub subsystem: Option<(u16, u16)>,
}

/// One function's configuration space: values, which bits the guest writes, which it clears by writing one, and the
/// values after power-on.
///
/// It holds no lock: its owner does. Offsets out of range read as all ones and take no writes.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    header: Header,
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
    clears: Box<[u8]>,
    power_on: Box<[u8]>,
    bars: [Option<BarSpec>; 7],
    last_capability: Option<u16>,
    next_capability: u16,
    last_extended: Option<u16>,
    next_extended: u16,
}

impl ConfigSpace {
    /// A header with its identity and the command and status registers; no BARs, no capabilities, interrupt pin none.
    pub fn new(header: Header, identity: Identity) -> Self {
        let zeroes = || vec![0; CONFIG_SIZE].into_boxed_slice();
        let mut space = Self {
            header,
            bytes: zeroes(),
            writable: zeroes(),
            clears: zeroes(),
            power_on: zeroes(),
            bars: [None; 7],
            last_capability: None,
            next_capability: HEADER_END,
            last_extended: None,
            next_extended: EXTENDED_START,
        };
        space.define_u16(offset::VENDOR, identity.vendor, 0);
        space.define_u16(offset::DEVICE, identity.device, 0);
        space.define_u16(offset::COMMAND, 0, command::WRITABLE);
        space.clears_u16(offset::STATUS, 0xf900);
        space.define_u32(offset::REVISION, identity.class << 8 | u32::from(identity.revision), 0);
        space.define_u8(offset::CACHE_LINE, 0, 0xff);
        space.define_u8(offset::HEADER_TYPE, u8::from(header == Header::Bridge), 0);
        space.define_u8(offset::INTERRUPT_LINE, 0, 0xff);
        if let (Header::Endpoint, Some((vendor, subsystem))) = (header, identity.subsystem) {
            space.define_u16(offset::SUBSYSTEM_VENDOR, vendor, 0);
            space.define_u16(offset::SUBSYSTEM, subsystem, 0);
        }
        space
    }

    /// Lays out bytes: their value at power-on, and the bits that the guest writes (`writable` as long as `value`).
    pub fn define(&mut self, offset: u16, value: &[u8], writable: &[u8]) {
        put(&mut self.bytes, offset, value);
        put(&mut self.power_on, offset, value);
        put(&mut self.writable, offset, writable);
    }

    /// [`define`](Self::define) for one byte.
    pub fn define_u8(&mut self, offset: u16, value: u8, writable: u8) {
        self.define(offset, &[value], &[writable]);
    }

    /// [`define`](Self::define) for 16 bits.
    pub fn define_u16(&mut self, offset: u16, value: u16, writable: u16) {
        self.define(offset, &value.to_le_bytes(), &writable.to_le_bytes());
    }

    /// [`define`](Self::define) for 32 bits.
    pub fn define_u32(&mut self, offset: u16, value: u32, writable: u32) {
        self.define(offset, &value.to_le_bytes(), &writable.to_le_bytes());
    }

    /// Bits that the guest clears by writing ones (RW1C).
    pub fn clears_u16(&mut self, offset: u16, mask: u16) {
        put(&mut self.clears, offset, &mask.to_le_bytes());
    }

    /// [`clears_u16`](Self::clears_u16) for 32 bits.
    pub fn clears_u32(&mut self, offset: u16, mask: u32) {
        put(&mut self.clears, offset, &mask.to_le_bytes());
    }

    /// Lays out a base address register, without an address yet.
    pub fn add_bar(&mut self, spec: BarSpec) -> Result<(), LayoutError> {
        let refused = LayoutError::Bar { index: spec.index, size: spec.size };
        let register = self.bar_register(spec.index).ok_or(refused)?;
        let rom = spec.index == 6;
        let (least, most, flags, wide) = match spec.kind {
            BarKind::Io => (4, 1 << 16, 0x1, false),
            BarKind::Memory32 { prefetchable } => (16, 1 << 31, u32::from(prefetchable) << 3, false),
            BarKind::Memory64 { prefetchable } => (16, 1 << 62, 0x4 | u32::from(prefetchable) << 3, true),
        };
        let rom_fits = matches!(spec.kind, BarKind::Memory32 { .. }) && spec.size >= 2048;
        let pair_fits = spec.index.saturating_add(1) < self.header.bars();
        let sized = spec.size.is_power_of_two() && (least..=most).contains(&spec.size);
        let taken =
            self.bar_holding(spec.index).is_some() || (wide && self.bar_holding(spec.index + 1).is_some());
        if !sized || taken || (rom && !rom_fits) || (wide && !pair_fits) {
            return Err(refused);
        }
        let mask = !(spec.size - 1);
        let (low, high) = (low_half(mask), low_half(mask >> 32));
        match rom {
            true => self.define_u32(register, 0, low | 1),
            false => self.define_u32(register, flags, low),
        }
        if wide {
            self.define_u32(register.saturating_add(4), 0, high);
        }
        if let Some(slot) = self.bars.get_mut(usize::from(spec.index)) {
            *slot = Some(spec);
        }
        Ok(())
    }

    /// The base address registers laid out so far.
    pub fn bars(&self) -> Vec<BarSpec> {
        self.bars.iter().flatten().copied().collect()
    }

    /// Appends a capability to the list (PCIe 7.5.1.1.11): `body` is what follows the ID and the next pointer, read-only
    /// until [`define`](Self::define) says otherwise. The answer is the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<u16, LayoutError> {
        self.add_capability_at(self.next_capability, id, body)
    }

    /// The same at an offset of one's own (a multiple of 4, behind the header), for functions whose drivers expect it.
    pub fn add_capability_at(&mut self, offset: u16, id: u8, body: &[u8]) -> Result<u16, LayoutError> {
        let length = body.len().saturating_add(2);
        let refused = LayoutError::Capability { id: id.into(), length };
        let end = end_of(offset, length, HEADER_END, EXTENDED_START).ok_or(refused)?;
        let Ok(pointer) = u8::try_from(offset) else { return Err(refused) };
        self.define(offset, &[id, 0], &[0, 0]);
        self.define(offset.saturating_add(2), body, &vec![0; body.len()]);
        let previous = self.last_capability.map_or(offset::CAPABILITIES, |last| last.saturating_add(1));
        self.define_u8(previous, pointer, 0);
        let status = self.u16(offset::STATUS) | registers::STATUS_CAPABILITIES;
        self.define_u16(offset::STATUS, status, 0);
        self.last_capability = Some(offset);
        self.next_capability = self.next_capability.max(end);
        Ok(offset)
    }

    /// Appends an extended capability (PCIe 7.6.3): `body` is what follows its header. The answer is its offset.
    pub fn add_extended_capability(&mut self, id: u16, version: u8, body: &[u8]) -> Result<u16, LayoutError> {
        let offset = self.next_extended;
        let length = body.len().saturating_add(4);
        let refused = LayoutError::Capability { id, length };
        let size = u16::try_from(CONFIG_SIZE).unwrap_or(u16::MAX);
        let end = end_of(offset, length, EXTENDED_START, size).ok_or(refused)?;
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.define_u32(offset, header, 0);
        self.define(offset.saturating_add(4), body, &vec![0; body.len()]);
        if let Some(last) = self.last_extended {
            let header = self.u32(last) & 0x000f_ffff | u32::from(offset) << 20;
            self.define_u32(last, header, 0);
        }
        self.last_extended = Some(offset);
        self.next_extended = end;
        Ok(offset)
    }

    /// A value as it is now.
    pub fn u8(&self, offset: u16) -> u8 {
        let [byte] = self.array(offset);
        byte
    }

    /// A value as it is now.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    /// A value as it is now.
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// Changes a value from the device's side, whatever the guest may write; power-on values stay.
    pub fn set(&mut self, offset: u16, value: &[u8]) {
        put(&mut self.bytes, offset, value);
    }

    /// [`set`](Self::set) for 16 bits.
    pub fn set_u16(&mut self, offset: u16, value: u16) {
        self.set(offset, &value.to_le_bytes());
    }

    /// [`set`](Self::set) for 32 bits.
    pub fn set_u32(&mut self, offset: u16, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    /// Back to the values after power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on);
    }

    /// The guest reads.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        for (slot, byte) in data.iter_mut().zip(self.bytes.get(usize::from(offset)..).unwrap_or_default()) {
            *slot = *byte;
        }
    }

    /// The guest writes: what it may write changes. The effect says whether windows or bus numbers did.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        let (windows, buses) = (self.windows(), self.bus_numbers());
        let start = usize::from(offset);
        for (index, value) in (start..CONFIG_SIZE).zip(data) {
            let (Some(byte), Some(writable), Some(clears)) =
                (self.bytes.get_mut(index), self.writable.get(index), self.clears.get(index))
            else {
                break;
            };
            *byte = (*byte & !writable | value & writable) & !(value & clears);
        }
        ConfigEffect {
            windows: self.windows() != windows,
            buses: self.bus_numbers() != buses,
            ..ConfigEffect::default()
        }
    }

    /// What the BARs decode now. A BAR at address 0, or one that runs out of its address space, decodes nothing:
    /// that is how a BAR looks before it has an address, and while the guest sizes it.
    pub fn windows(&self) -> Vec<Window> {
        self.bars.iter().flatten().filter_map(|spec| self.window(spec)).collect()
    }

    fn window(&self, spec: &BarSpec) -> Option<Window> {
        let io = spec.kind == BarKind::Io;
        let needed = if io { command::IO } else { command::MEMORY };
        let register = self.bar_register(spec.index)?;
        let low = self.u32(register);
        let decoding = self.u16(offset::COMMAND) & needed != 0 && (spec.index != 6 || low & 1 != 0);
        let (high, end) = match spec.kind {
            BarKind::Io => (0, 1 << 16),
            BarKind::Memory32 { .. } => (0, 1 << 32),
            BarKind::Memory64 { .. } => (self.u32(register.saturating_add(4)), u64::MAX),
        };
        let base = (u64::from(high) << 32 | u64::from(low)) & !(spec.size - 1);
        let inside = base.checked_add(spec.size).is_some_and(|last| last <= end);
        (decoding && base != 0 && inside).then_some(Window { bar: spec.index, io, base, size: spec.size })
    }

    fn bus_numbers(&self) -> Option<u32> {
        (self.header == Header::Bridge).then(|| self.u32(offset::PRIMARY_BUS) & 0x00ff_ffff)
    }

    fn bar_register(&self, index: u8) -> Option<u16> {
        match index {
            6 => Some(self.header.rom()),
            _ if index < self.header.bars() => Some(offset::BAR0 + 4 * u16::from(index)),
            _ => None,
        }
    }

    /// The BAR that this register belongs to, be it its upper half.
    fn bar_holding(&self, index: u8) -> Option<BarSpec> {
        self.bars.iter().flatten().copied().find(|spec| {
            let wide = matches!(spec.kind, BarKind::Memory64 { .. });
            spec.index == index || (wide && spec.index + 1 == index)
        })
    }

    fn array<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut value = [0xff; N];
        self.read(offset, &mut value);
        value
    }
}

fn put(bytes: &mut [u8], offset: u16, value: &[u8]) {
    for (slot, byte) in bytes.get_mut(usize::from(offset)..).unwrap_or_default().iter_mut().zip(value) {
        *slot = *byte;
    }
}

/// The end of `length` bytes at `offset`, rounded up to 4, if that is within bounds.
fn end_of(offset: u16, length: usize, first: u16, end: u16) -> Option<u16> {
    let length = u16::try_from(length.checked_next_multiple_of(4)?).ok()?;
    let last = offset.checked_add(length)?;
    (offset.is_multiple_of(4) && offset >= first && last <= end).then_some(last)
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX)
}
