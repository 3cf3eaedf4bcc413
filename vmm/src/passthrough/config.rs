//! The function's config space as the guest sees it: a shadow, and for each bit whether the shadow or the device answers.
//!
//! Offsets and bits are those of PCIe 6.0, 7.5.1 (type 0 header).

use vfio::{PciFunction, RegionIndex};

use super::Error;
use crate::pci::{BarKind, BarSpec, Window};

/// All of config space; a function with only 256 bytes has zeros above, which says "no extended capability".
pub(super) const SIZE: usize = 4096;

pub(super) const COMMAND: u16 = 0x04;
pub(super) const STATUS: u16 = 0x06;
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
pub(super) const CARDBUS_CIS: u16 = 0x28;
const ROM: u16 = 0x30;
pub(super) const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
const INTERRUPT_PIN: u16 = 0x3d;
/// Where the header ends and capabilities may begin.
pub(super) const HEADER_END: u16 = 0x40;

const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// I/O, memory, bus master, memory write and invalidate, parity, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0557;

/// Index of the expansion ROM among BARs.
pub(super) const ROM_BAR: u8 = 6;

/// What the machine decides about the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The slot holds several functions.
    pub(super) multifunction: bool,
    /// The function's pin is wired.
    pub(super) pin: bool,
    /// The guest sees the expansion ROM.
    pub(super) rom: bool,
}

/// The shadow.
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits that the shadow answers for; the device answers for the others.
    emulated: Vec<u8>,
    /// Emulated bits that the guest may write.
    writable: Vec<u8>,
    power_on: Vec<u8>,
    bars: Vec<BarSpec>,
    /// Offset of the power management capability.
    power: Option<u16>,
}

impl ConfigSpace {
    /// Reads all of the device's own and takes the header over. Capabilities are the matter of `capabilities`.
    pub(super) fn read_from(function: &dyn PciFunction, header: Header) -> Result<Self, Error> {
        let label = function.label();
        let size = function.region(RegionIndex::Config).map_or(0, |region| region.size);
        let size = usize::try_from(size).unwrap_or(SIZE).min(SIZE) & !3;
        if size < usize::from(HEADER_END) {
            return Err(Error::unusable(label, "it has no config space"));
        }
        let mut bytes = vec![0; SIZE];
        for (word, offset) in bytes.chunks_exact_mut(4).take(size / 4).zip((0..).step_by(4)) {
            function.read(RegionIndex::Config, offset, word)?;
        }
        let mut emulated = vec![0; SIZE];
        emulated.iter_mut().skip(size).for_each(|mask| *mask = 0xff);
        let mut config = Self {
            bytes,
            emulated,
            writable: vec![0; SIZE],
            power_on: Vec::new(),
            bars: Vec::new(),
            power: None,
        };
        config.check(label)?;
        config.take_header(function, header)?;
        Ok(config)
    }

    fn check(&self, label: &str) -> Result<(), Error> {
        if self.u16(0) == 0xffff {
            let why = "its config space reads all ones: it is powered off (D3cold), fell off the bus, or failed a \
                       reset; try `echo 1 > remove` and a rescan of its bus, or a cold boot of the host";
            return Err(Error::unusable(label, why));
        }
        if self.u8(HEADER_TYPE) & 0x7f != 0 {
            return Err(Error::unusable(label, "it is a bridge; only endpoints can be passed through"));
        }
        Ok(())
    }

    fn take_header(&mut self, function: &dyn PciFunction, header: Header) -> Result<(), Error> {
        // Ids, revision, class, CardBus pointer, subsystem: as they are. VFIO has filled in what a VF leaves blank.
        for (at, length) in [(0, 4), (0x08, 4), (CARDBUS_CIS, 8), (CAPABILITIES, 8), (0x3e, 2)] {
            self.emulate(at, length);
        }
        self.emulate_u16(COMMAND, 0, COMMAND_WRITABLE);
        self.emulate_u8(HEADER_TYPE, if header.multifunction { 0x80 } else { 0 }, 0);
        // No built-in self test: it may take the device's bus down.
        self.emulate_u8(HEADER_TYPE + 1, 0, 0);
        self.emulate_u8(INTERRUPT_LINE, 0, 0xff);
        self.emulate_u8(INTERRUPT_PIN, header.pin.into(), 0);
        self.take_bars(function)?;
        self.take_rom(function, header.rom);
        Ok(())
    }

