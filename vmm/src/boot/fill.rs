//! From a file into guest RAM, without a buffer in between.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, Request};

/// Copies `size` bytes from `offset` of `file` to guest physical `address`. They are known to lie in the file; one that
/// has become shorter meanwhile is an error.
///
/// Guest RAM is a file too, and the kernel copies from file to file at twice the speed at which it reads into a mapping,
/// page fault by page fault. Where it cannot (huge pages), it reads.
pub(super) fn fill(
    request: &Request<'_>,
    what: &'static str,
    file: &mut File,
    offset: u64,
    address: u64,
    size: u64,
) -> Result<(), Error> {
    let done = send(request, file, offset, address, size);
    let (offset, address, size) = (offset + done, address + done, size - done);
    let failed = |source| Error::Read { what, doing: "going to its content", source };
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let memory = request.memory;
    memory.read_exact_volatile_from(GuestAddress(address), file, length).map_err(|source| Error::Memory {
        what,
        address,
        source,
    })
}

/// As much as sendfile(2) takes; the rest, all of it at worst, is left to reading.
fn send(request: &Request<'_>, file: &File, mut offset: u64, address: u64, size: u64) -> u64 {
    let Some(region) = request.memory.find_region(GuestAddress(address)) else { return 0 };
    let base = region.start_addr().0;
    // Not beyond this region: what follows in the file is RAM at another address.
    let Some(backing) = region.file_offset() else { return 0 };
    let end = size.min(region.len() - (address - base));
    if rustix::fs::seek(backing.file(), rustix::fs::SeekFrom::Start(backing.start() + (address - base)))
        .is_err()
    {
        return 0;
    }
    let mut done = 0;
    while done < end {
        let rest = usize::try_from(end - done).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(backing.file(), file, Some(&mut offset), rest) {
            Ok(0) => break,
            Ok(sent) => done += (sent as u64).min(end - done),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    done
}
