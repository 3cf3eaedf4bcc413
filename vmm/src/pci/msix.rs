//! The MSI-X table as the guest writes it (PCIe 6.0, 7.7.2): the part that passthrough and our own devices share.

use std::ops::RangeInclusive;

use crate::vm::MsiMessage;

/// Bytes of a table entry.
pub(crate) const ENTRY_SIZE: u64 = 16;
/// Vector Control: the mask bit.
const ENTRY_MASKED: u32 = 1;
/// Bits of the four words of an entry that the guest may write.
const ENTRY_WRITABLE: [u32; 4] = [!3, !0, !0, ENTRY_MASKED];
/// An entry after power-on.
const POWER_ON: [u32; 4] = [0, 0, 0, ENTRY_MASKED];

/// All entries of one function: 1 to 2048.
pub(crate) struct MsixTable(Vec<[u32; 4]>);

impl MsixTable {
    /// As after power-on: all masked.
    pub(crate) fn new(count: u16) -> Self {
        Self(vec![POWER_ON; usize::from(count)])
    }

    /// Back to that.
    pub(crate) fn reset(&mut self) {
        self.0.fill(POWER_ON);
    }

    /// The message of a vector, and whether it is masked; `None` where there is no such vector.
    pub(crate) fn entry(&self, vector: u16) -> Option<(MsiMessage, bool)> {
        let [low, high, data, control] = *self.0.get(usize::from(vector))?;
        let address = u64::from(high) << 32 | u64::from(low);
        Some((MsiMessage { address, data }, control & ENTRY_MASKED != 0))
    }

    /// A guest's read, `offset` from the table's start; all ones behind its end.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.byte(at).unwrap_or(0xff);
        }
    }

    fn byte(&self, at: u64) -> Option<u8> {
        let entry = self.0.get(usize::try_from(at / ENTRY_SIZE).ok()?)?;
        let word = entry.get(usize::try_from(at % ENTRY_SIZE / 4).ok()?)?;
        word.to_le_bytes().get(usize::try_from(at % 4).ok()?).copied()
    }

    /// A guest's write, and the vectors it may have changed. They are to be looked at when it is done: a quadword that
    /// changes data and mask is one change.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> RangeInclusive<u16> {
        for (byte, at) in data.iter().zip(offset..) {
            self.write_byte(at, *byte);
        }
        let last = offset.saturating_add(u64::try_from(data.len()).unwrap_or(0)).saturating_sub(1);
        let vector = |at: u64| u16::try_from(at / ENTRY_SIZE).unwrap_or(u16::MAX);
        vector(offset)..=vector(last)
    }

    fn write_byte(&mut self, at: u64, byte: u8) -> Option<()> {
        let entry = self.0.get_mut(usize::try_from(at / ENTRY_SIZE).ok()?)?;
        let index = usize::try_from(at % ENTRY_SIZE / 4).ok()?;
        let (word, writable) = (entry.get_mut(index)?, ENTRY_WRITABLE.get(index)?);
        let mut bytes = word.to_le_bytes();
        *bytes.get_mut(usize::try_from(at % 4).ok()?)? = byte;
        *word = u32::from_le_bytes(bytes) & writable;
        Some(())
    }
}