    fn take_bars(&mut self, function: &dyn PciFunction) -> Result<(), Error> {
        let label = function.label();
        let mut index = 0;
        while index < 6 {
            let at = BAR0 + 4 * u16::from(index);
            let flags = self.u32(at);
            let Some(region) = function.region(RegionIndex::Bar(index)) else {
                self.emulate_u32(at, 0, 0);
                index += 1;
                continue;
            };
            let prefetchable = flags & 8 != 0;
            let (kind, least, most) = match (flags & 1, flags >> 1 & 3) {
                (1, _) => (BarKind::Io, 4, 1 << 16),
                (_, 2) if index < 5 => (BarKind::Memory64 { prefetchable }, 16, 1 << 62),
                _ => (BarKind::Memory32 { prefetchable }, 16, 1 << 31),
            };
            let size = region.size.checked_next_power_of_two().unwrap_or(u64::MAX).max(least);
            if size > most {
                let why = format!("BAR {index} claims {:#x} bytes, more than its kind can have", region.size);
                return Err(Error::unusable(label, why));
            }
            let mask = !(size - 1);
            let (low, high) = halves(mask);
            match kind {
                BarKind::Io => self.emulate_u32(at, 1, low & !3),
                BarKind::Memory32 { .. } => self.emulate_u32(at, flags & 8, low & !0xf),
                BarKind::Memory64 { .. } => {
                    self.emulate_u32(at, flags & 8 | 4, low & !0xf);
                    self.emulate_u32(at + 4, 0, high);
                }
            }
            self.bars.push(BarSpec { index, kind, size });
            index += if matches!(kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
        }
        Ok(())
    }

    fn take_rom(&mut self, function: &dyn PciFunction, wanted: bool) {
        let region = function.region(RegionIndex::Rom).filter(|_| wanted);
        let size = region.and_then(|region| region.size.checked_next_power_of_two()).unwrap_or(0).max(2048);
        if region.is_none() || size > 16 << 20 {
            self.emulate_u32(ROM, 0, 0);
            return;
        }
        let (mask, _) = halves(!(size - 1));
        self.emulate_u32(ROM, 0, mask | 1);
        let kind = BarKind::Memory32 { prefetchable: false };
        self.bars.push(BarSpec { index: ROM_BAR, kind, size });
    }

    /// Power state bits of this capability count from now on.
    pub(super) fn set_power_capability(&mut self, at: u16) {
        self.power = Some(at);
    }

    /// What it holds now is what it holds after power-on.
    pub(super) fn seal(&mut self) {
        self.power_on = self.bytes.clone();
    }

    /// Back to power-on.
    pub(super) fn reset(&mut self) {
        self.bytes.clone_from(&self.power_on);
    }

    pub(super) fn u8(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn u16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at.saturating_add(1))])
    }

    pub(super) fn u32(&self, at: u16) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at.saturating_add(2))) << 16
    }

    /// The shadow answers for these bytes with what it holds; the guest cannot write them.
    pub(super) fn emulate(&mut self, at: u16, length: u16) {
        for offset in at..at.saturating_add(length) {
            self.emulate_bits(offset, 0xff, self.u8(offset), 0);
        }
    }

    /// The shadow answers for these bytes with zero.
    pub(super) fn blank(&mut self, at: u16, length: u16) {
        for offset in at..at.saturating_add(length) {
            self.emulate_bits(offset, 0xff, 0, 0);
        }
    }

    pub(super) fn emulate_u8(&mut self, at: u16, value: u8, writable: u8) {
        self.emulate_bits(at, 0xff, value, writable);
    }

    pub(super) fn emulate_u16(&mut self, at: u16, value: u16, writable: u16) {
        for ((value, writable), offset) in
            value.to_le_bytes().into_iter().zip(writable.to_le_bytes()).zip(at..)
        {
            self.emulate_bits(offset, 0xff, value, writable);
        }
    }

    pub(super) fn emulate_u32(&mut self, at: u16, value: u32, writable: u32) {
        for ((value, writable), offset) in
            value.to_le_bytes().into_iter().zip(writable.to_le_bytes()).zip(at..)
        {
            self.emulate_bits(offset, 0xff, value, writable);
        }
    }

    /// The shadow answers for some bits of a byte; the others stay as they were.
    pub(super) fn emulate_bits(&mut self, at: u16, bits: u8, value: u8, writable: u8) {
        let at = usize::from(at);
        if let (Some(byte), Some(emulated), Some(mask)) =
            (self.bytes.get_mut(at), self.emulated.get_mut(at), self.writable.get_mut(at))
        {
            *byte = *byte & !bits | value & bits;
            *emulated |= bits;
            *mask = *mask & !bits | writable & bits;
        }
    }

    /// What the shadow answers for at one offset, and with what: `(bits, value)`.
    pub(super) fn emulated_at(&self, at: u16) -> (u8, u8) {
        let bits = self.emulated.get(usize::from(at)).copied().unwrap_or(0xff);
        (bits, self.u8(at) & bits)
    }

    /// A guest's write to the emulated bits. True if any changed.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let mut changed = false;
        for (new, at) in data.iter().zip(usize::from(offset)..) {
            if let (Some(byte), Some(writable)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                let after = *byte & !writable | new & writable;
                changed |= after != *byte;
                *byte = after;
            }
        }
        changed
    }

    /// Overwrites the shadow; for registers that the machine computes.
    pub(super) fn set_u32(&mut self, at: u16, value: u32) {
        for (value, offset) in value.to_le_bytes().into_iter().zip(usize::from(at)..) {
            if let Some(byte) = self.bytes.get_mut(offset) {
                *byte = value;
            }
        }
    }

    /// The command register for the device: INTx is never disabled there, as VFIO ties or unties it.
    pub(super) fn device_command(&self) -> u16 {
        self.u16(COMMAND) & !COMMAND_INTX_DISABLE
    }

    /// The pin can assert: it is not disabled, and the guest has switched something on. A function that neither decodes
    /// nor masters anything has nobody to answer its pin.
    pub(super) fn pin_may_fire(&self) -> bool {
        let command = self.u16(COMMAND);
        command & COMMAND_INTX_DISABLE == 0 && command & (COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER) != 0
    }

    /// Power state, 0 to 3 (7.5.2.2).
    pub(super) fn power_state(&self) -> u8 {
        self.power.map_or(0, |at| self.u8(at + 4) & 3)
    }

    /// Base address registers that want an address.
    pub(super) fn bars(&self) -> &[BarSpec] {
        &self.bars
    }

    /// What is decoded now.
    pub(super) fn windows(&self) -> Vec<Window> {
        if self.power_state() == 3 {
            return Vec::new();
        }
        self.bars.iter().filter_map(|bar| self.window(bar)).collect()
    }

    fn window(&self, bar: &BarSpec) -> Option<Window> {
        let command = self.u16(COMMAND);
        let io = bar.kind == BarKind::Io;
        let rom = bar.index == ROM_BAR;
        let at = if rom { ROM } else { BAR0 + 4 * u16::from(bar.index) };
        let low = self.u32(at);
        let on = if io { command & COMMAND_IO } else { command & COMMAND_MEMORY };
        if on == 0 || rom && low & 1 == 0 {
            return None;
        }
        let (base, limit) = match bar.kind {
            BarKind::Io => (u64::from(low & !3), 1 << 16),
            BarKind::Memory32 { .. } => (u64::from(low & if rom { !0x7ff } else { !0xf }), 1 << 32),
            BarKind::Memory64 { .. } => (u64::from(self.u32(at + 4)) << 32 | u64::from(low & !0xf), u64::MAX),
        };
        // Zero is "not placed yet". The very top is what sizing leaves for a moment.
        let end = base.checked_add(bar.size)?;
        (base != 0 && end < limit).then_some(Window { bar: bar.index, io, base, size: bar.size })
    }
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
