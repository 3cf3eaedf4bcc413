//! Messages as bytes: in the host's byte order, a header of 16 bytes first.

/// Bytes of a header.
pub(super) const HEADER: usize = 16;

/// The commands a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceInfo = 4,
    RegionInfo = 5,
    IrqInfo = 7,
    SetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    Reset = 13,
}

/// Type bits of the flags.
const TYPE: u32 = 0xf;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What precedes every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    /// Bytes of the whole message.
    pub(super) size: u32,
    flags: u32,
    error: u32,
}

impl Header {
    /// That of a command with so many bytes behind it; `None` when they are too many.
    pub(super) fn command(id: u16, command: Command, payload: usize) -> Option<Self> {
        let size = payload.checked_add(HEADER).and_then(|size| u32::try_from(size).ok())?;
        Some(Self { id, command: command as u16, size, flags: 0, error: 0 })
    }

    /// The answer to a command of the server's: refused.
    pub(super) fn refusal(of: Self) -> Self {
        Self { size: 16, flags: REPLY | ERROR, error: libc::ENOTSUP.unsigned_abs(), ..of }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let [a, b] = self.id.to_ne_bytes();
        let [c, d] = self.command.to_ne_bytes();
        let mut bytes = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (to, from) in bytes.iter_mut().skip(4).zip(self.size.to_ne_bytes()) {
            *to = from;
        }
        for (to, from) in bytes.iter_mut().skip(8).zip(self.flags.to_ne_bytes()) {
            *to = from;
        }
        for (to, from) in bytes.iter_mut().skip(12).zip(self.error.to_ne_bytes()) {
            *to = from;
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            id: u16::from_ne_bytes([a, b]),
            command: u16::from_ne_bytes([c, d]),
            size: u32::from_ne_bytes([e, f, g, h]),
            flags: u32::from_ne_bytes([i, j, k, l]),
            error: u32::from_ne_bytes([m, n, o, p]),
        }
    }

    pub(super) fn is_reply(self) -> bool {
        self.flags & TYPE == REPLY
    }

    pub(super) fn wants_reply(self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// The errno of a refusal; EIO where the server names none.
    pub(super) fn refused(self) -> Option<i32> {
        let errno = i32::try_from(self.error).ok().filter(|errno| *errno != 0);
        (self.flags & ERROR != 0).then(|| errno.unwrap_or(libc::EIO))
    }
}

/// The bytes of a message behind its header, to be filled.
#[derive(Default)]
pub(super) struct Payload(Vec<u8>);

impl Payload {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Numbers out of what was received; `None` past its end.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let header = Header::command(0x1234, Command::Reset, 8).unwrap();
        assert_eq!(header.to_bytes()[..8], [0x34, 0x12, 13, 0, 24, 0, 0, 0]);
        assert_eq!(Header::from_bytes(header.to_bytes()), header);
        assert!(!header.is_reply() && header.wants_reply() && header.refused().is_none());
        let refusal = Header::refusal(header);
        assert_eq!((refusal.id, refusal.is_reply(), refusal.refused()), (0x1234, true, Some(libc::ENOTSUP)));
        let nameless = Header { error: 0, ..refusal };
        assert_eq!(nameless.refused(), Some(libc::EIO));
    }

    #[test]
    fn fields_end_where_the_bytes_end() {
        let fields = Fields(&[1, 0, 0, 0, 2]);
        assert_eq!((fields.u32(0), fields.u32(2), fields.u16(3)), (Some(1), None, Some(0x200)));
        assert_eq!((fields.u64(0), fields.u16(usize::MAX)), (None, None));
    }
}
