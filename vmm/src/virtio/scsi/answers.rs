//! What the drive says of itself and of what lies in it.

use super::drive::{BLOCK, Sense};

/// Length fields count what follows them.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

/// INQUIRY (SPC-4, 6.6): a CD drive whose medium can be taken out, or that there is no such unit.
pub(super) fn inquiry(there: bool) -> Vec<u8> {
    let [kind, removable] = if there { [0x05, 0x80] } else { [0x7f, 0] };
    // SPC-3; responses in the format of today; no linked commands, no queue of the drive's own.
    let mut data = vec![kind, removable, 0x05, 0x02, 31, 0, 0, 0];
    data.extend(b"THRUWAY CD-ROM          1.0 ");
    data
}

/// INQUIRY for a page of vital product data (SPC-4, 7.8).
pub(super) fn vital(page: u8, serial: &str) -> Option<Vec<u8>> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83],
        0x80 => serial.as_bytes().to_vec(),
        // An identifier of the unit in ASCII, by vendor.
        0x83 => {
            let name = [b"THRUWAY ".as_slice(), serial.as_bytes()].concat();
            let [_, count] = length(&name);
            [&[0x02, 0x01, 0x00, count], name.as_slice()].concat()
        }
        _ => return None,
    };
    let [high, low] = length(&body);
    Some([&[0x05, page, high, low], body.as_slice()].concat())
}

/// REPORT LUNS: the one.
pub(super) fn units() -> Vec<u8> {
    vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// READ CAPACITY (10): the last block, or all ones where that has more bits.
pub(super) fn capacity(blocks: u64) -> Vec<u8> {
    let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), block_length()].concat()
}

/// READ CAPACITY (16).
pub(super) fn long_capacity(blocks: u64) -> Vec<u8> {
    let mut data = blocks.saturating_sub(1).to_be_bytes().to_vec();
    data.extend(block_length());
    data.resize(32, 0);
    data
}

fn block_length() -> [u8; 4] {
    u32::try_from(BLOCK).unwrap_or_default().to_be_bytes()
}

