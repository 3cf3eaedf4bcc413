//! One request of the driver (virtio 1.2, 5.6.6.1): which unit, which command, and where the answer goes.

use super::super::{Broken, Chain, Memory};
use super::drive::{Cdb, Drive, Reply, Sense};
use super::{CDB, Sizes};

/// Unit, identifier, attributes: what is in front of the command.
const HEADER: u64 = 19;
/// What is in front of the sense data.
const RESPONSE: u64 = 12;
/// Read at once.
const CHUNK: usize = 256 << 10;

const CHECK_CONDITION: u8 = 0x02;

/// How a request ends for the host (5.6.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Response {
    Ok = 0,
    /// More is to be transferred than there is room.
    Overrun = 1,
    BadTarget = 3,
}

/// What is answered, besides data that are there already.
struct Answer {
    response: Response,
    sense: Option<Sense>,
    transferred: u64,
}

/// Does the request in `chain` and answers it: bytes written, and what the host said if the medium could not be read.
///
/// # Errors
/// It has no header, or no room for a response.
pub(super) fn serve(
    drive: &Drive,
    sizes: Sizes,
    chain: &Chain,
    memory: &Memory,
) -> Result<(u32, Option<std::io::Error>), Broken> {
    let mut header = [0; 19];
    if chain.read(memory, 0, &mut header) != header.len() {
        return Err(chain.malformed("its header is too short"));
    }
    let response = RESPONSE.saturating_add(sizes.sense.into());
    let Some(room) = chain.writable_length().checked_sub(response) else {
        return Err(chain.malformed("it has no room for its response"));
    };
    let mut cdb = [0; CDB];
    let told = usize::try_from(sizes.cdb).unwrap_or(CDB).min(CDB);
    chain.read(memory, HEADER, cdb.get_mut(..told).unwrap_or_default());

    let mut error = None;
    let reply = unit(&header).map(|unit| drive.execute(unit, Cdb(&cdb)));
    let refused = |sense| Answer { response: Response::Ok, sense: Some(sense), transferred: 0 };
    let done = |transferred| Answer { response: Response::Ok, sense: None, transferred };
    let overrun = || Answer { response: Response::Overrun, sense: None, transferred: 0 };
    let answer = match reply {
        None => Answer { response: Response::BadTarget, sense: None, transferred: 0 },
        Some(Reply::Refused(sense)) => refused(sense),
        Some(Reply::Done) => done(0),
        Some(Reply::Data(data)) => {
            // Its length was said twice, in the command and by the room: what fits counts.
            let count = chain.write(memory, response, &data);
            done(u64::try_from(count).unwrap_or_default())
        }
        Some(Reply::Read { length, .. }) if length > room => overrun(),
        Some(Reply::Read { offset, length }) => {
            match read(drive, (offset, length), chain, memory, response) {
                Ok(()) => done(length),
                Err(why) => {
                    error = Some(why);
                    refused(Sense::UNREADABLE)
                }
            }
        }
    };
    let sense = answer.sense.map(Sense::bytes);
    let stored = sense.iter().flatten().copied().take(usize::try_from(sizes.sense).unwrap_or(usize::MAX));
    let stored: Vec<u8> = stored.collect();
    let mut bytes = u32::try_from(stored.len()).unwrap_or_default().to_le_bytes().to_vec();
    let residual = room.saturating_sub(answer.transferred);
    bytes.extend(u32::try_from(residual).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend([0, 0, if sense.is_some() { CHECK_CONDITION } else { 0 }, answer.response as u8]);
    bytes.extend(stored);
    chain.write(memory, 0, &bytes);
    let written = response.saturating_add(answer.transferred);
    Ok((u32::try_from(written).unwrap_or(u32::MAX), error))
}

/// The number of the unit at target 0 (5.6.6.1: single level LUN structure).
fn unit(header: &[u8; 19]) -> Option<u16> {
    match header {
        [1, 0, high, low, ..] => Some(u16::from_be_bytes([high & 0x3f, *low])),
        _ => None,
    }
}

fn read(
    drive: &Drive,
    (offset, length): (u64, u64),
    chain: &Chain,
    memory: &Memory,
    at: u64,
) -> std::io::Result<()> {
    let longest = usize::try_from(length).unwrap_or(usize::MAX).min(CHUNK);
    let (mut buffer, mut done) = (vec![0; longest], 0);
    while done < length {
        let count = usize::try_from(length - done).unwrap_or(usize::MAX).min(CHUNK);
        let piece = buffer.get_mut(..count).unwrap_or_default();
        drive.read(piece, offset.saturating_add(done))?;
        if chain.write(memory, at.saturating_add(done), piece) != count {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        done = done.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Answers a request of the control queue (5.6.6.2): bytes written.
///
/// Requests are done one after the other, and so none is left to be ended by the time this is looked at.
///
/// # Errors
/// It has no type, or no room for a response.
pub(super) fn control(chain: &Chain, memory: &Memory) -> Result<u32, Broken> {
    const INCORRECT_UNIT: u8 = 12;
    const REJECTED: u8 = 11;
    let mut request = [0; 24];
    if chain.read(memory, 0, &mut request) < 4 {
        return Err(chain.malformed("its header is too short"));
    }
    let [kind, 0, 0, 0, rest @ ..] = request else { return answer(chain, memory, &[REJECTED]) };
    match kind {
        // Task management, behind its subtype the unit.
        0 => {
            let [_, _, _, _, bus, target, ..] = rest;
            answer(chain, memory, &[if (bus, target) == (1, 0) { 0 } else { INCORRECT_UNIT }])
        }
        // Asynchronous notifications: none.
        1 | 2 => answer(chain, memory, &[0, 0, 0, 0, 0]),
        _ => answer(chain, memory, &[REJECTED]),
    }
}

fn answer(chain: &Chain, memory: &Memory, bytes: &[u8]) -> Result<u32, Broken> {
    if chain.write(memory, 0, bytes) != bytes.len() {
        return Err(chain.malformed("it has no room for its response"));
    }
    Ok(u32::try_from(bytes.len()).unwrap_or_default())
}
