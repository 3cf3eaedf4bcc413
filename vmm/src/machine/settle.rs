//! Letting go of what only the start needed.
//!
//! Reading a file, building tables and loading a kernel touch most of the program's code; running a guest needs a small part
//! of it. Code is file content: what is unmapped stays in the page cache, and what is needed again is mapped again by a
//! fault that reads nothing. Of a guest's process remains what it works with.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::own;

/// How long after the guest's start.
pub(super) const AFTER: Duration = Duration::from_millis(20);
/// How long after the last client of the control socket has left.
pub(super) const AFTER_A_CLIENT: Duration = Duration::from_secs(1);

const PAGE: usize = 4096;

/// Bits of /proc/PID/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Unmaps code and constants of this program, and gives the heap's unused pages back. Where /proc cannot be read, all stays.
pub fn settle() {
    if let Err(error) = unmap_code() {
        tracing::debug!("Code that only the start needed stays mapped: {error}");
    }
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

fn unmap_code() -> io::Result<()> {
    let maps = own::maps()?;
    let pages = own::pagemap()?;
    for range in maps.lines().filter_map(code) {
        if is_as_in_its_file(&pages, &range)? {
            let start = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: a private mapping of a file that is not writable and none of whose pages differs from the file: what
            // is read from it afterwards is what was in it before.
            if unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The range of a mapping of code, or of the read-only data at the start of a program; none for what is relocated, written
/// to or no file. A line of proc_pid_maps(5): `7f8d1f749000-7f8d1fc94000 r-xp 00348000 fe:00 77 /usr/bin/throughway`.
fn code(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_whitespace();
    let (range, mode, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let is_file = fields.nth(2)?.starts_with('/');
    let number = |text| usize::from_str_radix(text, 16).ok();
    let wanted = mode == "r-xp" || mode == "r--p" && number(offset)? == 0;
    let (start, end) = range.split_once('-')?;
    (is_file && wanted).then_some(number(start)?..number(end)?)
}

/// Whether no page was copied when something wrote to it: a relocation, or a debugger's breakpoint.
fn is_as_in_its_file(pages: &File, range: &Range<usize>) -> io::Result<bool> {
    let mut entries = vec![0; range.len() / PAGE * 8];
    let offset = u64::try_from(range.start / PAGE * 8).map_err(io::Error::other)?;
    pages.read_exact_at(&mut entries, offset)?;
    let (entries, _) = entries.as_chunks();
    Ok(entries
        .iter()
        .map(|entry| u64::from_ne_bytes(*entry))
        .all(|entry| entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & OF_A_FILE != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_constants_are_chosen() {
        let line = |mode, offset, name| format!("55d000-55f000 {mode} {offset} fe:00 77   {name}");
        assert_eq!(code(&line("r-xp", "00348000", "/a")), Some(0x55d000..0x55f000));
        assert_eq!(code(&line("r--p", "00000000", "/a")), Some(0x55d000..0x55f000));
        for (mode, offset, name) in [
            // Relocated data, written and then made read-only.
            ("r--p", "00892000", "/a"),
            ("rw-p", "00000000", "/a"),
            ("rw-s", "00000000", "/memfd:guest-ram (deleted)"),
            ("r-xp", "00000000", "[vdso]"),
            ("r-xp", "00000000", ""),
        ] {
            assert_eq!(code(&line(mode, offset, name)), None, "{mode} {offset} {name}");
        }
    }

    #[test]
    fn a_page_that_was_written_to_is_seen() {
        let pages = File::open("/proc/self/pagemap").unwrap();
        let own = vec![1_u8; 4 * PAGE];
        let start = own.as_ptr().addr().next_multiple_of(PAGE);
        assert!(!is_as_in_its_file(&pages, &(start..start + PAGE)).unwrap());
        let maps = own::maps().unwrap();
        let text = maps.lines().find(|line| line.contains("r-xp") && line.contains('/')).unwrap();
        assert!(is_as_in_its_file(&pages, &code(text).unwrap()).unwrap());
    }

    #[test]
    fn the_program_goes_on() {
        let before = std::hint::black_box(format!("{:?}", code("x")));
        settle();
        assert_eq!(before, format!("{:?}", code("x")));
    }
}