/// MODE SENSE (6 or, `long`, 10): error recovery (01h), and what the drive can (2Ah, MMC-3 5.5.10).
pub(super) fn mode(page: u8, locked: bool, long: bool) -> Result<Vec<u8>, Sense> {
    /// Single speed times 32, in kB/s.
    const SPEED: [u8; 2] = 5645_u16.to_be_bytes();
    const BUFFER: [u8; 2] = 512_u16.to_be_bytes();
    // Nothing was saved, and nothing can be changed.
    let changeable = match page >> 6 {
        0 | 2 => false,
        1 => true,
        _ => return Err(Sense(0x05, 0x39, 0x00)),
    };
    let recovery = vec![0x01, 0x0a, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut able = vec![0x2a, 0x12];
    // Reads all that is a CD or DVD with data, writes nothing; sessions; a tray that ejects and can be locked.
    able.extend([0x0b, 0x00, 0x40, 0x00, 0x29 | u8::from(locked) << 1, 0x00]);
    able.extend(SPEED);
    able.extend([0, 0]);
    able.extend(BUFFER);
    able.extend(SPEED);
    able.extend([0, 0, 0, 0]);
    let mut pages = match page & 0x3f {
        0x01 => recovery,
        0x2a => able,
        0x3f => [recovery, able].concat(),
        _ => return Err(Sense::INVALID_FIELD),
    };
    if changeable {
        let mut rest = pages.as_mut_slice();
        while let Some((head, tail)) = rest.split_at_mut_checked(2) {
            let count = usize::from(head.last().copied().unwrap_or_default());
            let Some((body, next)) = tail.split_at_mut_checked(count) else { break };
            body.fill(0);
            rest = next;
        }
    }
    Ok(if long {
        let [high, low] = length(&[&[0; 6], pages.as_slice()].concat());
        [&[high, low, 0, 0, 0, 0, 0, 0], pages.as_slice()].concat()
    } else {
        let [_, low] = length(&[&[0; 3], pages.as_slice()].concat());
        [&[low, 0, 0, 0], pages.as_slice()].concat()
    })
}

/// GET CONFIGURATION (MMC-6, 6.6): features from `first` on; with `which` 2 only that one, with 1 those that are current.
pub(super) fn features(which: u8, first: u64, profile: u16) -> Vec<u8> {
    let (cd, dvd) = (profile == 0x08, profile == 0x10);
    let [current_cd, current_dvd, medium] = [cd, dvd, cd || dvd].map(u8::from);
    let block = block_length();
    let mut readable = block.to_vec();
    readable.extend([0, 1, 0, 0]);
    // Number, version and persistence, whether it is current, its data.
    let all: [(u16, u8, bool, Vec<u8>); 8] = [
        (0x0000, 0x03, true, vec![0, 0x10, current_dvd, 0, 0, 0x08, current_cd, 0]),
        // By SCSI.
        (0x0001, 0x0b, true, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        (0x0002, 0x07, true, vec![0x02, 0, 0, 0]),
        // A tray, with eject and lock.
        (0x0003, 0x03, true, vec![0x29, 0, 0, 0]),
        (0x0010, 0x00, medium != 0, readable),
        (0x001d, 0x00, medium != 0, Vec::new()),
        (0x001e, 0x08, cd, vec![0, 0, 0, 0]),
        (0x001f, 0x00, dvd, vec![0, 0, 0, 0]),
    ];
    let mut body = Vec::new();
    for (number, version, current, data) in all {
        let wanted = match which {
            2 => u64::from(number) == first,
            1 => u64::from(number) >= first && current,
            _ => u64::from(number) >= first,
        };
        if wanted {
            let [_, count] = length(&data);
            body.extend(number.to_be_bytes());
            body.extend([version | u8::from(current && version & 1 == 0), count]);
            body.extend(data);
        }
    }
    let count = u32::try_from(body.len()).unwrap_or_default().saturating_add(4);
    let mut data = count.to_be_bytes().to_vec();
    data.extend([0, 0]);
    data.extend(profile.to_be_bytes());
    data.extend(body);
    data
}

/// READ TOC (MMC-6, 6.25), of one track with data: formats 0 (tracks), 1 (sessions) and 2 (all, as lead-in has it).
pub(super) fn contents(format: u8, minutes: bool, first: u8, blocks: u64) -> Result<Vec<u8>, Sense> {
    const LEAD_OUT: u8 = 0xaa;
    /// A track with data that may be copied no further.
    const DATA: u8 = 0x14;
    let at = |block: u64| if minutes { by_minutes(block) } else { whole(block) };
    let track = |number: u8, block: u64| {
        let mut entry = vec![0, DATA, number, 0];
        entry.extend(at(block));
        entry
    };
    let body = match format {
        0 if first > 1 && first != LEAD_OUT => return Err(Sense::INVALID_FIELD),
        0 if first == LEAD_OUT => track(LEAD_OUT, blocks),
        0 => [track(1, 0), track(LEAD_OUT, blocks)].concat(),
        1 => track(1, 0),
        2 => {
            let point = |point: u8, place: [u8; 4]| {
                let [_, m, s, f] = place;
                vec![1, DATA, 0, point, 0, 0, 0, 0, m, s, f]
            };
            let all = [
                point(0xa0, [0, 1, 0, 0]),
                point(0xa1, [0, 1, 0, 0]),
                point(0xa2, by_minutes(blocks)),
                point(1, by_minutes(0)),
            ];
            all.concat()
        }
        _ => return Err(Sense::INVALID_FIELD),
    };
    let [high, low] = length(&[&[1, 1], body.as_slice()].concat());
    Ok([&[high, low, 1, 1], body.as_slice()].concat())
}

fn whole(block: u64) -> [u8; 4] {
    u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes()
}

/// Minutes, seconds and frames; track 1 starts two seconds in.
fn by_minutes(block: u64) -> [u8; 4] {
    let frames = block.saturating_add(150);
    let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [0, byte(frames / 75 / 60), byte(frames / 75 % 60), byte(frames % 75)]
}

/// READ DISC INFORMATION (MMC-6, 6.21): complete, one session with one track.
pub(super) fn disc() -> Vec<u8> {
    let mut data = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20];
    data.resize(34, 0);
    data
}

/// MECHANISM STATUS: no changer.
pub(super) fn mechanism(open: bool) -> Vec<u8> {
    vec![0, u8::from(open) << 4, 0, 0, 0, 0, 0, 0]
}
