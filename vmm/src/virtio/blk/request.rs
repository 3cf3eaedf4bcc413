//! One request of the driver, checked (virtio 1.2, 5.2.6): what it asks for, in bytes that are within the disk.

use super::super::{Broken, Chain, Memory};
use super::{Disk, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, ID_LENGTH, MOST_RANGE_SECTORS, MOST_RANGES, SECTOR};

/// Of one request: what 126 buffers of 256 KiB come to.
pub(super) const MOST_BYTES: u64 = 32 << 20;

const HEADER: u64 = 16;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// How a request ends (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A part of the disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Range),
    Write(Range),
    Flush,
    GetId,
    Discard(Vec<Range>),
    /// With whether storage may be given back.
    WriteZeroes(Vec<(Range, bool)>),
}

impl Request {
    /// Reads it. `Ok(Err(status))` is a request that is answered at once.
    ///
    /// # Errors
    /// It has no header, or no room for an answer.
    pub(super) fn read(
        chain: &Chain,
        memory: &Memory,
        disk: &Disk,
        features: u64,
    ) -> Result<Result<Self, Status>, Broken> {
        let mut header = [0; 16];
        if chain.read(memory, 0, &mut header) != header.len() {
            return Err(chain.malformed("its header is too short"));
        }
        if chain.writable_length() == 0 {
            return Err(chain.malformed("it has no room for its status"));
        }
        let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
        let [.., s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let given = chain.readable_length().saturating_sub(HEADER);
        let room = chain.writable_length().saturating_sub(1);
        let writes = matches!(u32::from_le_bytes(kind), OUT | DISCARD | WRITE_ZEROES);
        if writes && disk.read_only {
            return Ok(Err(Status::IoError));
        }
        Ok(match u32::from_le_bytes(kind) {
            IN => transfer(sector, room, disk).map(Self::Read),
            OUT => transfer(sector, given, disk).map(Self::Write),
            FLUSH if features & F_FLUSH != 0 => Ok(Self::Flush),
            GET_ID if room >= u64::try_from(ID_LENGTH).unwrap_or_default() => Ok(Self::GetId),
            DISCARD if features & F_DISCARD != 0 => {
                let plain = |(range, flags)| if flags == 0 { Ok(range) } else { Err(Status::Unsupported) };
                ranges(chain, memory, given, disk)
                    .and_then(|ranges| ranges.into_iter().map(plain).collect::<Result<_, _>>())
                    .map(Self::Discard)
            }
            WRITE_ZEROES if features & F_WRITE_ZEROES != 0 => {
                let unmap = |(range, flags)| match flags {
                    0 | 1 => Ok((range, flags == 1)),
                    _ => Err(Status::Unsupported),
                };
                ranges(chain, memory, given, disk)
                    .and_then(|ranges| ranges.into_iter().map(unmap).collect::<Result<_, _>>())
                    .map(Self::WriteZeroes)
            }
            _ => Err(Status::Unsupported),
        })
    }
}

fn transfer(sector: u64, length: u64, disk: &Disk) -> Result<Range, Status> {
    if length > MOST_BYTES || !length.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    within(sector, length / SECTOR, disk)
}

/// Sectors of the disk as bytes of the image.
fn within(sector: u64, count: u64, disk: &Disk) -> Result<Range, Status> {
    let inside = sector.checked_add(count).is_some_and(|end| end <= disk.sectors());
    let range = || Some(Range { offset: sector.checked_mul(SECTOR)?, length: count.checked_mul(SECTOR)? });
    range().filter(|_| inside).ok_or(Status::IoError)
}

/// What a DISCARD or WRITE_ZEROES names, with its flags.
fn ranges(chain: &Chain, memory: &Memory, given: u64, disk: &Disk) -> Result<Vec<(Range, u32)>, Status> {
    let count = given / 16;
    if !given.is_multiple_of(16) || count == 0 || count > MOST_RANGES.into() {
        return Err(Status::IoError);
    }
    (0..count)
        .map(|index| {
            let mut bytes = [0; 16];
            chain.read(memory, HEADER.saturating_add(index.saturating_mul(16)), &mut bytes);
            let (sector, rest) = bytes.split_first_chunk::<8>().ok_or(Status::IoError)?;
            let (sectors, flags) = rest.split_first_chunk::<4>().ok_or(Status::IoError)?;
            let flags = flags.first_chunk::<4>().copied().map(u32::from_le_bytes).ok_or(Status::IoError)?;
            let sectors = u32::from_le_bytes(*sectors);
            if sectors > MOST_RANGE_SECTORS {
                return Err(Status::IoError);
            }
            Ok((within(u64::from_le_bytes(*sector), sectors.into(), disk)?, flags))
        })
        .collect()
}
