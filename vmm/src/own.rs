//! What the kernel says of this process, by files of /proc that are kept open: a process that is locked up finds no paths.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use rustix::process::{Uid, geteuid};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The files, opened.
struct Kept {
    status: File,
    maps: File,
    pagemap: File,
    user: Uid,
    /// What this process sees of users that its namespace does not have; none where it has all.
    others: Option<Uid>,
}

static KEPT: OnceLock<Kept> = OnceLock::new();

/// What the kernel shows of users that a namespace does not have (/proc/sys/kernel/overflowuid, as good as never changed).
const OVERFLOW: u32 = 65534;

/// Opens them, for a process that is going to be locked up, and notes whose it is. `namespace`: it has users of
/// its own. Without it they are opened each time.
///
/// # Errors
/// There is no /proc.
pub fn keep(namespace: bool) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/self/{name}"));
    let others = namespace.then(|| Uid::from_raw(OVERFLOW));
    let kept = Kept {
        status: open("status")?,
        maps: open("maps")?,
        pagemap: open("pagemap")?,
        user: geteuid(),
        others,
    };
    let _ = KEPT.set(kept);
    Ok(())
}

/// Whether this is root or the user that this process belongs to, whoever it runs as. In a namespace of users root is one of those
/// that are not there; of them, only root gets into a folder that is the user's alone.
pub(crate) fn belongs_to(user: Uid) -> bool {
    let (own, others) = KEPT.get().map_or_else(|| (geteuid(), None), |kept| (kept.user, kept.others));
    user.is_root() || user == own || Some(user) == others
}

/// proc_pid_status(5); empty where that cannot be read.
pub(crate) fn status() -> String {
    read(KEPT.get().map(|kept| &kept.status), "status").unwrap_or_default()
}

/// proc_pid_maps(5).
pub(crate) fn maps() -> io::Result<String> {
    read(KEPT.get().map(|kept| &kept.maps), "maps")
}

/// proc_pid_pagemap(5).
pub(crate) fn pagemap() -> io::Result<File> {
    match KEPT.get() {
        Some(kept) => kept.pagemap.try_clone(),
        None => File::open("/proc/self/pagemap"),
    }
}

/// Processor time of all its threads, in milliseconds.
pub(crate) fn cpu_ms() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    let ms = tv_sec.saturating_mul(1000).saturating_add(tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

fn read(kept: Option<&File>, name: &str) -> io::Result<String> {
    let Some(file) = kept else { return std::fs::read_to_string(format!("/proc/self/{name}")) };
    let (mut text, mut piece) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let at = u64::try_from(text.len()).map_err(io::Error::other)?;
        match file.read_at(&mut piece, at) {
            Ok(0) => return String::from_utf8(text).map_err(io::Error::other),
            Ok(count) => text.extend(piece.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_says_what_holds_now() {
        let file = File::open("/proc/self/maps").unwrap();
        let before = read(Some(&file), "maps").unwrap();
        let more = vec![1_u8; 16 << 20];
        let after = read(Some(&file), "maps").unwrap();
        assert_ne!(before, after, "{}", more.len());
        assert!(status().starts_with("Name:"));
    }

    #[test]
    fn processor_time_of_this_process_grows() {
        let before = cpu_ms();
        let mut sum: u64 = 0;
        while cpu_ms() <= before {
            sum = (0..100_000).fold(sum, |sum: u64, number| sum.wrapping_mul(31).wrapping_add(number));
        }
        assert_ne!(sum, 1);
    }
}
